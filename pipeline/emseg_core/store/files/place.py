"""Places of volumes and outputs: a path on this machine, or an address on an object store or a web server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from emseg_core.errors import VolumeError

SCHEMES = ("s3", "gs", "https", "http")
"""Schemes of the addresses that emseg reads."""

ZARR_JSON = "zarr.json"
"""Name of the file with the metadata of a Zarr v3 array or group."""


@dataclass(frozen=True, slots=True)
class Address:
    """A folder on an object store or a web server: ``s3://bucket/key``, ``gs://bucket/key``, ``https://host/path``."""

    scheme: str
    host: str
    """The bucket, or the name of a web server, with its port if there is one."""
    key: str
    """The path below the host, without slashes at its ends; empty for the root."""

    @property
    def name(self) -> str:
        """The last part of the key; of a root the bucket or the host."""
        return PurePosixPath(self.key).name or self.host

    @property
    def parents(self) -> Sequence[Address]:
        """The folders that contain it, from the nearest to the root."""
        parents = PurePosixPath(self.key).parents if self.key else ()
        return [replace(self, key="" if key == PurePosixPath() else str(key)) for key in parents]

    def absolute(self) -> Address:
        """Return the address itself, which is never relative to anything."""
        return self

    def __truediv__(self, inside: str) -> Address:
        return replace(self, key=str(PurePosixPath(self.key, inside)))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + (f"/{self.key}" if self.key else "")


Place: TypeAlias = Path | Address


def parse_place(given: str | Path | Address) -> Place:
    """Parse a path or an address as a user gives it.

    Parameters
    ----------
    given
        A path or an address.

    Returns
    -------
    Path or Address
        A local path unchanged. A `Path` that was made from an address, and so has lost a slash, becomes that address.

    Raises
    ------
    VolumeError
        If it is an address that emseg cannot read.
    """
    if isinstance(given, Address):
        return given
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/]*)(.*)", str(given), re.DOTALL)
    if match is None:
        return Path(given)
    scheme, host, key = match[1].lower(), match[2], match[3].strip("/")
    if scheme not in SCHEMES:
        raise VolumeError(
            f"{given} is a {match[1]}:// address, but emseg reads {', '.join(f'{each}://' for each in SCHEMES)}: "
            "copy or mount it first"
        )
    parts = key.split("/") if key else []
    if "@" in host or (scheme.startswith("http") and set(key) & set("?#")):
        raise VolumeError(
            f"the address at {scheme}://{host.rpartition('@')[2]} contains a user name or a query, which the record of a "
            "run would keep: leave them out"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", host) or ".." in parts or not key.isprintable():
        raise VolumeError(f"{str(given)[:300]!r} is not a valid address: write it as s3://bucket/key or https://host/path")
    return Address(scheme, host, "/".join(part for part in parts if part not in ("", ".")))


def sibling(place: Place, name: str) -> Path:
    """Return the path of a file next to a place: in the same folder, or for a remote place in the current folder.

    Parameters
    ----------
    place
        Place of an output or a volume.
    name
        Name of the file.

    Returns
    -------
    Path
        The path, which need not exist.
    """
    return Path.cwd() / name if isinstance(place, Address) else place.with_name(name)


def local_path(path: str | Path) -> Path:
    """Return the absolute path of a file or folder on a local file system.

    Parameters
    ----------
    path
        A path as a user gives it.

    Returns
    -------
    Path
        An absolute path.

    Raises
    ------
    VolumeError
        If it is the address of a remote store, or contains characters that no file name can have.
    """
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise VolumeError(f"{str(path)!r} contains characters that no file name can have: check its spelling")
    place = parse_place(path)
    if isinstance(place, Address):
        raise VolumeError(f"{place} is the address of a remote store, but a local path is needed here: copy or mount it")
    return place.absolute()
