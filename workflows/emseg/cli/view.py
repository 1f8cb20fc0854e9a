"""`emseg view`."""

from __future__ import annotations

import click

from emseg.cli.exit import exit_stopped
from emseg.cli.saying import say
from emseg.cli.values import Location
from emseg.runs.stop import StoppedError, signal_of
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1 to serve at. Default: any free one.")
@click.option("--link", is_flag=True, help="Print the long address, which spells out what is shown and from where.")
@click.option("--no-browser", is_flag=True, help="Print the address without opening a browser.")
@click.option(
    "--public-url",
    metavar="URL",
    help="Address at which a proxy shows the port; {port} stands for it. Default: JupyterHub's, if under one.",
)
@click.option("--volume", type=Location(), help="Path of the volume, if it was moved since the run.")
def view(output: Place, port: int, link: bool, no_browser: bool, public_url: str | None, volume: Place | None) -> None:
    """Show OUTPUT in a browser until Ctrl-C: raw, classes, instances and probabilities.

    Only browsers on this machine can reach it, and only at the printed address. To share your view, copy the address from
    the browser: it opens the same view for anyone who reaches the same port of this machine, through the printed SSH tunnel,
    as long as this command runs. The tunnel may begin at another port: change the port in the address then.
    """
    from emseg.flows.view import view as flow

    try:
        with flow(output, volume=volume, port=port, public_url=public_url) as shown:
            for note in shown.notes:
                say(f"note: {note}", err=True)
            say(shown.link if link else shown.url)
            if shown.url.startswith("/"):
                say("note: open this path at the address of your JupyterHub; --public-url states the whole address", err=True)
            if no_browser or not shown.open_browser():
                say(f"from another machine: {shown.tunnel}", err=True)
            shown.wait()
    except (KeyboardInterrupt, StoppedError) as stopped:
        exit_stopped(signal_of(stopped), "The output is no longer served")
