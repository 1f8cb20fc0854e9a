"""What goes on for a while, on a terminal: signals ask it to stop, and its events are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

from emseg_workflows.stop import Stop

if TYPE_CHECKING:
    from emseg_workflows.events import Observer


class Terminal(TypedDict):
    """Keyword arguments that all flows take which can be stopped."""

    stop: Stop
    on_event: Observer


@contextmanager
def on_terminal(stop: Stop | None = None) -> Iterator[Terminal]:
    """What a flow that is called within the ``with`` is to be given.

    Flows are imported there as well: that takes seconds, in which a signal may come.
    """
    stop = stop or Stop()
    with stop.on_signals():
        from emseg_workflows.console import RunConsole  # noqa: PLC0415

        with RunConsole() as console:
            yield {"stop": stop, "on_event": console}
