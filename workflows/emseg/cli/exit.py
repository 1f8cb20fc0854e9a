"""Exit helpers: print to stderr and exit with a code."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from emseg.cli.saying import say


def exit_with_message(message: str, code: int) -> NoReturn:
    """Print a line on the standard error stream, and exit with this code."""
    say(message, err=True)
    sys.exit(code)


def stopped_message(number: int, kept: str = "Finished blocks are kept; run the same command again to continue") -> str:
    """Return the last line of a command that a signal stopped.

    Parameters
    ----------
    number
        Number of the signal. It is named unless it is that of Ctrl-C.
    kept
        What is kept, and how to continue.

    Returns
    -------
    str
        The line.
    """
    return f"stopped{'' if number == signal.SIGINT else f' by {signal.Signals(number).name}'}. {kept}"
