"""Find and read the Zarr node at a place: the only module that deals with where Zarr is and with damaged metadata."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr

from emseg_core.documents import read_document
from emseg_core.errors import VolumeError
from emseg_core.store.files.event_loop import end_loop_at_exit
from emseg_core.store.files.faults import StoreError, describe_error, translate_damage
from emseg_core.store.files.files import ArrayFiles, Files, LocalFiles, find_metadata
from emseg_core.store.files.place import ZARR_JSON, Address, Place, local_path, parse_place
from emseg_core.store.files.remote import MAX_CACHED_INDICES, MAX_METADATA_BYTES, TooLongError, open_remote
from emseg_core.store.zarrs.codecs import max_stored_bytes, use_bounded_codecs

use_bounded_codecs()
end_loop_at_exit()

METADATA_FILES = (ZARR_JSON, ".zarray", ".zgroup")
"""Files that make a folder a Zarr node, the newest format first."""
METADATA_FILES_OF: dict[Literal[2, 3], tuple[str, ...]] = {3: METADATA_FILES[:1], 2: METADATA_FILES[1:]}
"""The same for each version of the format."""

TIFF_SUFFIXES = (".tif", ".tiff")
PNG_SUFFIXES = (".png",)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, slots=True)
class Node:
    """A Zarr array or group, known by its metadata alone."""

    path: Place
    """Where it is."""
    files: Files
    """Files below it."""
    kind: Literal["array", "group"]
    format: Literal[2, 3]
    """Version of the Zarr format."""
    attributes: dict[str, Any]


def read_node(path: str | Place, names: Sequence[str] = METADATA_FILES, files: Files | None = None) -> Node:
    """Read the Zarr node at a path or an address.

    Parameters
    ----------
    names
        Metadata files to look for; on a remote store each costs a request.
    files
        Files below an address, if they are open already.

    Returns
    -------
    Node
        The array or group.

    Raises
    ------
    VolumeError
        If nothing is there, it is not a Zarr, its metadata are damaged, or it may not be read.
    """
    place = parse_place(path)
    if isinstance(place, Address):
        return _read_remote(place, names, files)
    folder = local_path(place)
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
        raise VolumeError(f"{path} cannot be read ({describe_error(error)}): check its permissions and its disk") from error


def _read_remote(address: Address, names: Sequence[str], files: Files | None) -> Node:
    """Read the Zarr node at an address. Each name is requested in turn, as listing is slow or not possible at all."""
    files, denial = files or open_remote(address, cached_indices=MAX_CACHED_INDICES), None
    try:
        for name in names:
            try:
                data = files.read_metadata(name)
            except StoreError as error:
                if not error.permanent:
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
    raise VolumeError(
        f"there is none of {', '.join(names)} at {address}, so it is not a Zarr: check the spelling of the address"
    )


def open_array(node: Node) -> zarr.Array[Any]:
    """Open the Zarr array of a node, read-only.

    Parameters
    ----------
    node
        A node of a Zarr hierarchy.

    Returns
    -------
    zarr.Array
        The array. A missing chunk is an error while the array's metadata are missing too.

    Raises
    ------
    VolumeError
        If the node is not an array, or Zarr does not accept its metadata.
    """
    if node.kind != "array":
        raise VolumeError(f"{node.path} is a Zarr group, not an array: name an array inside")
    try:
        store = ArrayFiles(node.files, METADATA_FILES_OF[node.format][0])
        array = zarr.open_array(store=store, mode="r", zarr_format=node.format)
        store.max_bytes = max_stored_bytes(array)
        return array
    except StoreError as error:
        raise _unreachable(node.path, error) from error
    except Exception as error:  # metadata can be wrong in any way, and Zarr raises almost any type then
        raise VolumeError(
            f"the Zarr array {node.path} cannot be opened ({describe_error(error)}): restore its metadata, or write it again"
        ) from error


def _unreachable(place: Place, error: StoreError) -> VolumeError:
    """Return the error for a store that fails to serve a request."""
    return VolumeError(f"{place} cannot be read ({error.strerror}): {error.remedy}")


def _parse(place: Place, files: Files, name: str, data: bytes) -> Node:
    """Parse the metadata file of a node."""
    document = _json(place / name, data)
    _refuse_pickles(place / name, {key: value for key, value in document.items() if key != "attributes"})
    if name == ZARR_JSON:
        kind, attributes = document.get("node_type"), document.get("attributes", {})
    else:
        kind = "array" if name == ".zarray" else "group"
        stored = find_metadata(files, ".zattrs", name)
        attributes = {} if stored is None else _json(place / ".zattrs", stored)
    if kind not in ("array", "group"):
        found = reprlib.repr(kind)
        raise VolumeError(f"{place / name} says node_type {found}, not 'array' or 'group': restore it, or write it again")
    if not isinstance(attributes, dict):
        raise VolumeError(f"the attributes of {place} are {type(attributes).__name__}, not an object: restore {name}")
    return Node(place, files, kind, 3 if name == ZARR_JSON else 2, attributes)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Parameters
    ----------
    file
        Path of the file.

    Returns
    -------
    dict
        The object.

    Raises
    ------
    VolumeError
        If the file is damaged, or longer than valid metadata.
    OSError
        If the disk refuses to read it.
    """
    try:
        document = read_document(file, MAX_METADATA_BYTES)
    except ValueError as error:
        raise VolumeError(f"{file} cannot be read ({error}): restore it from a copy") from error
    return _json(file, document)


def _json(file: Place, data: bytes) -> dict[str, Any]:
    """Parse a JSON object; raise `VolumeError` if it is damaged."""
    with translate_damage(f"{file} is damaged", "restore it from a copy, or write the Zarr again"):
        document = json.loads(data)
    if not isinstance(document, dict):
        raise VolumeError(f"{file} holds {type(document).__name__}, not an object: restore it from a copy")
    return document


def _refuse_pickles(file: Place, document: Any) -> None:
    """Refuse the codec ``pickle``, which Zarr v2 allows: decoding a pickle runs any code that it contains."""
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
    """Return the error for a file or folder that is not a Zarr."""
    if path.is_dir():
        if any(file.suffix.lower() in TIFF_SUFFIXES for file in path.iterdir()):
            return VolumeError(f"{path} is a folder of TIFF files, not a Zarr: convert it with `emseg ingest`")
        return VolumeError(
            f"{path} holds none of {', '.join(METADATA_FILES)}, so it is not a Zarr: name the folder of a volume"
        )
    with path.open("rb") as file:
        if file.read(4) in TIFF_MAGIC:
            return VolumeError(f"{path} is a TIFF file, not a Zarr: convert it with `emseg ingest`")
    return VolumeError(f"{path} is a file, but a Zarr is a folder: convert it to TIFF or Zarr first")
