"""Freeze the normalisations of an ONNX graph, as OpenVINO reads it; see `emseg_core.model.frozen_norms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as opset
from numpy.typing import NDArray

from emseg_core.model.onnx_graph import NORMALISATIONS, normalised_over_space
from emseg_core.specs.contract import FrozenNorm


def freezable(model: openvino.Model, shape: Sequence[int]) -> tuple[int, ...]:
    """List the normalisations over space that can be frozen.

    Parameters
    ----------
    model
        The graph, reshaped for this input.
    shape
        Shape of the input, batch and channels included.

    Returns
    -------
    tuple of int
        Their numbers among all normalisations of the graph.
    """
    over_space = normalised_over_space(model, shape)
    return tuple(
        number
        for number, node in enumerate(_normalisations(model))
        if node.get_friendly_name() in over_space and _can_freeze(node, over_space[node.get_friendly_name()])
    )


def freeze(model: openvino.Model, norms: Sequence[FrozenNorm]) -> None:
    """Replace normalisations of a graph by a product and a sum with constants.

    Parameters
    ----------
    model
        The graph, which is changed.
    norms
        The statistics to use.

    Raises
    ------
    ValueError
        If the statistics are not those of the graph.
    """
    found = _normalisations(model)
    for norm in norms:
        node = found[norm.number]
        factor, offset = _constants(node, norm)
        scaled = opset.multiply(node.input_value(0), opset.constant(factor))
        node.output(0).replace(opset.add(scaled, opset.constant(offset)).output(0))
    model.validate_nodes_and_infer_types()


def measuring(model: openvino.Model, numbers: Sequence[int], norms: Sequence[FrozenNorm]) -> openvino.Model:
    """Build a graph whose outputs are mean and variance of what each normalisation normalises.

    Parameters
    ----------
    model
        The graph for one shape of its input, which is changed.
    numbers
        The normalisations to measure.
    norms
        Statistics that they use meanwhile; none for those of the tile.

    Returns
    -------
    openvino.Model
        The graph.
    """
    nodes = [_normalisations(model)[number] for number in numbers]
    freeze(model, norms)
    outputs = []
    for node in nodes:
        source = node.input_value(0)  # after what it comes from was frozen
        if node.get_type_name() == "GroupNormalization":
            groups = int(node.get_attributes()["num_groups"])
            source = opset.reshape(source, np.array([1, groups, -1], np.int64), special_zero=False).output(0)
            axes: Any = opset.constant(np.array([2], np.int64))
        else:
            axes = node.input_value(1)
        mean = opset.reduce_mean(source, axes, keep_dims=True)
        distance = opset.subtract(source, mean)
        outputs += [mean, opset.reduce_mean(opset.multiply(distance, distance), axes, keep_dims=True)]
    return openvino.Model(outputs, model.get_parameters())


def measured(model: openvino.Model, numbers: Sequence[int], results: Sequence[NDArray[np.float32]]) -> list[FrozenNorm]:
    """Return the statistics that a graph of `measuring` computed.

    Parameters
    ----------
    model
        The graph that is measured, for one shape of its input.
    numbers
        The normalisations that were measured.
    results
        What was computed: a mean and a variance of each.

    Returns
    -------
    list of FrozenNorm
        Mean and variance of each channel.
    """
    norms, found = [], _normalisations(model)
    for number, mean, variance in zip(numbers, results[::2], results[1::2], strict=True):
        node, parts = found[number], [np.ravel(mean), np.ravel(variance)]
        if node.get_type_name() == "GroupNormalization":
            channels = node.input_value(1).get_shape()[0]
            parts = [np.repeat(part, channels // len(part)) for part in parts]
        norms.append(FrozenNorm(number, tuple(parts[0].tolist()), tuple(parts[1].tolist())))
    return norms


def _normalisations(model: openvino.Model) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in NORMALISATIONS]


def _axes(node: Any) -> set[int]:
    rank = len(node.input_value(0).get_partial_shape())
    return {int(axis) % rank for axis in np.ravel(node.input_value(1).get_node().get_data())}


def _can_freeze(node: Any, spatial: set[int] | None) -> bool:
    """Return whether the statistics of a normalisation are one for each channel; None if axes are merged."""
    if node.get_type_name() == "GroupNormalization":
        return all(node.input_value(index).get_node().get_type_name() == "Constant" for index in (1, 2))
    attributes, shape = node.get_attributes(), tuple(node.input_value(0).get_shape())
    kept = [dim for dim in range(1, len(shape)) if dim not in _axes(node)]
    merged = spatial is None and len(shape) == 3 and _axes(node) == {2}
    whole = spatial is not None and spatial <= _axes(node)
    return bool(attributes["normalize_variance"]) and shape[0] == 1 and len(kept) <= 1 and (merged or whole)


def _constants(node: Any, norm: FrozenNorm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the factor and the offset of a normalisation with these statistics, in a shape that fits its input.

    Raises
    ------
    ValueError
        If the statistics are not those of this normalisation.
    """
    mean, variance = np.array(norm.mean), np.array(norm.variance)
    attributes, partial = node.get_attributes(), node.input_value(0).get_partial_shape()
    shape = [1] * len(partial)
    if node.get_type_name() == "GroupNormalization":
        weight, bias = (np.ravel(node.input_value(index).get_node().get_data()).astype(np.float64) for index in (1, 2))
        if weight.shape != mean.shape:
            raise ValueError(f"normalisation {norm.number} has other channels than its frozen statistics")
        factor = weight / np.sqrt(variance + attributes["epsilon"])
        shape[1] = -1
        return factor.astype(np.float32).reshape(shape), (bias - mean * factor).astype(np.float32).reshape(shape)
    outside = str(attributes["eps_mode"]).upper() == "OUTSIDE_SQRT"
    eps = attributes["eps"]
    factor = 1 / (np.sqrt(variance) + eps if outside else np.sqrt(variance + eps))
    kept = [dim for dim in range(1, len(partial)) if dim not in _axes(node)]
    if kept:
        shape[kept[0]] = -1
    return factor.astype(np.float32).reshape(shape), (-mean * factor).astype(np.float32).reshape(shape)
