"""`emseg status`."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import click

from emseg_workflows.cli.options import json_option
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.values import Location

if TYPE_CHECKING:
    from emseg.store.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option(
    "--watch",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="[SECONDS]",
    help="Tell again every so many seconds, 10 if none are given, until the run ends; leaves with its exit code.",
)
@json_option
def status(output: Place, watch: float | None, as_json: bool) -> None:
    """Say how far OUTPUT is: blocks done, failed and left, and whether a run goes on."""
    from emseg_workflows.flows.status import status as flow  # noqa: PLC0415

    if watch is not None:
        sys.exit(_watched(output, watch, as_json))
    found = flow(output)
    say(*(json.dumps(found.to_json(), indent=2) if as_json else str(found)).splitlines())


def _watched(output: Place, every: float, as_json: bool) -> int:
    """The exit code that a run's end deserves, once it has ended; Ctrl-C ends the watching alone."""
    from emseg_workflows.flows.status import watch  # noqa: PLC0415

    drawn = 0
    try:
        for found in watch(output, every):
            text = json.dumps(found.to_json()) if as_json else str(found)
            redrawn = sys.stdout.isatty() and not as_json
            say(*text.splitlines(), *([] if redrawn or as_json else [""]), over=drawn if redrawn else 0)
            columns = shutil.get_terminal_size().columns
            drawn = sum(max(1, -(-len(line) // columns)) for line in text.splitlines())
    except KeyboardInterrupt:
        return 0
    return found.exit_code
