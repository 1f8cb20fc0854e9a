"""An image as a viewer in a browser reads it: the arrays of its levels, and the metadata of a group that they are in.

The metadata are made anew of what emseg has understood, in the one form that viewers know, with the units that they know:
so a plain array is shown with its voxel size, and an image of an older or loosely written OME-Zarr as it was segmented.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import zarr

from emseg.box import AXES
from emseg.errors import VolumeError
from emseg.specs.volume import NANOMETRES
from emseg.store.channels import kind_of
from emseg.store.nodes import open_array, read_node
from emseg.store.ome import VERSION, Space, levels, multiscales, multiscales_of
from emseg.store.place import Place
from emseg.store.volume import stored_at

V2_COMPRESSORS = {"blosc", "gzip", "zlib", "zstd"}
V3_CODECS = {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}
"""What the viewer's decoders know."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image whose array of level ``n`` a viewer finds at ``n/`` within a group."""

    zarr_format: Literal[2, 3]
    arrays: tuple[Place, ...]
    """Place of each level's array, the finest first."""
    metadata: dict[str, bytes]
    """The files of the group, by name."""


def shown_image(path: str | Place, most: int | None = None) -> ShownImage:
    """How the image or array at a path is shown, with all its levels or no more than `most`.

    A coarser level that is damaged, or unlike the finest, ends the levels.

    Raises
    ------
    VolumeError
        If there is no such image, or browsers cannot decode it.
    """
    node = read_node(path)
    stored = stored_at(node)
    array = stored.array
    _check_codecs(node.path, array)
    found = [(node.path, stored.space)]
    if node.kind == "group":
        described = list(levels(multiscales_of(node.attributes)))[:most]
        found = [(node.path / inside, at) for inside, at in described]
        found = found[: 1 + _sound(array, [folder for folder, _ in found[1:]])]
    zarr_format = array.metadata.zarr_format
    named = [(str(number), _known(at, array.shape)) for number, (_, at) in enumerate(found)]
    return ShownImage(zarr_format, tuple(folder for folder, _ in found), _group(zarr_format, named))


def _sound(finest: zarr.Array[Any], coarser: Sequence[Place]) -> int:
    """How many coarser levels, one after another, can be shown together with the finest."""
    for number, folder in enumerate(coarser):
        with suppress(VolumeError):
            array = open_array(read_node(folder))
            _check_codecs(folder, array)
            like = array.metadata.zarr_format == finest.metadata.zarr_format
            if like and array.ndim == finest.ndim and array.dtype.name == finest.dtype.name:
                continue
        return number
    return len(coarser)


def _check_codecs(path: Place, array: zarr.Array[Any]) -> None:
    """Refuse what the viewer would not decode, or would decode wrongly.

    Raises
    ------
    VolumeError
        If there is such a codec.
    """
    metadata: dict[str, Any] = array.metadata.to_dict()
    if array.metadata.zarr_format == 3:
        unknown = _codecs(metadata["codecs"]) - V3_CODECS
    else:
        compressor = metadata.get("compressor")
        unknown = {part["id"] for part in metadata.get("filters") or ()}  # which the viewer does not look at
        unknown |= {compressor["id"]} - V2_COMPRESSORS if compressor else set()
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise VolumeError(f"{path} is stored with {names}, which browsers do not decode: write it with blosc, gzip or zstd")


def _codecs(chain: Any) -> set[str]:
    """Names of the codecs of a chain, and of those within shards."""
    names: set[str] = set()
    for codec in chain:
        names.add(codec["name"])
        inner = codec.get("configuration", {})
        names |= _codecs(inner.get("codecs", ())) | _codecs(inner.get("index_codecs", ()))
    return names


def _known(space: Space, shape: tuple[int, ...]) -> Space:
    """The same, in units that each part of the viewer takes alike.

    Channels are on the axis ``c`` and timepoints on ``t``, both counted from 0.
    """
    front = [name for name in space.names if name not in AXES]
    names: list[str] = []
    for number, name in enumerate(front):
        short = "t" if kind_of(name) == "timepoint" else "c"
        longest = max(length for other, length in zip(front, shape, strict=False) if kind_of(other) == kind_of(name))
        names.append(short if shape[number] == longest and short not in names else f"axis{number}")
    count, last = len(front), space.last(len(space.names) - len(front))
    units = tuple(unit if unit in NANOMETRES else None for unit in last.units)
    return Space((*names, *last.names), (1.0,) * count + last.scale, (0.0,) * count + last.translation, (None,) * count + units)


def _group(zarr_format: Literal[2, 3], named: list[tuple[str, Space]]) -> dict[str, bytes]:
    """The files of a group that is an image of these levels."""
    image = multiscales(named, "image")
    if zarr_format == 3:
        ome = {"version": VERSION, "multiscales": image}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})}
    attributes = {"multiscales": [{"version": "0.4", **part} for part in image]}
    return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(attributes)}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()
