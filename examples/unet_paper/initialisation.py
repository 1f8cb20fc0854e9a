"""Section 3: check the He initialisation of each layer of the paper's network.

python -m unet_paper.initialisation
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from emseg_core.model.unet import UNet
from unet_paper.drawing import table
from unet_paper.network import PAPER


@dataclass(frozen=True)
class Layer:
    """Statistics of the initial weights of one layer."""

    name: str
    terms: int
    """N: the number of terms summed for one output voxel."""
    weights: int
    """Number of weights."""
    deviation: float
    """Standard deviation of the weights, about zero."""

    @property
    def expected(self) -> float:
        """``sqrt(2 / N)``."""
        return float((2 / self.terms) ** 0.5)

    @property
    def errors(self) -> float:
        """Difference between the deviation and its expected value, in standard errors."""
        return (self.deviation / self.expected - 1) * float((2 * self.weights) ** 0.5)


def layers() -> list[Layer]:
    """Initialise the network and measure each layer with weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(PAPER)
    found = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = 1 if isinstance(module, nn.ConvTranspose2d) else module.kernel_size[0] * module.kernel_size[1]
            square = float(module.weight.detach().double().square().mean())
            found.append(Layer(name, module.in_channels * taps, module.weight.numel(), square**0.5))
    return found


def report() -> str:
    """Report the deviations beside those that the paper prescribes."""
    rows = (
        (layer.name, layer.terms, layer.weights, *(f"{value:.4f}" for value in (layer.expected, layer.deviation)))
        for layer in layers()
    )
    return table(("layer", "N", "weights", "sqrt(2 / N)", "drawn"), *rows)


if __name__ == "__main__":
    print(report())
