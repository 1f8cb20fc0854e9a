"""A preload of Dask's workers: each prediction takes `EMSEG_TEST_PAUSE` seconds longer, and stays what it is."""

from __future__ import annotations

import os
import time

import numpy as np
from numpy.typing import NDArray

from emseg.model.predictor import TorchPredictor

_predict = TorchPredictor.predict


def _slow(self: TorchPredictor, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    time.sleep(len(tiles) * float(os.environ["EMSEG_TEST_PAUSE"]))
    return _predict(self, tiles)


TorchPredictor.predict = _slow  # type: ignore[method-assign]
