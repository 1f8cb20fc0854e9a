"""Preload module of Dask workers: each prediction takes `EMSEG_TEST_PAUSE` seconds longer, with the same result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.model.openvino_predictor import OpenVinoPredictor
from emseg_core.model.predictor import TorchPredictor


def slow(predict: Callable[..., NDArray[np.float32]]) -> Callable[..., NDArray[np.float32]]:
    """Delay a function that predicts."""

    def slow(self: Any, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(len(tiles) * float(os.environ["EMSEG_TEST_PAUSE"]))
        return predict(self, tiles)

    return slow


for kind in (TorchPredictor, OpenVinoPredictor):
    if kind.predict.__name__ != "slow":  # a worker loads its preloads twice
        kind.predict = slow(kind.predict)  # type: ignore[method-assign]
