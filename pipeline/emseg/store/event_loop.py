"""Zarr's event loop ends before Python does."""

from __future__ import annotations

import asyncio
import atexit
import threading
from contextlib import suppress

from zarr.core.sync import sync

THREAD = "zarr_io"
"""What zarr calls the thread of its event loop."""
PATIENCE = 60.0
"""Seconds that the loop has to end."""


def end_loop_at_exit() -> None:
    """Wait at the end of this process for zarr's thread.

    zarr itself, whose turn comes next, waits a fifth of a second. On a busy machine it then closes a loop that still runs,
    and a traceback follows the results.
    """
    atexit.register(_end_loop)


def _end_loop() -> None:
    thread = next((thread for thread in threading.enumerate() if thread.name == THREAD), None)
    if thread is not None:
        with suppress(TimeoutError):
            sync(_stop_loop(), timeout=PATIENCE)
            thread.join(PATIENCE)


async def _stop_loop() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
