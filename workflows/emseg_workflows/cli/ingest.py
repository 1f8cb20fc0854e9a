"""`emseg ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emseg_workflows.cli.options import placement_options
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.terminal import on_terminal

if TYPE_CHECKING:
    from emseg_workflows.placement import Where


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("volume", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="PATH", help="Of an HDF5 file or an N5 container; by default the only one.")
@click.option("--voxel-size", type=float, nargs=3, metavar="Z Y X", help="Size of a voxel, in nanometres.")
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Fill slices that are missing in a folder with 0, and list them; in N5 and precomputed, chunks.",
)
@click.option("--overwrite", is_flag=True, help="Replace a volume that is already there.")
@placement_options("Worker processes; by default one per core, or none for less than 2 GiB. 0: no Dask.")
def ingest(
    source: Path,
    volume: Path,
    where: Where,
    **options: Any,
) -> None:
    """Make the Zarr volume VOLUME from SOURCE, or go on with that.

    SOURCE is a multi-page TIFF, MRC or HDF5 file, a folder of TIFF or PNG slices, N5, or Neuroglancer precomputed.
    """
    with on_terminal() as terminal:
        from emseg_workflows.flows.ingest import ingest as flow  # noqa: PLC0415

        made = flow(source, volume, **where, **options, **terminal)
    spec = made.spec
    say(f"{volume}: {' x '.join(map(str, spec.shape))} {spec.dtype}, {_voxel_size(spec.scale, spec.units)}")
    if made.missing:
        say(f"missing, and filled with 0: z = {', '.join(map(str, made.missing))}")


def _voxel_size(scale: tuple[float, ...], units: tuple[str | None, ...]) -> str:
    size = f"voxels of {' x '.join(f'{length:g}' for length in scale)}"
    if None not in units:
        return f"{size} {units[-1]}"
    return "voxel size not stated" if any(units) or set(scale) == {1.0} else f"{size}, unit not stated"
