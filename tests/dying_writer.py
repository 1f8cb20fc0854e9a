"""A preload of Dask's workers: once, one dies while it writes its `EMSEG_TEST_FILE`-th file.

Where `EMSEG_TEST_DEATH` is ``all``, the whole group of processes dies with it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from emseg.store.staging import PARTIAL

ONCE = Path(os.environ["EMSEG_TEST_ONCE"])
"""A file that is made by who dies."""
known = os.fsync
left = int(os.environ["EMSEG_TEST_FILE"])


def fsync(handle: int) -> None:
    """Writes to the disk, but not the last time."""
    global left  # noqa: PLW0603
    if Path(f"/proc/self/fd/{handle}").readlink().name.endswith(PARTIAL):
        left -= 1
        if left == 0 and not ONCE.exists():
            ONCE.touch()
            if os.environ["EMSEG_TEST_DEATH"] == "all":
                os.killpg(os.getpgrp(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    known(handle)


if os.fsync.__module__ != "dying_writer":  # a worker loads its preloads twice
    os.fsync = fsync
