"""A home directory and a user name for libraries that do not import without.

A container's random user has no entry among the system's users, and a supervisor may start a process without an environment.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path


def complete_account() -> None:
    """Set the variables that name home and user where the system knows neither; processes started from here inherit them."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # as Docker has it: what is read there is root's, and nothing is left behind
    try:
        getpass.getuser()
    except (KeyError, OSError):  # of Python before 3.13, and since
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
