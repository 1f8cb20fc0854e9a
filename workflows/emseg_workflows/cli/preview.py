"""`emseg preview`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from emseg_workflows.cli.saying import say
from emseg_workflows.cli.values import Location

if TYPE_CHECKING:
    from emseg.store.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option("-o", "--picture", type=click.Path(path_type=Path), help="The PNG to write; by default OUTPUT.png beside it.")
@click.option("--slice", "z", type=int, help="z slice of the output; by default the middle one.")
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
def preview(output: Place, picture: Path | None, z: int | None, volume: Place | None) -> None:
    """Draw one slice of OUTPUT as a PNG: raw, labels, and both in one."""
    from emseg_workflows.flows.preview import preview as flow  # noqa: PLC0415

    say(flow(output, picture, z=z, volume=volume))
