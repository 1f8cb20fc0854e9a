"""System programs that tests start, including those that only root has on its path."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def path_of(program: str) -> str:
    """Return the path of a program. It must be installed."""
    found = shutil.which(program, path=PATH)
    assert found, f"{program} is not installed"
    return found


def lacking(programs: Iterable[str]) -> str:
    """Return the programs that are not installed, separated by commas."""
    return ", ".join(program for program in programs if not shutil.which(program, path=PATH))
