"""The U-Net of Ronneberger, Fischer and Brox (MICCAI 2015, arXiv:1505.04597) in torch, for any `ModelSpec`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emseg_core.specs.model import ModelSpec


class UNet(nn.Module):
    """A U-Net of valid convolutions: ``(n, channels, z, y, x)`` in, logits ``(n, logits, z', y', x')`` out.

    A planar network (no kernel extends along z) runs as 2-D convolutions with z folded into the batch.

    The forward pass is written layer by layer, and each result replaces its source immediately, because
    `ModelSpec.activation_bytes` predicts the memory that is alive at once: a helper function with a parameter `x` would keep
    it alive.

    Parameters
    ----------
    spec
        The network.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        axes = slice(1, 3) if spec.planar else slice(0, 3)
        convolution: Any = nn.Conv2d if spec.planar else nn.Conv3d
        transposed: Any = nn.ConvTranspose2d if spec.planar else nn.ConvTranspose3d
        self._pool: Any = functional.max_pool2d if spec.planar else functional.max_pool3d
        pooling = [factor[axes] for factor in spec.pooling]
        self._pooling = pooling
        widths = [spec.width * 2**level for level in range(spec.depth + 1)]
        kernels = [kernel[axes] for kernel in spec.kernels]

        self.down = nn.ModuleList()
        channels = spec.channels
        for width, kernel in zip(widths, kernels, strict=True):
            self.down.append(nn.ModuleList([convolution(channels, width, kernel), convolution(width, width, kernel)]))
            channels = width
        self.up = nn.ModuleList()
        self.join = nn.ModuleList()
        for width, kernel, factor in list(zip(widths, kernels, pooling, strict=False))[::-1]:
            self.up.append(transposed(2 * width, width, factor, stride=factor))
            self.join.append(nn.ModuleList([convolution(2 * width, width, kernel), convolution(width, width, kernel)]))
        self.head = convolution(widths[0], spec.logits, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights after He et al. (arXiv:1502.01852): standard deviation sqrt(2 / N), biases zero.

        N is the number of terms summed for an output voxel; an up-convolution whose stride equals its kernel sums one tap per
        channel.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                terms = module.in_channels * math.prod(module.kernel_size)
            elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                terms = module.in_channels
            else:
                continue
            nn.init.normal_(module.weight, std=math.sqrt(2 / terms))
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tiles: Tensor) -> Tensor:
        """Compute the logits of tiles.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(n, channels, z, y, x)``.

        Returns
        -------
        Tensor
            Logits of all heads, ``(n, logits, z', y', x')``.
        """
        return self.forward_heads(tiles, [self.head])[0]

    def forward_heads(self, tiles: Tensor, heads: Sequence[nn.Module]) -> list[Tensor]:
        """Apply several last layers to the same features.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(n, channels, z, y, x)``.
        heads
            Layers that replace the last one.

        Returns
        -------
        list of Tensor
            Output of each layer, ``(n, outputs, z', y', x')``.
        """
        if not self.spec.planar:
            features = self._features(tiles)
            return [head(features) for head in heads]
        n, _, z, _, _ = tiles.shape
        features = self._features(tiles.transpose(1, 2).flatten(0, 1))
        return [made.reshape(n, z, *made.shape[1:]).transpose(1, 2) for made in (head(features) for head in heads)]

    def _features(self, x: Tensor) -> Tensor:
        """Compute the input of the last layer."""
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            if level:
                skips.append(x)
                x = self._pool(x, self._pooling[level - 1])
            for convolution in convolutions.children():
                x = functional.relu_(convolution(x))
            if level >= self.spec.depth - 1:  # at the end of the contracting path, as in the paper
                x = functional.dropout(x, self.spec.dropout, self.training)
        for up, convolutions in zip(self.up, self.join, strict=True):
            x = up(x)
            x = torch.cat([_crop(skips.pop(), x), x], dim=1)
            for convolution in convolutions.children():
                x = functional.relu_(convolution(x))
        return x


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    """Crop `skip` to its centre, as large as `like`; lengths always differ by an even number, since kernels are odd."""
    inner = [slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(skip.shape[2:], like.shape[2:], strict=True)]
    return skip[(slice(None), slice(None), *inner)]
