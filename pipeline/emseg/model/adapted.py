"""Networks that were not trained here, made to give what emseg's own give: logits of each class, of voxels with all context."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from emseg.specs.contract import Contract


class AdaptedNetwork(nn.Module):
    """A network behind its contract, in the place of a `emseg.model.unet.UNet`."""

    def __init__(self, network: nn.Module, spec: Contract) -> None:
        super().__init__()
        self.network, self.spec = network, spec

    def forward(self, tiles: Tensor) -> Tensor:
        """Logits ``(n, classes, z', y', x')`` of tiles ``(n, 1, z, y, x)``."""
        return logits_of(through(self.network, tiles, planar=self.spec.planar), self.spec)


def through(network: Callable[[Tensor], Tensor], tiles: Tensor, *, planar: bool) -> Tensor:
    """What a network gives, ``(n, channels, z', y', x')``, for tiles ``(n, 1, z, y, x)``; of a planar one slice by slice.

    One at a time: a program may have been exported for batches of one.
    """
    if planar:
        return torch.stack([torch.cat([network(part[None]) for part in tile.unbind(1)]).transpose(0, 1) for tile in tiles])
    return torch.cat([network(tile[None]) for tile in tiles])


def logits_of(given: Tensor, spec: Contract) -> Tensor:
    """Logits ``(n, classes, z', y', x')`` of what a network gives, ``(n, channels, z', y', x')``, less its crop."""
    z, y, x = (slice(c, length - c) for c, length in zip(spec.crop, given.shape[2:], strict=True))
    given = given[..., z, y, x]
    if spec.channel is not None:
        given = given[:, spec.channel : spec.channel + 1]
    tiny = torch.finfo(torch.float32).tiny
    match spec.activation:
        case "softmax":
            return given.clamp_min(tiny).log()
        case "sigmoid":
            return torch.cat([1 - given, given], 1).clamp_min(tiny).log()
        case "sigmoid logits":
            return torch.cat([torch.zeros_like(given), given], 1)
    return given
