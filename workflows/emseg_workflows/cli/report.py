"""`emseg report`."""

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
@click.option(
    "-o",
    "--page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="By default OUTPUT.report.html beside the output.",
)
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
@click.option("--overwrite", is_flag=True, help="Replace a file that no `emseg report` has made.")
def report(output: Place, page: Path | None, volume: Place | None, overwrite: bool) -> None:
    """Write a page about OUTPUT, finished or not: settings, progress, slices, speed. One HTML file, without a network."""
    from emseg_workflows.flows.report import report_page  # noqa: PLC0415

    say(report_page(output, page, volume=volume, overwrite=overwrite))
