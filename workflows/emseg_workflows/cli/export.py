"""`emseg export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.options import placement_options
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.terminal import on_terminal
from emseg_workflows.cli.values import Location
from emseg_workflows.stop import StoppedError

if TYPE_CHECKING:
    from emseg.store.place import Place
    from emseg_workflows.placement import Where


@click.command()
@click.argument("output", type=Location())
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--instances",
    is_flag=False,
    flag_value="instances",
    metavar="[NAME]",
    help="Export instance labels of `emseg label`, those called instances if no name is given.",
)
@click.option("--probability", metavar="CLASS", help="Export the probability of a class, 0 to 254 for 0 to 1.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["tiff", "ome-zarr-0.4", "ome-zarr-0.5", "precomputed"]),
    help="What to write; by default what TARGET ends with: .tif a TIFF, .zarr OME-Zarr 0.5.",
)
@click.option("--allow-incomplete", is_flag=True, help="Export what there is; the rest is 255, of instances 0.")
@click.option("--overwrite", is_flag=True, help="Replace an export that is already there.")
@placement_options("Worker processes; by default one per core, or none for less than 2 GiB. 0: no Dask.")
def export(
    output: Place,
    target: Path,
    where: Where,
    **options: Any,
) -> None:
    """Write the classes in OUTPUT, or instances, or a probability, as TARGET.

    That is a TIFF stack, which one process writes, or with all levels OME-Zarr or Neuroglancer precomputed.
    """
    try:
        with on_terminal() as terminal:
            from emseg_workflows.flows.export import export as flow  # noqa: PLC0415

            made = flow(output, target, **where, **options, **terminal, tell=lambda line: say(line, err=True))
    except StoppedError as stopped:
        leave(stopped_by(stopped.number, "nothing stays; the same command begins anew"), 128 + stopped.number)
    say(made)
