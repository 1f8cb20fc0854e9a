"""`emseg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from emseg.cli.exit import exit_stopped
from emseg.cli.options import placement_options
from emseg.cli.saying import say
from emseg.cli.terminal import on_terminal
from emseg.cli.values import Location
from emseg.placement import Where
from emseg.runs.stop import StoppedError
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--instances",
    is_flag=False,
    flag_value="instances",
    metavar="[NAME]",
    help="Export the instance labels of `emseg label`. Default name: instances.",
)
@click.option("--probability", metavar="CLASS", help="Export the probability of a class, 0 to 254 for 0 to 1.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["tiff", "ome-zarr-0.4", "ome-zarr-0.5", "precomputed"]),
    help="Format to write. Default: by the suffix of TARGET, .tif for TIFF and .zarr for OME-Zarr 0.5.",
)
@click.option(
    "--allow-incomplete", is_flag=True, help="Export an unfinished OUTPUT; missing voxels are 255, or 0 in instance labels."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing export.")
@placement_options("Worker processes. Default: one per core, or none up to 2 GiB. 0: no Dask.")
def export(output: Place, target: Path, where: Where, **options: Any) -> None:
    """Export the classes of OUTPUT, instance labels or a probability to TARGET.

    TARGET is a TIFF stack, which one process writes, or OME-Zarr or Neuroglancer precomputed with all pyramid levels.
    """
    try:
        with on_terminal() as terminal:
            from emseg.flows.export import export as flow

            made = flow(output, target, **where, **options, **terminal, tell=lambda line: say(line, err=True))
    except StoppedError as stopped:
        exit_stopped(stopped.number, "Nothing is kept; run the same command again to start over")
    say(made)
