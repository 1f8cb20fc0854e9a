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


def exit_stopped(number: int, kept: str = "Finished blocks are kept; run the same command again to continue") -> NoReturn:
    """Say that a signal stopped the command, and exit with the code for that.

    Parameters
    ----------
    number
        Number of the signal. It is named unless it is that of Ctrl-C.
    kept
        Message with what is kept, and how to continue.
    """
    exit_with_message(f"stopped{'' if number == signal.SIGINT else f' by {signal.Signals(number).name}'}. {kept}", 128 + number)
