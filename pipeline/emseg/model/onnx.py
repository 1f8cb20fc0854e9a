"""Networks in ONNX, computed by OpenVINO on CPUs."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from emseg.box import Triple
from emseg.canary import canary_of
from emseg.errors import ModelError
from emseg.model.adapted import logits_of, through
from emseg.model.compiled import Compiled, too_little_memory
from emseg.specs.contract import Contract
from emseg.specs.numerics import Numerics

FLOAT32_BYTES = 4


class OnnxNetwork:
    """An ONNX graph of one input; it is compiled for each shape when that first comes.

    Raises
    ------
    ModelError
        If the file is damaged, has weights in other files, or operations that OpenVINO does not know.
    """

    def __init__(self, data: bytes, path: str, threads: int) -> None:
        self._data, self._path = data, path
        self._compiled = Compiled(self._shaped, threads, "float32")
        model = self._model()
        if len(model.inputs) != 1:
            raise ModelError(f"{path} has {len(model.inputs)} inputs, but a network of images has one: export it with one")
        dimensions = model.inputs[0].get_partial_shape()
        if dimensions.rank.is_dynamic or len(dimensions) not in (4, 5):
            raise ModelError(f"the input of {path} has shape {dimensions}, not (n, 1, y, x) or (n, 1, z, y, x)")
        self.shape: tuple[int | None, ...] = tuple(None if d.is_dynamic else d.get_length() for d in dimensions)
        """Of its input; None for axes of any length."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """What it gives for ``(1, 1, y, x)`` or ``(1, 1, z, y, x)``, float32."""
        given = self._compiled.request(tiles.shape).infer([np.ascontiguousarray(tiles.numpy())])[0]
        return torch.from_numpy(given.astype(np.float32))

    def cost(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Floating-point operations for an input of this shape, and bytes of results alive at once; nothing is computed."""
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

    @property
    def parameters(self) -> int:
        """Number of learnt numbers."""
        constants = (node for node in self._model().get_ops() if node.get_type_name() == "Constant")
        return sum(math.prod(node.output(0).get_shape()) for node in constants if node.get_element_type().is_real())

    def _model(self) -> openvino.Model:
        try:
            return openvino.Core().read_model(self._data)  # from memory: nothing that it names outside is opened
        except RuntimeError as error:
            said = " ".join(str(error).split())[-300:]
            raise ModelError(
                f"OpenVINO cannot read {self._path} ({said}): export it as one file, its weights inside, of standard operations"
            ) from error

    def _shaped(self, shape: tuple[int, ...]) -> openvino.Model:
        model = self._model()
        model.reshape(list(shape))
        return model


class OnnxPredictor:
    """Predicts with an ONNX network on the CPU, in float32."""

    def __init__(self, network: OnnxNetwork, spec: Contract, threads: int) -> None:
        self.spec = spec
        self._network, self._threads = network, threads

    def numerics(self, tile: Triple) -> Numerics:
        """What decides the last bits of predictions, for a run with tiles of this shape (z, y, x) in voxels."""
        hardware = torch.backends.cpu.get_cpu_capability()
        return Numerics(f"openvino {version('openvino')}", hardware, "float32", self._threads, canary_of(self, tile))

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``.

        Raises
        ------
        MemoryShortageError
            If there is too little memory.
        """
        with too_little_memory():
            given = through(self._network, torch.from_numpy(tiles)[:, None], planar=self.spec.planar)
        logits: NDArray[np.float32] = logits_of(given, self.spec).numpy()
        return logits
