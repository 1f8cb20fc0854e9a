"""`emseg status`."""

from __future__ import annotations

import json
import shutil
import sys

import click

from emseg.cli.options import json_option
from emseg.cli.saying import say, say_result
from emseg.cli.values import Location
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option(
    "--watch",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="[SECONDS]",
    help="Update every SECONDS (10 if not given) until the run ends, and exit with its exit code.",
)
@json_option
def status(output: Place, watch: float | None, as_json: bool) -> None:
    """Show progress of OUTPUT: blocks done, failed and left, and whether a run is in progress."""
    from emseg.flows.status import status as flow

    if watch is not None:
        sys.exit(_watched(output, watch, as_json))
    found = flow(output)
    say_result(found, as_json)


def _watched(output: Place, every: float, as_json: bool) -> int:
    """Show progress until the run ends, and return the exit code for its result; Ctrl-C stops only the watching."""
    from emseg.flows.status import watch

    drawn = 0
    try:
        for found in watch(output, every):
            text = json.dumps(found.to_json()) if as_json else str(found)
            redrawn = sys.stdout.isatty() and not as_json
            say(*text.splitlines(), *([] if redrawn or as_json else [""]), redraw=drawn if redrawn else 0)
            columns = shutil.get_terminal_size().columns
            drawn = sum(max(1, -(-len(line) // columns)) for line in text.splitlines())
    except KeyboardInterrupt:
        return 0
    return found.exit_code
