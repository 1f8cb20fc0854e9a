"""Present an image to a viewer in the browser: the arrays of its levels, and metadata of a group that contains them.

The metadata are written from what emseg has read, in the one form and with the units that viewers understand. So a plain array
is shown with its voxel size, and an image with older or nonstandard OME-Zarr metadata is shown as it was segmented.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import zarr

from emseg_core.box import AXES
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import NANOMETRES
from emseg_core.store.files.place import ZARR_JSON, Place
from emseg_core.store.volumes.channels import axis_kind
from emseg_core.store.volumes.volume import stored_volume
from emseg_core.store.zarrs.nodes import open_array, read_node
from emseg_core.store.zarrs.ome import VERSION, Space, levels, multiscales, multiscales_of

V2_COMPRESSORS = {"blosc", "gzip", "zlib", "zstd"}
"""Compressors of Zarr v2 that the viewer can decode."""
V3_CODECS = {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}
"""Codecs of Zarr v3 that the viewer can decode."""


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image as a viewer requests it: a group with the array of level ``n`` at ``n/``."""

    zarr_format: Literal[2, 3]
    arrays: tuple[Place, ...]
    """Where the array of each level is, the finest first."""
    metadata: dict[str, bytes]
    """Content of the group's metadata files, by name."""


def shown_image(path: str | Place, max_levels: int | None = None) -> ShownImage:
    """Prepare the image or array at a path for a viewer.

    A coarser level that is damaged, or differs from the finest in format, axes or type, ends the levels.

    Parameters
    ----------
    max_levels
        Most levels to show; None for all.

    Returns
    -------
    ShownImage
        Arrays and metadata.

    Raises
    ------
    VolumeError
        If there is no such image, or browsers cannot decode it.
    """
    node = read_node(path)
    stored = stored_volume(node)
    array = stored.array
    _check_codecs(node.path, array)
    found = [(node.path, stored.space)]
    if node.kind == "group":
        described = list(levels(multiscales_of(node.attributes)))[:max_levels]
        found = [(node.path / inside, at) for inside, at in described]
        found = found[: 1 + _count_usable(array, [folder for folder, _ in found[1:]])]
    zarr_format = array.metadata.zarr_format
    named = [(str(number), _viewer_space(at, array.shape)) for number, (_, at) in enumerate(found)]
    return ShownImage(zarr_format, tuple(folder for folder, _ in found), _group(zarr_format, named))


def _count_usable(finest: zarr.Array[Any], coarser: Sequence[Place]) -> int:
    """Count the coarser levels, from the first on, that can be shown together with the finest."""
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
    """Raise `VolumeError` if the viewer would not decode an array, or would decode it wrongly."""
    metadata: dict[str, Any] = array.metadata.to_dict()
    if array.metadata.zarr_format == 3:
        unknown = _codecs(metadata["codecs"]) - V3_CODECS
    else:
        compressor = metadata.get("compressor")
        unknown = {part["id"] for part in metadata.get("filters") or ()}  # the viewer ignores filters
        unknown |= {compressor["id"]} - V2_COMPRESSORS if compressor else set()
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise VolumeError(f"{path} is stored with {names}, which browsers do not decode: write it with blosc, gzip or zstd")


def _codecs(chain: Any) -> set[str]:
    """Return the names of the codecs of a chain, including those inside shards."""
    names: set[str] = set()
    for codec in chain:
        names.add(codec["name"])
        inner = codec.get("configuration", {})
        names |= _codecs(inner.get("codecs", ())) | _codecs(inner.get("index_codecs", ()))
    return names


def _viewer_space(space: Space, shape: tuple[int, ...]) -> Space:
    """Return axes with names and units that all parts of the viewer interpret in the same way.

    The channel axis is ``c`` and the time axis ``t``, both counted from 0.
    """
    front = [name for name in space.names if name not in AXES]
    names: list[str] = []
    for number, name in enumerate(front):
        short = "t" if axis_kind(name) == "timepoint" else "c"
        longest = max(length for other, length in zip(front, shape, strict=False) if axis_kind(other) == axis_kind(name))
        names.append(short if shape[number] == longest and short not in names else f"axis{number}")
    count, last = len(front), space.last(len(space.names) - len(front))
    units = tuple(unit if unit in NANOMETRES else None for unit in last.units)
    return Space((*names, *last.names), (1.0,) * count + last.scale, (0.0,) * count + last.translation, (None,) * count + units)


def _group(zarr_format: Literal[2, 3], named: list[tuple[str, Space]]) -> dict[str, bytes]:
    """Return the metadata files of a group that is an image with these levels."""
    image = multiscales(named, "image")
    if zarr_format == 3:
        ome = {"version": VERSION, "multiscales": image}
        return {ZARR_JSON: _json({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})}
    attributes = {"multiscales": [{"version": "0.4", **part} for part in image]}
    return {".zgroup": _json({"zarr_format": 2}), ".zattrs": _json(attributes)}


def _json(document: dict[str, Any]) -> bytes:
    """Encode a JSON document."""
    return json.dumps(document).encode()
