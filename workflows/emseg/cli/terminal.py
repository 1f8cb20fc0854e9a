"""Run a long command on a terminal: signal handling and live progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypedDict

from emseg.clusters.fork_server import fork_server
from emseg.runs.stop import Stop

if TYPE_CHECKING:
    from emseg.placement import Where
    from emseg.runs.events import Observer


class Terminal(TypedDict):
    """Keyword arguments of all flows that can be stopped."""

    stop: Stop
    on_event: Observer


@contextmanager
def on_terminal(stop: Stop | None = None, where: Where | None = None) -> Iterator[Terminal]:
    """Handle signals and show events while a flow runs.

    Import the flow inside the ``with`` as well: the import takes seconds, in which a signal may arrive.

    Parameters
    ----------
    stop
        Stop request that signals set; None to make a new one.
    where
        Where the flow computes, if it starts workers by default. Those on this machine get ready while it is imported.

    Yields
    ------
    Terminal
        Keyword arguments for the flow.
    """
    stop = stop or Stop()
    local = where is not None and where.get("workers") != 0 and not where.get("scheduler") and where.get("cluster") == "local"
    with stop.on_signals(), fork_server() if local else nullcontext():
        from emseg.cli.console import RunConsole

        with RunConsole() as console:
            yield {"stop": stop, "on_event": console}
