"""Use one thread, the same Hypothesis examples in every CI run, and a tiny volume."""

from __future__ import annotations

import os
import signal

# Torch reads this at start, also in processes that tests start. It is not imported here: most layers are tested without it.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# A shell makes its background jobs ignore this signal, and the processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def tiny() -> NDArray[np.uint8]:
    """Return noise ``(5, 11, 13) uint8``. No axis is a multiple of another, and none is a power of two."""
    return np.random.default_rng(7).integers(0, 255, (5, 11, 13)).astype(np.uint8)
