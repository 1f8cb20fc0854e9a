"""Where an output may go: on a local disk, beside its volume, never inside it or around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emseg.errors import OutputError, VolumeError
from emseg.store.place import Address, Place, local

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


def check_output_place(output: Path, volume: Place) -> None:
    """Refuse an output that lies on a remote store, or inside its volume, or the other way round.

    Raises
    ------
    OutputError
        If it does.
    """
    try:
        local(output)
    except VolumeError as error:
        raise OutputError(f"the output cannot go there: {error}") from error
    if isinstance(volume, Address):
        return
    inner, outer = output.resolve(), volume.resolve()
    if inner == outer or outer in inner.parents:
        raise OutputError(f"the output {output} lies inside the volume {volume}: choose a place outside with -o")
    if inner in outer.parents:
        raise OutputError(f"the volume {volume} lies inside the output {output}: choose another place with -o")
