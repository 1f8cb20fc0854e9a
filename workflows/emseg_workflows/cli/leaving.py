"""How a command leaves that does not just return."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from emseg_workflows.cli.saying import say


def leave(message: str, code: int) -> NoReturn:
    """Print a line on the standard error stream, and end the process with this code."""
    say(message, err=True)
    sys.exit(code)


def stopped_by(number: int, left: str = "what is written stays; the same command goes on from there") -> str:
    """What is told of a command that a signal stopped, with what is left of it."""
    return f"stopped by {signal.Signals(number).name}: {left}"
