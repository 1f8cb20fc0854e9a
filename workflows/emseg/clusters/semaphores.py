"""Semaphores of worker processes, which need shared memory."""

from __future__ import annotations

import multiprocessing
from contextlib import suppress
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import psutil

from emseg_core.errors import PlanError

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps semaphores, of a page each."""
SEMAPHORES_PER_WORKER = 6
"""The two queues between a worker process and the one that starts it again have three each."""
KIBIBYTE = 2**10


def check_semaphores(count: int, who: str, else_do: str = "") -> None:
    """Check that this process can make semaphores, by making this many at once.

    Parameters
    ----------
    count
        Number of semaphores.
    who
        What needs them, for the message.
    else_do
        What helps apart from more shared memory, for the message.

    Raises
    ------
    PlanError
        If it cannot: in containers, `SHARED_MEMORY` may be small, full, read-only or absent.
    """
    spawned = multiprocessing.get_context("spawn")
    made: list[Semaphore] = []
    try:
        while len(made) < count:
            made.append(spawned.Semaphore())
    except OSError as error:
        there = error.strerror or str(error)
        with suppress(OSError):
            usage = psutil.disk_usage(str(SHARED_MEMORY))
            there += f"; {usage.free // KIBIBYTE} of {usage.total // KIBIBYTE} KiB are free"
        raise PlanError(
            f"{who} needs {count} semaphores in {SHARED_MEMORY}, but they cannot be made there ({there}): mount a writable "
            f"tmpfs of 64 MiB there (docker run --shm-size 64m){else_do}"
        ) from error
