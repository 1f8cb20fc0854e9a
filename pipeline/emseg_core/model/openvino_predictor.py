"""Run the U-Net in OpenVINO, which is faster than torch on CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.compiled import OPENVINO, CompiledGraph, translate_memory_errors
from emseg_core.model.cpu import vector_instructions
from emseg_core.model.file import ModelFile
from emseg_core.specs.heads import parts_of
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Precision

RECTIFIER_SLOPE = 1e-30
"""Slope of the rectifier below 0, far below the last bit of any sum. With a slope of 0, OpenVINO would turn NaN into 0 and so
hide that a network overflows; with this one NaN reaches the logits, as in torch, where it is detected."""


class OpenVinoPredictor(BasePredictor):
    """Predictor that runs a U-Net on the CPU, compiled for each tile shape when it first occurs.

    Parameters
    ----------
    model
        The network with its weights.
    threads
        Number of threads that run it.
    precision
        Type of the activations.
    """

    def __init__(self, model: ModelFile, threads: int, precision: Precision = "float32") -> None:
        super().__init__(OPENVINO, vector_instructions(), precision, threads)
        self.spec: ModelSpec = model.spec
        self._compiled = CompiledGraph(partial(build_graph, self.spec, model.weights), threads, precision)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the logits of tiles; see `emseg_core.model.base_predictor.BasePredictor.predict`."""
        n, z, *plane = tiles.shape
        with translate_memory_errors():
            source = np.ascontiguousarray(tiles, np.float32)
            source = source.reshape(n * z, 1, *plane) if self.spec.planar else source[:, None]
            logits: NDArray[np.float32] = self._compiled.request(source.shape).infer([source], share_inputs=True)[0]
        if self.spec.planar:
            logits = np.ascontiguousarray(logits.reshape(n, z, *logits.shape[1:]).swapaxes(1, 2))
        for head, part in parts_of(self.spec.heads):
            if head.activation == "sigmoid logits":
                logits[:, part] = _sigmoid(logits[:, part])
        return logits


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn logits into probabilities; NaN where a logit is not finite, since a sigmoid would hide that a network overflows."""
    with np.errstate(over="ignore"):  # exp may overflow to inf, which gives the correct 0
        shares = 1 / (1 + np.exp(-logits))
    probabilities: NDArray[np.float32] = np.where(np.isfinite(logits), shares, np.float32(np.nan))
    return probabilities


def build_graph(spec: ModelSpec, weights: Mapping[str, NDArray[np.float32]], shape: tuple[int, ...]) -> openvino.Model:
    """Build the graph of a `emseg_core.model.unet.UNet` for tiles of one shape.

    Parameters
    ----------
    spec
        The network.
    weights
        Parameters by their names in `emseg_core.model.unet.UNet`, as in a model file.
    shape
        Shape of the tiles, ``(n, channels, z, y, x)``, or ``(n, channels, y, x)`` if the network is planar.

    Returns
    -------
    openvino.Model
        The graph, whose output are logits ``(n, classes, z', y', x')``, or ``(n, classes, y', x')``.
    """
    axes = len(shape) - 2
    ones, zeros = [1] * axes, [0] * axes
    pooling = [list(factor[-axes:]) for factor in spec.pooling]

    def biased(x: openvino.Node, name: str) -> openvino.Node:
        return ops.add(x, ops.constant(weights[f"{name}.bias"].reshape(1, -1, *ones)))

    def convolved(x: openvino.Node, name: str) -> openvino.Node:
        return biased(ops.convolution(x, ops.constant(weights[f"{name}.weight"]), ones, zeros, zeros, ones), name)

    def rectified(x: openvino.Node) -> openvino.Node:
        return ops.prelu(x, ops.constant(np.array([RECTIFIER_SLOPE], np.float32)))

    source = ops.parameter(list(shape), np.float32)
    x, skips = source, []
    for level in range(spec.depth + 1):
        if level:
            skips.append(x)
            factor = pooling[level - 1]
            x = ops.max_pool(x, factor, ones, zeros, zeros, factor, "floor", "valid").output(0)
        for number in range(2):
            x = rectified(convolved(x, f"down.{level}.{number}"))
    for step, factor in enumerate(reversed(pooling)):
        kernel = ops.constant(weights[f"up.{step}.weight"])
        x = biased(ops.convolution_backprop_data(x, kernel, factor, pads_begin=zeros, pads_end=zeros), f"up.{step}")
        x = ops.concat([_cropped(skips.pop(), x), x], 1)
        for number in range(2):
            x = rectified(convolved(x, f"join.{step}.{number}"))
    return openvino.Model([convolved(x, "head")], [source])


def _cropped(skip: openvino.Node, like: openvino.Node) -> openvino.Node:
    """Crop `skip` to its centre, as large as `like`."""
    inner = list(like.get_output_shape(0))[2:]
    start = [(a - b) // 2 for a, b in zip(list(skip.get_output_shape(0))[2:], inner, strict=True)]
    stop = [a + b for a, b in zip(start, inner, strict=True)]
    numbers = (start, stop, [1] * len(inner), range(2, 2 + len(inner)))
    return ops.slice(skip, *(np.array(part, np.int64) for part in numbers))
