"""Where an output may go: on a disk or an object store, beside its volume, never inside it or around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emseg.errors import OutputError, VolumeError
from emseg.store.place import Address, Place, local

WRITTEN = ("s3", "gs")
"""What an address that emseg writes to begins with."""
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Files that make a folder part of a Zarr hierarchy."""


def default_output(volume: Place) -> Path:
    """The output's place where none is given: ``volume.emseg.zarr`` beside ``volume.zarr``.

    For an array inside a Zarr hierarchy, ``data.zarr/raw``, it lies beside the hierarchy: ``data-raw.emseg.zarr``. For a
    volume on a remote store it lies in the current folder.
    """
    if isinstance(volume, Address):
        parts = volume.key.split("/") if volume.key else [volume.host]
        first = next((place for place, part in enumerate(parts) if part.endswith(".zarr")), len(parts) - 1)
        return Path.cwd() / _named(parts[first], parts[first + 1 :])
    volume = volume.absolute()
    root = volume
    while any((root.parent / name).exists() for name in METADATA):
        root = root.parent
    return root.with_name(_named(root.name, volume.relative_to(root).parts))


def _named(root: str, inside: Sequence[str]) -> str:
    return "-".join((root.removesuffix(".zarr").removesuffix(".ome"), *inside)) + ".emseg.zarr"


def check_output_place(output: Place, volume: Place) -> None:
    """Refuse an output on a web server, or inside its volume, or the other way round.

    Raises
    ------
    OutputError
        If it is there.
    """
    try:
        if not isinstance(output, Address):
            local(output)
    except VolumeError as error:
        raise OutputError(f"the output cannot go there: {error}") from error
    if isinstance(output, Address) and output.scheme not in WRITTEN:
        named = " and ".join(f"{scheme}://" for scheme in WRITTEN)
        raise OutputError(f"the output {output} is on a web server, but emseg writes to {named} and disks: choose one with -o")
    inner: Place
    outer: Place
    if isinstance(output, Address) and isinstance(volume, Address):
        inner, outer = output, volume
    elif isinstance(output, Address) or isinstance(volume, Address):
        return
    else:
        inner, outer = output.resolve(), volume.resolve()
    if inner == outer or outer in inner.parents:
        raise OutputError(f"the output {output} lies inside the volume {volume}: choose a place outside with -o")
    if inner in outer.parents:
        raise OutputError(f"the volume {volume} lies inside the output {output}: choose another place with -o")
