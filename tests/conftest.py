"""One thread, the same examples in CI each time, and a volume small enough to look at."""

from __future__ import annotations

import os
import signal

# Read when torch starts, also in the processes that a test starts; not imported here, as most layers are tested without it.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# A shell has its background jobs ignore this one, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def tiny() -> NDArray[np.uint8]:
    """Noise ``(5, 11, 13) uint8``; no axis is a multiple of another, none is a power of two."""
    return np.random.default_rng(7).integers(0, 255, (5, 11, 13)).astype(np.uint8)
