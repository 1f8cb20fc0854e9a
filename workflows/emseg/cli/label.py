"""`emseg label`."""

from __future__ import annotations

import sys
from typing import Any, Literal

import click

from emseg.cli.exit import exit_stopped
from emseg.cli.options import json_option, placement_options
from emseg.cli.saying import say_result
from emseg.cli.terminal import on_terminal
from emseg.cli.values import Location
from emseg.placement import Where
from emseg_core.store.files.place import Place

CONNECTIVITY: dict[str, Literal[6, 18, 26]] = {"6": 6, "18": 18, "26": 26}
"""Neighbours of a voxel, by the value of --connectivity."""


@click.command()
@click.argument("output", type=Location())
@click.option(
    "--method",
    type=click.Choice(["watershed", "components"]),
    default="watershed",
    show_default=True,
    help="Watershed on the boundary probability and agglomeration; or connected components of one class.",
)
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    help="Class of the boundary, or of the components. Default: membrane or boundary; for components, inside.",
)
@click.option("--threshold", type=float, help="Merge fragments below this mean boundary probability.  [default: 0.56]")
@click.option("--smoothing", type=int, help="Number of times to smooth the boundary probability first.  [default: 1]")
@click.option("--planar/--solid", default=None, help="Grow fragments within z slices, or in 3-D. Default: by voxel shape.")
@click.option(
    "--connectivity",
    type=click.Choice(["6", "18", "26"]),
    default="6",
    show_default=True,
    help="Neighbours of a voxel, for components.",
)
@click.option("--smallest", type=click.IntRange(min=0), default=0, show_default=True, help="Drop segments of fewer voxels.")
@click.option("--name", default="instances", show_default=True, help="Name of the instance-label image in OUTPUT.")
@click.option(
    "--allow-incomplete",
    is_flag=True,
    help="Label the finished blocks of an unfinished OUTPUT; the others stay 0, not computed.",
)
@click.option("--overwrite", is_flag=True, help="Replace instance labels that were made with other settings.")
@placement_options("Worker processes. Default: one per core. 0: no Dask.")
@json_option
def label(as_json: bool, output: Place, connectivity: Literal["6", "18", "26"], where: Where, **options: Any) -> None:
    """Segment neurons: give each one an id (resumes if interrupted)."""
    with on_terminal(where=where) as terminal:
        from emseg.flows.label import label as flow

        labelled = flow(output, connectivity=CONNECTIVITY[connectivity], **where, **options, **terminal)
    say_result(labelled, as_json)
    if labelled.exit_code > 128:
        exit_stopped(labelled.exit_code - 128)
    sys.exit(labelled.exit_code)
