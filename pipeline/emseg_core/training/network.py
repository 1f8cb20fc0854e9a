"""Extend the network for training: an auxiliary head, which is dropped afterwards, and a moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec


class TrainingNetwork(nn.Module):
    """A U-Net with an auxiliary head that predicts affinities: which voxels lie in the same segment.

    Parameters
    ----------
    spec
        The network.
    affinities
        Number of affinities per voxel; 0 leaves out the auxiliary head.
    """

    def __init__(self, spec: ModelSpec, affinities: int) -> None:
        super().__init__()
        self.network = UNet(spec)
        convolution = nn.Conv2d if spec.planar else nn.Conv3d
        self.affinities = convolution(spec.width, affinities, 1) if affinities else None

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the logits of classes and affinities.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(n, channels, z, y, x)``.

        Returns
        -------
        logits : Tensor
            Logits of the classes, ``(n, classes, z', y', x')``.
        affinities : Tensor or None
            Logits of the affinities, ``(n, offsets, z', y', x')``; None without the auxiliary head.
        """
        heads = [self.network.head] + ([self.affinities] if self.affinities is not None else [])
        logits, *others = self.network.forward_heads(tiles, heads)
        return logits, others[0] if others else None


class MovingAverage:
    """Exponential moving average of a network's weights over training steps; it spans fewer steps at the start.

    Parameters
    ----------
    network
        The network being trained.
    decay
        Weight of the previous average at each step; with 0 the average is the latest weights.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._network = network
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        """Averaged parameters by name."""

    def update(self, step: int) -> None:
        """Update the average with the weights after `step` steps.

        Parameters
        ----------
        step
            Number of steps so far.
        """
        decay = min(self._decay, step / (step + 10))
        with torch.no_grad():
            for name, value in self._network.state_dict().items():
                self.weights[name].lerp_(value, 1 - decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Set the average to weights from a checkpoint.

        Parameters
        ----------
        weights
            Tensors by the name of the parameter.
        """
        for name, value in self.weights.items():
            value.copy_(weights[name])

    def network(self, spec: ModelSpec) -> UNet:
        """Build a network with the averaged weights.

        Parameters
        ----------
        spec
            The network.

        Returns
        -------
        UNet
            The network in evaluation mode, on the device of the weights.
        """
        network = UNet(spec).to(next(iter(self.weights.values())).device)
        network.load_state_dict(self.weights)
        return network.eval()
