"""Run ONNX networks with OpenVINO on CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import openvino
import openvino.opset13 as opset
import torch
from numpy.typing import NDArray
from torch import Tensor

from emseg_core.errors import ModelError
from emseg_core.model.adapter import apply_network, prepare, to_prediction, with_channels
from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.compiled import CORE, OPENVINO, CompiledGraph, translate_memory_errors
from emseg_core.model.cpu import vector_instructions
from emseg_core.model.onnx_graph import trace_graph
from emseg_core.model.onnx_norms import freezable, freeze, measured, measuring
from emseg_core.model.receptive_arithmetic import Trace
from emseg_core.specs.contract import Contract, FrozenNorm
from emseg_core.specs.model import FLOAT32_BYTES
from emseg_core.specs.numerics import Precision


class OnnxNetwork:
    """An ONNX graph with one input, compiled for each input shape when it first occurs.

    Parameters
    ----------
    data
        The ONNX file.
    path
        Its path, for messages.
    threads
        Number of threads that run it.
    outputs
        Indices of the outputs to use, whose channels are joined in this order.
    rescale, clip
        What is done to the input first; see `emseg_core.model.adapter.prepare`.
    precision
        Type of the activations.
    norms
        Statistics of normalisations over space; see `emseg_core.model.frozen_norms`.

    Raises
    ------
    ModelError
        If the file is damaged, or has operations that OpenVINO does not know.
    """

    def __init__(
        self,
        data: bytes,
        path: str,
        threads: int,
        outputs: Sequence[int] = (0,),
        rescale: Sequence[float] | None = None,
        clip: Sequence[float] | None = None,
        precision: Precision = "float32",
        norms: Sequence[FrozenNorm] = (),
    ) -> None:
        self._norms, self._threads = norms, threads
        self._data, self._path, self._outputs, self._prepared = data, path, outputs, (rescale, clip)
        self._compiled = CompiledGraph(self._shaped, threads, precision)
        self._measuring: tuple[tuple[tuple[int, ...], tuple[FrozenNorm, ...]], CompiledGraph] | None = None
        model = self._model()
        if len(model.inputs) != 1:
            raise ModelError(f"{path} has {len(model.inputs)} inputs, but an image is 1 input: export it with 1 input")
        dimensions = model.inputs[0].get_partial_shape()
        if dimensions.rank.is_dynamic or len(dimensions) not in (4, 5):
            raise ModelError(
                f"the input of {path} has shape {dimensions}: export it with an input (n, channels, y, x) or "
                "(n, channels, z, y, x)"
            )
        self.shape: tuple[int | None, ...] = tuple(None if d.is_dynamic else d.get_length() for d in dimensions)
        """Shape of the input; None for axes of any length."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Run the network.

        Parameters
        ----------
        tiles
            One tile, ``(1, 1, y, x)`` or ``(1, 1, z, y, x)`` float32.

        Returns
        -------
        Tensor
            Output of the network, float32 with as many axes.
        """
        ready = np.ascontiguousarray(prepare(tiles, *self._prepared).numpy())
        output = self._compiled.request(tiles.shape).infer([ready])[0]
        return torch.from_numpy(output.astype(np.float32))

    def cost(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Estimate the cost of an input from the graph, without running it.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        flops : int
            Floating-point operations of all convolutions.
        peak : int
            Most bytes of intermediate results alive at once.
        """
        flops = peak = alive = 0
        nodes = self._shaped(shape).get_ordered_ops()
        left = {}
        for node in nodes:
            sizes = [math.prod(output.get_shape()) for output in node.outputs()]
            constant = node.get_type_name() in ("Constant", "Result")
            if node.get_type_name() in ("Convolution", "ConvolutionBackpropData", "GroupConvolution"):
                kernel = node.input_value(1).get_shape()
                places = node.input_value(0).get_shape() if "Backprop" in node.get_type_name() else node.output(0).get_shape()
                flops += 2 * math.prod(kernel) * math.prod(places[2:])
            uses = sum(len(output.get_target_inputs()) for output in node.outputs())
            left[node.get_friendly_name()] = [uses, 0 if constant else FLOAT32_BYTES * sum(sizes)]
            alive += left[node.get_friendly_name()][1]
            peak = max(peak, alive)
            for value in node.input_values():
                entry = left[value.get_node().get_friendly_name()]
                entry[0] -= 1
                alive -= entry[1] if entry[0] == 0 else 0
        return flops, peak

    def trace(self, shape: tuple[int, ...]) -> Trace:
        """Follow how the elements of all values lie over an input, without running the graph.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        Trace
            What arithmetic says about the graph. Any exception is raised if it does not accept such an input.
        """
        return trace_graph(self._shaped(shape), shape)

    def norms(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """List the normalisations over space that can be frozen.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        tuple of int
            Their numbers among all normalisations of the graph.
        """
        return freezable(self._shaped(shape), shape)

    def statistics(self, tile: Tensor, numbers: Sequence[int], norms: Sequence[FrozenNorm]) -> list[FrozenNorm]:
        """Measure what normalisations would use for one tile.

        Parameters
        ----------
        tile
            The input.
        numbers
            The normalisations to measure.
        norms
            Statistics that they use meanwhile; none for those of the tile.

        Returns
        -------
        list of FrozenNorm
            Mean and variance of the tile.
        """
        case = tuple(numbers), tuple(norms)
        if self._measuring is None or self._measuring[0] != case:
            graph = CompiledGraph(lambda shape: measuring(self._shaped(shape), numbers, norms), self._threads, "float32")
            self._measuring = case, graph
        ready = np.ascontiguousarray(prepare(tile, *self._prepared).numpy())
        found = self._measuring[1].request(tile.shape).infer([ready])
        results = [np.array(found[index]) for index in range(2 * len(numbers))]
        return measured(self._shaped(tuple(tile.shape)), numbers, results)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        constants = (node for node in self._model().get_ops() if node.get_type_name() == "Constant")
        return sum(math.prod(node.output(0).get_shape()) for node in constants if node.get_element_type().is_real())

    def _model(self) -> openvino.Model:
        """Parse the graph, and leave only the outputs that are used, joined to one."""
        try:
            model = CORE.read_model(self._data)  # it names no other file, see `onnx_file`
            if len(model.outputs) == 1:
                return model
            used = [model.outputs[number].get_node().input_value(0) for number in self._outputs]
            joined = used[0] if len(used) == 1 else opset.concat(used, 1).output(0)
            return openvino.Model([joined], model.get_parameters())
        except RuntimeError as error:
            said = " ".join(str(error).split())[-300:]
            raise ModelError(f"OpenVINO cannot read {self._path} ({said}): export it with standard operations") from error

    def _shaped(self, shape: tuple[int, ...]) -> openvino.Model:
        """Build the graph for an input shape."""
        model = self._model()
        model.reshape(list(shape))
        freeze(model, self._norms)
        return model


class OnnxPredictor(BasePredictor):
    """Predictor that runs an ONNX network on the CPU.

    Parameters
    ----------
    network
        The network.
    spec
        How it behaves.
    threads
        Number of threads that run it.
    precision
        Type of the activations, which the network was opened with.
    """

    def __init__(self, network: OnnxNetwork, spec: Contract, threads: int, precision: Precision = "float32") -> None:
        super().__init__(OPENVINO, vector_instructions(), precision, threads)
        self.spec: Contract = spec
        self._network = network

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the channels of all heads; see `emseg_core.model.base_predictor.BasePredictor.predict`."""
        with translate_memory_errors():
            source = with_channels(torch.from_numpy(tiles))
            output = apply_network(self._network, source, planar=self.spec.planar, inputs=self.spec.inputs)
        prediction: NDArray[np.float32] = to_prediction(output, self.spec).numpy()
        return prediction
