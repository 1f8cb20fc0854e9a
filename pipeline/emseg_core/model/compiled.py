"""Compile and cache OpenVINO graphs, for the predictors that use OpenVINO."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import openvino

from emseg_core.errors import MemoryShortageError
from emseg_core.specs.numerics import Precision

OPENVINO = f"openvino {version('openvino')}"
"""Name and version of the library."""
CORE = openvino.Core()
"""The one core of this process.

The CPU plugin of a core gives the thread that first uses it a stack for signal handlers, and frees it at its end. Where two
plugins come and go in turn, the thread is left with a stack that is freed, and the next signal, such as Ctrl-C, crashes it.
"""
PRECISION_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
MAX_COMPILED_SHAPES = 3
"""Number of tile shapes for which a compiled graph is kept: one for a run, or two if it transposes tiles, and one for the
numerical fingerprint (`emseg_core.canary`)."""


class CompiledGraph:
    """A graph on the CPU, compiled for each input shape when it first occurs.

    Parameters
    ----------
    graph_for
        Function that builds the graph for an input shape.
    threads
        Number of threads that run it.
    precision
        Type of the activations.
    """

    def __init__(self, graph_for: Callable[[tuple[int, ...]], openvino.Model], threads: int, precision: Precision) -> None:
        self._graph_for, self._threads, self._precision = graph_for, threads, precision
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def request(self, shape: tuple[int, ...]) -> Any:
        """Return the inference request for inputs of a shape, compiling the graph if needed.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        openvino.InferRequest
            The request, whose ``infer`` runs the graph.
        """
        if shape not in self._requests:
            while len(self._requests) >= MAX_COMPILED_SHAPES:
                self._requests.popitem(last=False)
            config = {
                "INFERENCE_PRECISION_HINT": PRECISION_HINTS[self._precision],
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # otherwise all workers of a machine would run on the same cores
            }
            compiled = CORE.compile_model(self._graph_for(shape), "CPU", config)
            self._requests[shape] = compiled.create_infer_request()
        self._requests.move_to_end(shape)
        return self._requests[shape]


@contextmanager
def translate_memory_errors() -> Iterator[None]:
    """Raise a `MemoryShortageError` in place of what OpenVINO raises in the ``with`` block when memory runs out.

    Yields
    ------
    None
        While errors are translated.

    Raises
    ------
    MemoryShortageError
        If OpenVINO runs out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            raise MemoryShortageError("out of memory") from error
        raise
