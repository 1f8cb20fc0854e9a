"""A preload of Dask's workers: each prediction takes `EMSEG_TEST_PAUSE` seconds longer, and stays what it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emseg.model.predictor import TorchPredictor

Predict = Callable[[TorchPredictor, NDArray[np.float32]], NDArray[np.float32]]


def slow(predict: Predict) -> Predict:
    """Predictions that take longer."""

    def slow(self: TorchPredictor, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(len(tiles) * float(os.environ["EMSEG_TEST_PAUSE"]))
        return predict(self, tiles)

    return slow


if TorchPredictor.predict.__name__ != "slow":  # a worker loads its preloads twice
    TorchPredictor.predict = slow(TorchPredictor.predict)  # type: ignore[method-assign]
