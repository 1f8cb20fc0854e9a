"""Section 3: He initialisation, checked on each layer of the paper's network.

python -m unet_paper.initialisation
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from emseg.model.unet import UNet
from unet_paper.drawing import table
from unet_paper.network import PAPER


@dataclass(frozen=True)
class Drawn:
    """The weights of one layer."""

    name: str
    terms: int
    """N: the numbers that one output voxel adds up."""
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
        """How many standard errors the deviation is away from what is expected."""
        return (self.deviation / self.expected - 1) * float((2 * self.weights) ** 0.5)


def layers() -> list[Drawn]:
    """Each layer with weights, as drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(PAPER)
    found = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            taps = 1 if isinstance(module, nn.ConvTranspose2d) else module.kernel_size[0] * module.kernel_size[1]
            square = float(module.weight.detach().double().square().mean())
            found.append(Drawn(name, module.in_channels * taps, module.weight.numel(), square**0.5))
    return found


def told() -> str:
    """Deviations beside those that the paper asks for."""
    rows = (
        (layer.name, layer.terms, layer.weights, *(f"{value:.4f}" for value in (layer.expected, layer.deviation)))
        for layer in layers()
    )
    return table(("layer", "N", "weights", "sqrt(2 / N)", "drawn"), *rows)


if __name__ == "__main__":
    print(told())
