"""`emseg view`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.values import Location
from emseg_workflows.stop import StoppedError

if TYPE_CHECKING:
    from emseg.store.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1 to serve at; by default a free one.")
@click.option("--link", is_flag=True, help="Print the long address, with all that is shown and from where.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
def view(output: Place, port: int, link: bool, no_browser: bool, volume: Place | None) -> None:
    """Show OUTPUT in a browser until Ctrl-C: raw, classes, instances and probabilities.

    Only browsers of this machine reach it, and only at the address that is printed. To share what you see, copy the
    address from the browser: it opens the same view for whoever reaches the same port of this machine, through the SSH tunnel
    that is told, as long as this command runs.
    """
    from emseg_workflows.flows.view import view as flow  # noqa: PLC0415

    try:
        with flow(output, volume=volume, port=port) as shown:
            for note in shown.notes:
                say(f"note: {note}", err=True)
            say(shown.link if link else shown.url)
            if no_browser or not shown.open_browser():
                say(f"from another machine: {shown.tunnel}", err=True)
            shown.wait()
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        leave(stopped_by(number, "nothing is served any more"), 128 + number)
