"""A worker process ends with the process that started it, from its first moment on, and knows while it is being started.

Dask ends orphans only once they have imported the main module, which may take long, or never end. The kernel's signal at the
death of a parent is bound to the thread that started the process, and that thread may end before. So the name of the process,
which is what it is told first, starts a thread there that looks at its parent.

Of this file, what runs in the worker needs the standard library alone: nothing else can be imported so early.
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
from typing import Any

THREAD = "emseg-lifeline"
"""The thread of a worker process that looks at its parent."""
LOOK = 0.5
"""Seconds between two looks."""
PR_SET_PDEATHSIG = 1
UNGUARDED = 86
"""Exit code of a worker process in which importing the main module started the run again."""


class TyingName(str):
    """The name of a process that ties it to this one where it is unpickled."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        tie_there = _Later(operator.getitem, _Later(runpy.run_path, __file__), tie.__name__)
        return operator.call, (tie_there, str(self), os.getpid())


class _Later:
    """Pickled, what a function returns in the process that unpickles it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._made


def tie(name: str, parent: int) -> str:
    """End this process as soon as its parent is another one; returns the name that it is given."""

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    if not _tied():
        if sys.platform == "linux":  # one that is suspended would never look
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
        threading.Thread(target=follow, name=THREAD, daemon=True).start()
    return name


def _tied() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def end_if_being_started() -> None:
    """End this process if it is a worker that is only importing the main module; its parent learns why."""
    if _tied() and getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
