"""`emseg preview`."""

from __future__ import annotations

from pathlib import Path

import click

from emseg.cli.saying import say
from emseg.cli.values import Location
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option("-o", "--picture", type=click.Path(path_type=Path), help="PNG to write. Default: OUTPUT.png beside the output.")
@click.option("--slice", "z", type=int, help="Index of the z slice in the output. Default: the middle one.")
@click.option("--volume", type=Location(), help="Path of the volume, if it was moved since the run.")
def preview(output: Place, picture: Path | None, z: int | None, volume: Place | None) -> None:
    """Draw one slice of OUTPUT as a PNG: raw, labels, and their overlay."""
    from emseg.flows.preview import preview as flow

    say(flow(output, picture, z=z, volume=volume))
