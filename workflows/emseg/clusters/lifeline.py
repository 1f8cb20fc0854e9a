"""End a worker process with the process that started it, from its first moment on, and detect that it is being started.

Dask ends orphans only once they have imported the main module, which may take long or never end. The kernel's signal at
the death of a parent is bound to the thread that started the process, and that thread may end before. So the name of the
process, which is the first thing that is sent to it, starts a thread there that watches its parent.

The part of this file that runs in the worker needs only the standard library: nothing else can be imported so early.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import operator
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

THREAD = "emseg-lifeline"
"""Name of the thread of a worker process that watches its parent."""
POLL_SECONDS = 0.5
"""Interval between checks."""
PR_SET_PDEATHSIG = 1
UNGUARDED_EXIT_CODE = 86
"""Exit code of a worker process in which importing the main module started the run again."""


class TyingName(str):
    """The name of a process; ties that process to its parent when it is unpickled there."""

    parent: int

    def __new__(cls, name: str, parent: int) -> Self:
        """Make the name.

        Parameters
        ----------
        name
            The name.
        parent
            Process id of the parent: this process, or the one that forks the new process.
        """
        made = super().__new__(cls, name)
        made.parent = parent
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        tie_there = _Later(operator.getitem, _Later(runpy.run_path, __file__), tie.__name__)
        return operator.call, (tie_there, str(self), self.parent)


class _Later:
    """Is pickled as a function call, and unpickled as its result."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._made


def tie(name: str, parent: int) -> str:
    """End this process as soon as its parent changes.

    Parameters
    ----------
    name
        Name of the process, to be passed on.
    parent
        Process id of the parent.

    Returns
    -------
    str
        `name`, unchanged.
    """

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    if not _tied():
        wake_at_death_of_parent()
        threading.Thread(target=follow, name=THREAD, daemon=True).start()
    return name


def wake_at_death_of_parent() -> None:
    """Have this process resumed when its parent ends: while it is suspended, it would not see that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def _tied() -> bool:
    """Return whether this process is tied to its parent."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def end_if_being_started() -> None:
    """End this process if it is a worker that is still importing the main module; its exit code tells its parent why."""
    if _tied() and getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED_EXIT_CODE)
