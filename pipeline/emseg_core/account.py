"""Provide a home directory and a user name for libraries that cannot be imported without them.

A container's random user has no entry in the system's user database, and a supervisor may start a process without an
environment.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def complete_account() -> None:
    """Set the environment variables for home directory and user name if the system knows neither.

    Processes started from this one inherit them.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as in Docker: configuration there belongs to root, and nothing can be left behind
    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13, OSError since
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
