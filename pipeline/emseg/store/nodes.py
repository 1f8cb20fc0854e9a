"""From a place to a Zarr node: the one place that knows where Zarr lives and that Zarr may be damaged."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr

from emseg.documents import read_document
from emseg.errors import VolumeError
from emseg.store.blame import StoreError, reason
from emseg.store.codecs import most_stored, use_bounded_codecs
from emseg.store.event_loop import end_loop_at_exit
from emseg.store.files import ArrayFiles, Files, LocalFiles, find
from emseg.store.place import Address, Place, local, place_of
from emseg.store.remote import ENDS, MOST_METADATA, TooLongError, open_remote

use_bounded_codecs()
end_loop_at_exit()

METADATA = ("zarr.json", ".zarray", ".zgroup")
"""Files that make a folder a Zarr node, the newest format first."""
METADATA_OF: dict[Literal[2, 3], tuple[str, ...]] = {3: METADATA[:1], 2: METADATA[1:]}
"""Those of a format."""

TIFF_SUFFIXES = (".tif", ".tiff")
PNG_SUFFIXES = (".png",)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, slots=True)
class Node:
    """A Zarr array or group, known by its metadata alone."""

    path: Place
    files: Files
    """What is below it."""
    kind: Literal["array", "group"]
    format: Literal[2, 3]
    attributes: dict[str, Any]


def read_node(path: str | Place, names: Sequence[str] = METADATA, files: Files | None = None) -> Node:
    """The Zarr node at a path or an address.

    Parameters
    ----------
    names
        Of the metadata that it may have: on a remote store each that is looked for costs a request.
    files
        What is below it, if that is open already.

    Raises
    ------
    VolumeError
        If there is nothing, no Zarr, or a damaged one, or it may not be read.
    """
    place = place_of(path)
    if isinstance(place, Address):
        return _read_remote(place, names, files)
    folder = local(place)
    try:
        folder.stat()
        if not folder.is_dir():
            raise _not_zarr(folder)
        files = LocalFiles(folder, read_only=True)
        found = next(((name, data) for name in names if (data := files.read_metadata(name)) is not None), None)
        if found is None:
            raise _not_zarr(folder)
        return _parse(folder, files, *found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VolumeError(f"there is nothing at {path}: check the spelling of the path") from error
    except TooLongError as error:
        raise VolumeError(f"{path} cannot be read ({error}): restore its metadata from a copy") from error
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({reason(error)}): check its permissions and its disk") from error


def _read_remote(address: Address, names: Sequence[str], files: Files | None) -> Node:
    """The Zarr node at an address. Each name is asked for in turn: a list of what is there is slow, or not to be had."""
    files, denial = files or open_remote(address, ends=ENDS), None
    try:
        for name in names:
            try:
                data = files.read_metadata(name)
            except StoreError as error:
                if not error.lasting:
                    raise
                denial = error
                continue
            if data is not None:
                return _parse(address, files, name, data)
        if denial is not None:
            raise denial
    except TooLongError as error:
        raise VolumeError(f"{address} cannot be read ({error}): restore its metadata from a copy") from error
    except StoreError as error:
        raise _unreachable(address, error) from error
    raise VolumeError(f"there is none of {', '.join(names)} at {address}, so it is no Zarr: check the spelling of the address")


def open_array(node: Node) -> zarr.Array[Any]:
    """The Zarr array of a node, read-only.

    Raises
    ------
    VolumeError
        If the node is no array, or Zarr does not accept its metadata.
    """
    if node.kind != "array":
        raise VolumeError(f"{node.path} is a Zarr group, not an array: name an array inside")
    try:
        store = ArrayFiles(node.files, METADATA_OF[node.format][0])
        array = zarr.open_array(store=store, mode="r", zarr_format=node.format)
        store.most = most_stored(array)
        return array
    except StoreError as error:
        raise _unreachable(node.path, error) from error
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise VolumeError(
            f"the Zarr array {node.path} cannot be opened ({reason(error)}): restore its metadata, or write it again"
        ) from error


def _unreachable(place: Place, error: StoreError) -> VolumeError:
    """The error for a store that does not give what it is asked for."""
    return VolumeError(f"{place} cannot be read ({error.strerror}): {error.remedy}")


def _parse(place: Place, files: Files, name: str, data: bytes) -> Node:
    """The node that its metadata of that name tell of."""
    document = _json(place / name, data)
    _refuse_pickles(place / name, {key: value for key, value in document.items() if key != "attributes"})
    if name == "zarr.json":
        kind, attributes = document.get("node_type"), document.get("attributes", {})
    else:
        kind = "array" if name == ".zarray" else "group"
        stored = find(files, ".zattrs", name)
        attributes = {} if stored is None else _json(place / ".zattrs", stored)
    if kind not in ("array", "group"):
        found = reprlib.repr(kind)
        raise VolumeError(f"{place / name} says node_type {found}, not 'array' or 'group': restore it, or write it again")
    if not isinstance(attributes, dict):
        raise VolumeError(f"the attributes of {place} are {type(attributes).__name__}, not an object: restore {name}")
    return Node(place, files, kind, 3 if name == "zarr.json" else 2, attributes)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises
    ------
    VolumeError
        If it is damaged.
    OSError
        If it cannot be read.
    """
    try:
        document = read_document(file, MOST_METADATA)
    except ValueError as error:
        raise VolumeError(f"{file} cannot be read ({error}): restore it from a copy") from error
    return _json(file, document)


def _json(file: Place, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VolumeError(f"{file} is damaged ({reason(error)}): restore it from a copy, or write the Zarr again") from error
    if not isinstance(document, dict):
        raise VolumeError(f"{file} holds {type(document).__name__}, not an object: restore it from a copy")
    return document


def _refuse_pickles(file: Place, document: Any) -> None:
    """Zarr v2 may name the codec ``pickle``, and decoding a pickle runs whatever code it holds."""
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str) and value.rpartition(".")[2] == "pickle":
            raise VolumeError(f"{file} names the codec 'pickle', which can run any code: write the volume with another codec")


def _not_zarr(path: Path) -> VolumeError:
    """The error for something that exists but is not Zarr."""
    if path.is_dir():
        if any(file.suffix.lower() in TIFF_SUFFIXES for file in path.iterdir()):
            return VolumeError(f"{path} is a folder of TIFF files, not a Zarr: convert it with `emseg ingest`")
        return VolumeError(f"{path} holds none of {', '.join(METADATA)}, so it is not a Zarr: name the folder of a volume")
    with path.open("rb") as file:
        if file.read(4) in TIFF_MAGIC:
            return VolumeError(f"{path} is a TIFF file, not a Zarr: convert it with `emseg ingest`")
    return VolumeError(f"{path} is a file, but a Zarr is a folder: convert it to TIFF or Zarr first")
