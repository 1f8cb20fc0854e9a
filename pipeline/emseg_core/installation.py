"""Find out how emseg was installed, and build the command that installs an extra in the same way."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
"""The source checkout that this module lies in, unless a wheel installed it."""


def install_hint(extra: str) -> str:
    """Return the shell command that installs an optional extra into the environment that runs this.

    emseg is on no package index, so the command names a source checkout, or what the extra requires.

    Parameters
    ----------
    extra
        Name of the extra, as in pyproject.toml.

    Returns
    -------
    str
        The command, in one line.

    Examples
    --------
    >>> install_hint("view").startswith(f"{sys.executable} -m pip install ")
    True
    """
    in_checkout = (CHECKOUT / "pyproject.toml").is_file()
    what = ["-e", f"{CHECKOUT}[{extra}]"] if in_checkout else _requirements(extra)
    return shlex.join([sys.executable, "-m", "pip", "install", *what])


def _requirements(extra: str) -> list[str]:
    """Return what an extra of the installed distribution requires, without markers."""
    found = []
    for line in metadata.requires("emseg") or ():
        requirement, _, marker = line.partition(";")
        if re.search(rf"\bextra == ['\"]{extra}['\"]", marker):
            found.append(requirement.strip())
    return found
