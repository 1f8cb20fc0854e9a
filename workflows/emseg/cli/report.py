"""`emseg report`."""

from __future__ import annotations

from pathlib import Path

import click

from emseg.cli.saying import say
from emseg.cli.values import Location
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option(
    "-o",
    "--page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="HTML file to write. Default: OUTPUT.report.html beside the output.",
)
@click.option("--volume", type=Location(), help="Path of the volume, if it was moved since the run.")
@click.option("--overwrite", is_flag=True, help="Replace a file that `emseg report` did not write.")
def report(output: Place, page: Path | None, volume: Place | None, overwrite: bool) -> None:
    """Write an HTML page about OUTPUT, finished or not: settings, progress, slices and speed.

    The page is a single file that needs no network connection.
    """
    from emseg.flows.report import report as flow

    say(flow(output, page, volume=volume, overwrite=overwrite))
