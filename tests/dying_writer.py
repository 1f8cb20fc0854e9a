"""Preload module of Dask workers: one worker dies, once, while it writes its `EMSEG_TEST_FILE`-th file.

If `EMSEG_TEST_DEATH` is ``all``, its whole process group dies with it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

from emseg_core.store.files.atomic_write import PARTIAL_SUFFIX

ONCE = Path(os.environ["EMSEG_TEST_ONCE"])
"""File that the dying process creates."""


def dying(fsync: Callable[[int], None]) -> Callable[[int], None]:
    """Wrap `os.fsync` so that the process dies at one of its calls."""
    files = count(1)

    def dying(handle: int) -> None:
        half_written = Path(f"/proc/self/fd/{handle}").readlink().name.endswith(PARTIAL_SUFFIX)
        if half_written and next(files) == int(os.environ["EMSEG_TEST_FILE"]) and not ONCE.exists():
            ONCE.touch()
            if os.environ["EMSEG_TEST_DEATH"] == "all":
                os.killpg(os.getpgrp(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    return dying


if os.fsync.__name__ != "dying":  # a worker loads its preloads twice
    os.fsync = dying(os.fsync)  # type: ignore[assignment]
