"""From a path to a Zarr node: the one place that knows where Zarr lives and that Zarr may be damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from emseg.errors import BlockError, Fault, OrphanError, VolumeError
from emseg.store.blosc import use_whole_blosc

use_whole_blosc()

METADATA = ("zarr.json", ".zarray", ".zgroup")
"""Files that make a folder a Zarr node, the newest format first."""

TIFF_SUFFIXES = (".tif", ".tiff")
PNG_SUFFIXES = (".png",)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, slots=True)
class Node:
    """A Zarr array or group, known by its metadata alone."""

    path: Path
    kind: Literal["array", "group"]
    format: Literal[2, 3]
    attributes: dict[str, Any]


def reason(error: BaseException) -> str:
    """Why something failed, on one line: the system's words for an `OSError`, else type and message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = f"{type(error).__name__}: {error}"[:1000]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:300]


LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR}
"""Errors of a disk that trying again does not mend."""


def fault_of(error: BaseException) -> Fault:
    """Whether a store failed in a way that may pass, or what is stored is at fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return "block" if cause.errno in LASTING else "store"
        cause = cause.__cause__ or cause.__context__
    return "block"


@contextmanager
def blamed(what: str, remedy: str) -> Iterator[None]:
    """Whatever disk, Zarr or a codec raise within the ``with``, as a `BlockError`: what happened, why, and the remedy."""
    try:
        yield
    except (BlockError, OrphanError):
        raise
    except Exception as error:
        raise BlockError(f"{what} ({reason(error)}): {remedy}", fault_of(error)) from error


def local(path: str | Path) -> Path:
    """The absolute path of something on a local file system.

    Raises
    ------
    VolumeError
        If it is the address of a remote store, or holds what no file name can.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise VolumeError(f"{str(path)!r} has characters that no file name can have: check its spelling")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise VolumeError(f"{path} is the address of a remote store, but emseg reads local paths: copy or mount it first")
    return Path(path).absolute()


def read_node(path: str | Path) -> Node:
    """The Zarr node at a path.

    Raises
    ------
    VolumeError
        If there is nothing, no Zarr, or a damaged one, or it may not be read.
    """
    folder = local(path)
    try:
        folder.stat()
        if not folder.is_dir():
            raise _not_zarr(folder)
        found = [name for name in METADATA if (folder / name).is_file()]
        if not found:
            raise _not_zarr(folder)
        return _parse(folder, found[0])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VolumeError(f"there is nothing at {path}: check the spelling of the path") from error
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({reason(error)}): check its permissions and its disk") from error


class LocalFiles(LocalStore):
    """Local files, none of which is empty or ends within what is read of it.

    A power cut may leave a file empty. zarr 3.1 takes an empty shard for one that was never written, in silence. It also
    takes memory for as many bytes as metadata say that there are.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        file = self.root / key
        if isinstance(byte_range, RangeByteRequest) and file.is_file() and (size := file.stat().st_size) < byte_range.end:
            raise ValueError(f"the file {key} has {size} bytes, but should have at least {byte_range.end}")
        found = await super().get(key, prototype, byte_range)
        if found is not None and len(found) == 0:
            raise ValueError(f"the file {key} is empty")
        return found


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
        return zarr.open_array(store=LocalFiles(node.path, read_only=True), mode="r", zarr_format=node.format)
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise VolumeError(
            f"the Zarr array {node.path} cannot be opened ({reason(error)}): restore its metadata, or write it again"
        ) from error


def _parse(folder: Path, name: str) -> Node:
    document = read_json(folder / name)
    _refuse_pickles(folder / name, {key: value for key, value in document.items() if key != "attributes"})
    if name == "zarr.json":
        kind, attributes = document.get("node_type"), document.get("attributes", {})
    else:
        kind = "array" if name == ".zarray" else "group"
        attributes = read_json(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}
    if kind not in ("array", "group"):
        found = reprlib.repr(kind)
        raise VolumeError(f"{folder / name} says node_type {found}, not 'array' or 'group': restore it, or write it again")
    if not isinstance(attributes, dict):
        raise VolumeError(f"the attributes of {folder} are {type(attributes).__name__}, not an object: restore {name}")
    return Node(folder, kind, 3 if name == "zarr.json" else 2, attributes)


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
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VolumeError(f"{file} is damaged ({reason(error)}): restore it from a copy, or write the Zarr again") from error
    if not isinstance(document, dict):
        raise VolumeError(f"{file} holds {type(document).__name__}, not an object: restore it from a copy")
    return document


def _refuse_pickles(file: Path, document: Any) -> None:
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
