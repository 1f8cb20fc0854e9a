"""Where an output may go: beside its volume, never inside it or around it."""

from __future__ import annotations

from pathlib import Path

from emseg.errors import OutputError

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Files that make a folder part of a Zarr hierarchy."""


def default_output(volume: Path) -> Path:
    """The output's place where none is given: ``volume.emseg.zarr`` beside ``volume.zarr``.

    For an array inside a Zarr hierarchy, ``data.zarr/raw``, it lies beside the hierarchy: ``data-raw.emseg.zarr``.
    """
    volume = volume.absolute()
    root = volume
    while any((root.parent / name).exists() for name in METADATA):
        root = root.parent
    name = "-".join((root.name.removesuffix(".zarr").removesuffix(".ome"), *volume.relative_to(root).parts))
    return root.with_name(f"{name}.emseg.zarr")


def check_output_place(output: Path, volume: Path) -> None:
    """Refuse an output that lies inside its volume, or the other way round.

    Raises
    ------
    OutputError
        If it does.
    """
    inner, outer = output.resolve(), volume.resolve()
    if inner == outer or outer in inner.parents:
        raise OutputError(f"the output {output} lies inside the volume {volume}: choose a place outside with -o")
    if inner in outer.parents:
        raise OutputError(f"the volume {volume} lies inside the output {output}: choose another place with -o")
