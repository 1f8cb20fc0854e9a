"""The network as it is trained: with a second head, which is left behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec


class Trainee(nn.Module):
    """A U-Net whose last features also say, while it learns, which voxels lie in one segment."""

    def __init__(self, spec: ModelSpec, affinities: int) -> None:
        super().__init__()
        self.network = UNet(spec)
        convolution = nn.Conv2d if spec.planar else nn.Conv3d
        self.affinities = convolution(spec.width, affinities, 1) if affinities else None

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(n, classes, z', y', x')`` and those of the affinities ``(n, offsets, z', y', x')``, if there are any."""
        heads = [self.network.head] + ([self.affinities] if self.affinities is not None else [])
        logits, *others = self.network.through(tiles, heads)
        return logits, others[0] if others else None


class Average:
    """The moving mean of a network's weights over the steps of its training; early on, that of fewer steps."""

    def __init__(self, network: nn.Module, share: float) -> None:
        self._share = share
        self._network = network
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        """The mean, by the names of the network's parameters."""

    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        share = min(self._share, step / (step + 10))
        with torch.no_grad():
            for name, value in self._network.state_dict().items():
                self.weights[name].lerp_(value, 1 - share)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take the mean from a checkpoint."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    def network(self, spec: ModelSpec) -> UNet:
        """A network with the mean weights, in evaluation mode, on their device."""
        network = UNet(spec).to(next(iter(self.weights.values())).device)
        network.load_state_dict(self.weights)
        return network.eval()
