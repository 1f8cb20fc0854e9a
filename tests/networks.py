"""Small real networks, and one pass of them over a whole volume: the truth for tiled results.

This module can be imported without torch; tests that make a network are then skipped.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from oracles import mirror

from emseg_core.box import Box, triple
from emseg_core.grid.stitch import softmax
from emseg_core.specs.model import ModelSpec

if TYPE_CHECKING:
    import torch

    from emseg_core.model.predictor import TorchPredictor
    from emseg_core.model.unet import UNet


def random_network(spec: ModelSpec, seed: int = 0, dtype: torch.dtype | None = None) -> UNet:
    """Return a float64 network in evaluation mode, with weights and biases drawn from the seed and few dead units."""
    torch = pytest.importorskip("torch")
    from emseg_core.model.unet import UNet

    generator = torch.Generator().manual_seed(seed)
    network = UNet(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel())
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (2 / fan_in) ** 0.5 if parameter.ndim > 1 else drawn.abs())
    return network.to(dtype or torch.float64).eval()


def torch_predictor(network: UNet) -> TorchPredictor:
    """Return the predictor of a network, on one thread."""
    from emseg_core.model.predictor import TorchPredictor

    return TorchPredictor(network, threads=1)


def run(network: UNet, tile: NDArray[Any]) -> NDArray[Any]:
    """Return logits ``(class, z, y, x)`` of one tile ``(z, y, x)``, in the network's own type."""
    import torch

    with torch.inference_mode():
        source = torch.from_numpy(tile.copy()).to(next(network.parameters()).dtype)
        logits: NDArray[Any] = network(source[None, None])[0].numpy()
    return logits


def one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Return logits ``(class, z, y, x)`` of a whole volume ``(z, y, x)``: mirrored by NumPy, one tile, nothing stitched."""
    spec, shape = network.spec, triple(values.shape)
    source = Box.of_shape(spec.tile_for(shape)).relative_to(spec.context)
    logits = run(network, mirror(values, source))
    return logits[(slice(None), *Box.of_shape(shape).slices())]


def probabilities_in_one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities ``(class, z, y, x)`` of a whole volume, computed as in `one_pass`."""
    return softmax(one_pass(network, values))


def mean_in_one_pass(network: UNet, values: NDArray[Any]) -> NDArray[Any]:
    """Return mean probabilities ``(class, z, y, x)`` of a whole volume over its turns and flips: one tile, nothing stitched."""
    spec, shape = network.spec, triple(values.shape)
    whole = mirror(values, Box.of_shape(spec.tile_for(shape)).relative_to(spec.context))
    found = []
    for swapped, axes in itertools.product((False, True), ((), (-2,), (-1,), (-2, -1))):
        logits = np.flip(run(network, np.flip(whole.swapaxes(-2, -1) if swapped else whole, axes)), axes)
        found.append(softmax(logits.swapaxes(-2, -1) if swapped else logits))
    mean: NDArray[Any] = np.mean(found, axis=0)
    return mean[(slice(None), *Box.of_shape(shape).slices())]
