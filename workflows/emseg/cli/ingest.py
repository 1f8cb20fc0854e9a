"""`emseg ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from emseg.cli.options import placement_options
from emseg.cli.saying import say
from emseg.cli.terminal import on_terminal
from emseg.placement import Where


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("volume", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="PATH", help="Dataset inside an HDF5 file or N5 container. Default: the only one.")
@click.option("--voxel-size", type=float, nargs=3, metavar="Z Y X", help="Voxel size in nanometres.")
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Fill missing slices of a folder, or missing chunks of other formats, with 0; missing slices are listed.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing volume.")
@placement_options("Worker processes. Default: one per core, or none up to 2 GiB. 0: no Dask.")
def ingest(source: Path, volume: Path, where: Where, **options: Any) -> None:
    """Convert SOURCE to a Zarr volume (resumes if interrupted).

    SOURCE is a multi-page TIFF, MRC or HDF5 file, a folder of TIFF or PNG slices, N5, or Neuroglancer precomputed.
    """
    with on_terminal() as terminal:
        from emseg.flows.ingest import ingest as flow

        made = flow(source, volume, **where, **options, **terminal)
    spec = made.spec
    say(f"{volume}: {' x '.join(map(str, spec.shape))} {spec.dtype}, {_voxel_size(spec.scale, spec.units)}")
    if made.missing:
        say(f"missing slices, filled with 0: z = {', '.join(map(str, made.missing))}")


def _voxel_size(scale: tuple[float, ...], units: tuple[str | None, ...]) -> str:
    size = f"voxels of {' x '.join(f'{length:g}' for length in scale)}"
    if None not in units:
        return f"{size} {units[-1]}"
    return "voxel size not stated" if any(units) or set(scale) == {1.0} else f"{size}, unit not stated"
