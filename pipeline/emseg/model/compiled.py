"""Graphs that OpenVINO has compiled: what its predictors share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openvino

from emseg.errors import MemoryShortageError
from emseg.specs.numerics import Precision

HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
SHAPES = 3
"""Shapes of tiles for which a graph is kept compiled: a run has one, or two if it turns tiles, and the canary its own."""


class Compiled:
    """A graph on the CPU, compiled for each shape of its input when that first comes."""

    def __init__(self, graph_for: Callable[[tuple[int, ...]], openvino.Model], threads: int, precision: Precision) -> None:
        self._graph_for, self._threads, self._precision = graph_for, threads, precision
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def request(self, shape: tuple[int, ...]) -> Any:
        """What computes inputs of this shape."""
        if shape not in self._requests:
            while len(self._requests) >= SHAPES:
                self._requests.popitem(last=False)
            config = {
                "INFERENCE_PRECISION_HINT": HINTS[self._precision],
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # else the workers of a machine would all compute on the same cores
            }
            compiled = openvino.Core().compile_model(self._graph_for(shape), "CPU", config)
            self._requests[shape] = compiled.create_infer_request()
        self._requests.move_to_end(shape)
        return self._requests[shape]


@contextmanager
def too_little_memory() -> Iterator[None]:
    """What OpenVINO raises within the ``with`` for want of memory, as a `MemoryShortageError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            raise MemoryShortageError("out of memory") from error
        raise
