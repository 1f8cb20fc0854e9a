"""Choose and check the location of an output: on a disk or an object store, never inside its volume or around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emseg_core.errors import OutputError, VolumeError
from emseg_core.store.files.place import Address, Place, local_path

WRITABLE_SCHEMES = ("s3", "gs")
"""Schemes of addresses that emseg can write to."""
ZARR_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Names of files that mark a folder as part of a Zarr hierarchy."""


def default_output(volume: Place) -> Path:
    """Return the default output of a volume: ``volume.emseg.zarr`` beside ``volume.zarr``.

    The output of an array inside a Zarr hierarchy, ``data.zarr/raw``, lies beside the hierarchy: ``data-raw.emseg.zarr``. The
    output of a volume on a remote store lies in the current folder.

    Parameters
    ----------
    volume
        The volume to segment.

    Returns
    -------
    Path
        Where the output goes.
    """
    if isinstance(volume, Address):
        parts = volume.key.split("/") if volume.key else [volume.host]
        first = next((place for place, part in enumerate(parts) if part.endswith(".zarr")), len(parts) - 1)
        return Path.cwd() / _output_name(parts[first], parts[first + 1 :])
    volume = volume.absolute()
    root = volume
    while any((root.parent / name).exists() for name in ZARR_METADATA_FILES):
        root = root.parent
    return root.with_name(_output_name(root.name, volume.relative_to(root).parts))


def _output_name(root: str, inside: Sequence[str]) -> str:
    return "-".join((root.removesuffix(".zarr").removesuffix(".ome"), *inside)) + ".emseg.zarr"


def check_output_place(output: Place, volume: Place) -> None:
    """Refuse an output on a web server, inside its volume or around it.

    Parameters
    ----------
    output
        Where the output is to go.
    volume
        The volume to segment.

    Raises
    ------
    OutputError
        If the output cannot go there.
    """
    try:
        if not isinstance(output, Address):
            local_path(output)
    except VolumeError as error:
        raise OutputError(f"the output cannot go there: {error}") from error
    if isinstance(output, Address) and output.scheme not in WRITABLE_SCHEMES:
        named = " and ".join(f"{scheme}://" for scheme in WRITABLE_SCHEMES)
        raise OutputError(
            f"the output {output} is on a web server, but emseg writes only to {named} and disks: choose one with -o"
        )
    if isinstance(output, Address) != isinstance(volume, Address):
        return
    inner, outer = (place if isinstance(place, Address) else place.resolve() for place in (output, volume))
    if inner == outer or outer in inner.parents:
        raise OutputError(f"the output {output} lies inside the volume {volume}: choose a place outside it with -o")
    if inner in outer.parents:
        raise OutputError(f"the volume {volume} lies inside the output {output}: choose another place with -o")
