"""Test that a command on a busy machine ends without a traceback from zarr."""

from __future__ import annotations

import subprocess
import sys

import pytest

BUSY = """
import time
import numpy as np
import zarr
from zarr.core.sync import _get_loop

zarr.array(np.zeros(3))[...]
_get_loop().call_soon_threadsafe(time.sleep, 1)
"""


@pytest.mark.parametrize("ours", [True, False])
def test_zarr_is_waited_for(ours: bool) -> None:
    """zarr itself waits only a fifth of a second."""
    script = "import emseg_core.store.zarrs.nodes\n" * ours + BUSY
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert ("Cannot close a running event loop" in done.stderr) is not ours
    assert not ours or done.stderr == ""
