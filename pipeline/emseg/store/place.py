"""Where a volume or an output is: a path on this machine, or an address on an object store or a web server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from emseg.errors import VolumeError

SCHEMES = ("s3", "gs", "https", "http")
"""What an address that emseg reads begins with."""


@dataclass(frozen=True, slots=True)
class Address:
    """A folder on an object store or a web server: ``s3://bucket/key``, ``gs://bucket/key``, ``https://host/path``."""

    scheme: str
    host: str
    """The bucket; of a web server its name, with a port if there is one."""
    key: str
    """What follows, without slashes at its ends; empty for the root."""

    @property
    def name(self) -> str:
        """The last part; that of a root is the bucket or the host."""
        return PurePosixPath(self.key).name or self.host

    @property
    def parents(self) -> Sequence[Address]:
        """What it lies in, the nearest first, to the root."""
        parents = PurePosixPath(self.key).parents if self.key else ()
        return [replace(self, key="" if key == PurePosixPath() else str(key)) for key in parents]

    def absolute(self) -> Address:
        """The same: there is nothing that it could be relative to."""
        return self

    def __truediv__(self, inside: str) -> Address:
        return replace(self, key=str(PurePosixPath(self.key, inside)))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + (f"/{self.key}" if self.key else "")


Place: TypeAlias = Path | Address


def place_of(given: str | Path | Address) -> Place:
    """Where something is, as a user has said it; a local path stays as it is.

    A `Path` that was made of an address, and so has lost a slash, is that address.

    Raises
    ------
    VolumeError
        If it is an address that emseg does not read.
    """
    if isinstance(given, Address):
        return given
    said = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/]*)(.*)", str(given), re.DOTALL)
    if said is None:
        return Path(given)
    scheme, host, key = said[1].lower(), said[2], said[3].strip("/")
    if scheme not in SCHEMES:
        raise VolumeError(
            f"{given} is an address of {said[1]}://, but emseg reads {', '.join(f'{each}://' for each in SCHEMES)}: "
            "copy or mount it first"
        )
    parts = key.split("/") if key else []
    if "@" in host or (scheme.startswith("http") and set(key) & set("?#")):
        raise VolumeError(
            f"the address at {scheme}://{host.rpartition('@')[2]} has a name or a query in it, which the record of a run would "
            "keep: leave them out"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]*", host) or ".." in parts or not key.isprintable():
        raise VolumeError(f"{str(given)[:300]!r} is not an address: write it as s3://bucket/key or https://host/path")
    return Address(scheme, host, "/".join(part for part in parts if part not in ("", ".")))


def beside(place: Place, name: str) -> Path:
    """Where something goes that lies beside a place: the same folder, or for a remote one the current folder."""
    return Path.cwd() / name if isinstance(place, Address) else place.with_name(name)


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
    place = place_of(path)
    if isinstance(place, Address):
        raise VolumeError(f"{place} is the address of a remote store, but emseg wants a local path here: copy or mount it")
    return place.absolute()
