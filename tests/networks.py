"""Small real networks, and one pass of them over a whole volume: the truth that tiling must give."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracles import mirror
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emseg_core.box import Box, Triple, triple
from emseg_core.grid.stitch import softmax
from emseg_core.model.predictor import TorchPredictor
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec


def random_network(spec: ModelSpec, seed: int = 0, dtype: torch.dtype = torch.float64) -> UNet:
    """A network with all weights and biases drawn from the seed, few of its units dead, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    network = UNet(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel())
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (2 / fan_in) ** 0.5 if parameter.ndim > 1 else drawn.abs())
    return network.to(dtype).eval()


def run(network: UNet, tile: NDArray[Any]) -> NDArray[Any]:
    """Logits ``(class, z, y, x)`` of one tile ``(z, y, x)``, in the network's own type."""
    with torch.inference_mode():
        source = torch.from_numpy(tile.copy()).to(next(network.parameters()).dtype)
        logits: NDArray[Any] = network(source[None, None])[0].numpy()
    return logits


def one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Logits ``(class, z, y, x)`` of a whole volume ``(z, y, x)``: mirrored by NumPy, one tile, nothing stitched."""
    spec, shape = network.spec, triple(values.shape)
    source = Box.of_shape(spec.tile_for(shape)).relative_to(spec.context)
    logits = run(network, mirror(values, source))
    return logits[(slice(None), *Box.of_shape(shape).slices())]


def probabilities_in_one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Probabilities ``(class, z, y, x)`` of a whole volume, as `one_pass`."""
    return softmax(one_pass(network, values))


def mean_in_one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Mean probabilities ``(class, z, y, x)`` of a whole volume over its turns and flips: one tile, nothing stitched."""
    spec, shape = network.spec, triple(values.shape)
    whole = mirror(values, Box.of_shape(spec.tile_for(shape)).relative_to(spec.context))
    found = []
    for swapped, axes in itertools.product((False, True), ((), (-2,), (-1,), (-2, -1))):
        logits = np.flip(run(network, np.flip(whole.swapaxes(-2, -1) if swapped else whole, axes)), axes)
        found.append(softmax(logits.swapaxes(-2, -1) if swapped else logits))
    mean: NDArray[Any] = np.mean(found, axis=0)
    return mean[(slice(None), *Box.of_shape(shape).slices())]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Most bytes of tensors alive at once inside the ``with``, those of the tensors that come in included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, split into those that it is made of, and count the storages that it takes and makes."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            self._count(tensor)
        with self:
            made = func.decompose(*args, **kwargs)
        if made is NotImplemented:
            made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            self._count(tensor)
        return made

    def _count(self, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, torch.nn.Parameter):
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


def live_bytes(network: UNet, tile: Triple) -> int:
    """Most bytes of tensors alive at once while a predictor takes one tile, by watching it."""
    predictor, zeros = TorchPredictor(network, threads=1), np.zeros((1, *tile), np.float32)
    watch = LiveBytes()
    with watch:
        predictor.predict(zeros)
    return watch.peak
