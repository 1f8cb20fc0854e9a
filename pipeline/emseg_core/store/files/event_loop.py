"""Make zarr's event loop end before Python does."""

from __future__ import annotations

import asyncio
import atexit
import threading
from contextlib import suppress

from zarr.core.sync import sync

ZARR_THREAD_NAME = "zarr_io"
"""Name that zarr gives the thread of its event loop."""
SHUTDOWN_SECONDS = 60.0
"""Most seconds to wait for the loop to end."""


def end_loop_at_exit() -> None:
    """Wait for zarr's thread at the end of this process.

    zarr's own exit handler, which runs next, waits a fifth of a second. On a busy machine it then closes a loop that is
    still running, and a traceback follows the results.
    """
    atexit.register(_end_loop)


def _end_loop() -> None:
    """Stop the loop, if there is one, and wait for its thread."""
    thread = next((thread for thread in threading.enumerate() if thread.name == ZARR_THREAD_NAME), None)
    if thread is not None:
        with suppress(TimeoutError):
            sync(_stop_loop(), timeout=SHUTDOWN_SECONDS)
            thread.join(SHUTDOWN_SECONDS)


async def _stop_loop() -> None:
    """Ask the running loop to stop."""
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.stop)
