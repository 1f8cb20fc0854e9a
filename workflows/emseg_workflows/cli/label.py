"""`emseg label`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.options import json_option, placement_options
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.terminal import on_terminal
from emseg_workflows.cli.values import Location

if TYPE_CHECKING:
    from emseg.store.place import Place
    from emseg_workflows.placement import Where

CONNECTIVITY: dict[str, Literal[6, 18, 26]] = {"6": 6, "18": 18, "26": 26}
"""Neighbours of a voxel, as they are typed."""


@click.command()
@click.argument("output", type=Location())
@click.option(
    "--method",
    type=click.Choice(["watershed", "components"]),
    default="watershed",
    show_default=True,
    help="Fragments of the boundary's probability, merged by its mean between them; or what hangs together of one class.",
)
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    help="The boundary, or for components what is labelled; by default membrane, inside.",
)
@click.option("--threshold", type=float, help="Fragments are merged below this mean probability.  [default: 0.56]")
@click.option("--smoothing", type=int, help="How often the boundary is smoothed before fragments grow.  [default: 1]")
@click.option("--planar/--solid", default=None, help="Grow fragments in z slices, or not; by default as voxels are shaped.")
@click.option(
    "--connectivity", type=click.Choice(["6", "18", "26"]), default="6", show_default=True, help="Neighbours, for components."
)
@click.option("--smallest", type=click.IntRange(min=0), default=0, show_default=True, help="Voxels below which one is dropped.")
@click.option("--name", default="instances", show_default=True, help="Of the image of instance labels in OUTPUT.")
@click.option("--allow-incomplete", is_flag=True, help="Label what there is; the rest stays 0, not computed.")
@click.option("--overwrite", is_flag=True, help="Replace instance labels that were made with other settings.")
@placement_options("Worker processes; by default one per core. 0: no Dask.")
@json_option
def label(
    as_json: bool,
    output: Place,
    connectivity: Literal["6", "18", "26"],
    where: Where,
    **options: Any,
) -> None:
    """Give each neuron in OUTPUT a number of its own, or go on with that."""
    with on_terminal() as terminal:
        from emseg_workflows.flows.label import label as flow  # noqa: PLC0415

        labelled = flow(output, connectivity=CONNECTIVITY[connectivity], **where, **options, **terminal)
    say(*(json.dumps(labelled.to_json(), indent=2) if as_json else str(labelled)).splitlines())
    if labelled.exit_code > 128:
        leave(stopped_by(labelled.exit_code - 128), labelled.exit_code)
    sys.exit(labelled.exit_code)
