"""Send notices to the log of the library if nothing else shows the run."""

from __future__ import annotations

import logging

from emseg.runs.events import Event, Noticed
from emseg_core.printable import printable

logger = logging.getLogger("emseg")


def log(event: Event) -> None:
    """Log the notices among the events of a run.

    Parameters
    ----------
    event
        Any event.
    """
    if isinstance(event, Noticed):
        logger.warning("%s", printable(event.message))
