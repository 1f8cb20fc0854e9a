"""Adapt external networks to the output of emseg's own: the channels of each head, for voxels with full context only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emseg_core.specs.contract import Contract, FrozenNorm
from emseg_core.specs.heads import Head
from emseg_core.specs.inputs import GREY, Inputs
from emseg_core.specs.numerics import Precision

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Prepared(nn.Module):
    """Wrapper that rescales and limits the input of a network, as far as a mean and a deviation cannot.

    Parameters
    ----------
    network
        The network.
    rescale
        A factor, and what is added.
    clip
        Lowest and highest value.
    """

    def __init__(self, network: Any, rescale: Sequence[float] | None, clip: Sequence[float] | None) -> None:
        super().__init__()
        self.network, self._rescale, self._clip = network, rescale, clip

    def forward(self, tiles: Tensor) -> Tensor:
        """Run the network.

        Parameters
        ----------
        tiles
            Normalised grey values.

        Returns
        -------
        Tensor
            Output of the network.
        """
        output: Tensor = self.network(prepare(tiles, self._rescale, self._clip))
        return output

    def trace(self, shape: tuple[int, ...]) -> Any:
        """Follow how elements lie over an input; see the wrapped network."""
        return self.network.trace(shape)

    def norms(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """List the normalisations over space that can be frozen; see the wrapped network."""
        numbers: tuple[int, ...] = self.network.norms(shape)
        return numbers

    def statistics(self, tile: Tensor, numbers: Sequence[int], norms: Sequence[FrozenNorm]) -> list[FrozenNorm]:
        """Measure what normalisations would use for one tile; see the wrapped network."""
        found: list[FrozenNorm] = self.network.statistics(prepare(tile, self._rescale, self._clip), numbers, norms)
        return found

    def cost(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Estimate the cost of an input; see the wrapped network.

        Parameters
        ----------
        shape
            Shape of the input, batch and channels included.

        Returns
        -------
        tuple of int
            Floating-point operations, and most bytes of intermediate results.
        """
        cost: tuple[int, int] = self.network.cost(shape)
        return cost


def prepare(tiles: Tensor, rescale: Sequence[float] | None, clip: Sequence[float] | None) -> Tensor:
    """Rescale and limit the input of a network.

    Parameters
    ----------
    tiles
        Normalised grey values.
    rescale
        A factor, and what is added.
    clip
        Lowest and highest value.

    Returns
    -------
    Tensor
        What the network takes; the tiles themselves if there is nothing to do.
    """
    if rescale is not None:
        tiles = tiles * rescale[0] + rescale[1]
    return tiles if clip is None else tiles.clamp(*clip)


class AdaptedNetwork(nn.Module):
    """Wrapper that lets a network be used like a `emseg_core.model.unet.UNet`.

    Parameters
    ----------
    network
        The network, called as `apply_network` says.
    spec
        How it behaves.
    precision
        Type in which it multiplies and convolves. What needs the range or the digits of float32, such as norms, keeps it, as
        does whatever the network converts to float32 by itself.
    """

    def __init__(self, network: nn.Module, spec: Contract, precision: Precision = "float32") -> None:
        super().__init__()
        self.network, self.spec, self.precision = network, spec, precision

    def forward(self, tiles: Tensor) -> Tensor:
        """Compute the channels of all heads of tiles.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(n, 1, z, y, x)``.

        Returns
        -------
        Tensor
            Channels of all heads, ``(n, channels, z', y', x')``.
        """
        with torch.autocast(tiles.device.type, DTYPES[self.precision], enabled=self.precision != "float32"):
            output = apply_network(self.network, tiles, planar=self.spec.planar, inputs=self.spec.inputs)
        return to_prediction(output.to(torch.promote_types(output.dtype, torch.float32)), self.spec)


def with_channels(tiles: Tensor) -> Tensor:
    """Return tiles ``(n, channels, z, y, x)``.

    Parameters
    ----------
    tiles
        Tiles with channels, or ``(n, z, y, x)``.

    Returns
    -------
    Tensor
        Tiles with an axis for channels.
    """
    return tiles if tiles.dim() == 5 else tiles[:, None]


def apply_network(network: Callable[[Tensor], Tensor], tiles: Tensor, *, planar: bool, inputs: Inputs = GREY) -> Tensor:
    """Run a network on tiles one by one, since a program may have been exported for batches of one.

    Parameters
    ----------
    network
        The network, called with ``(1, channels, z, y, x)``; or with ``(1, channels, y, x)`` if it is planar or takes slices.
    tiles
        Normalised grey values, ``(n, 1, z, y, x)``, or ``(n, channels, z, y, x)`` of several channels of a volume.
    planar
        Whether the network is applied slice by slice.
    inputs
        What its channels are.

    Returns
    -------
    Tensor
        Output of the network, ``(n, channels, z', y', x')``.
    """
    if inputs.kind == "slices":
        return torch.stack([_slice_by_slice(_neighbours(tile, inputs), network) for tile in tiles])
    tiles = tiles.expand(-1, inputs.count, -1, -1, -1)
    if planar:
        return torch.stack([_slice_by_slice((part[None] for part in tile.unbind(1)), network) for tile in tiles])
    return torch.cat([network(tile[None]) for tile in tiles])


def _neighbours(tile: Tensor, inputs: Inputs) -> Iterator[Tensor]:
    """Yield the input for each slice of a tile ``(1, z, y, x)`` that has neighbours on both sides."""
    for start in range(tile.shape[1] - inputs.count + 1):
        part = tile[:, start : start + inputs.count]
        yield part[None] if inputs.stacked else part


def _slice_by_slice(parts: Iterable[Tensor], network: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the outputs of a network for slices, ``(channels, z, y', x')``."""
    return torch.cat([network(part) for part in parts]).transpose(0, 1)


def to_prediction(output: Tensor, spec: Contract) -> Tensor:
    """Crop the output of a network, and convert each head to logits, probabilities or values.

    Parameters
    ----------
    output
        Output of the network, ``(n, channels, z', y', x')``.
    spec
        Its crop and its heads.

    Returns
    -------
    Tensor
        Channels of all heads, ``(n, channels, z', y', x')``, where z', y' and x' are smaller by twice the crop: logits of
        classes that exclude one another, probabilities of independent classes and affinities, and values.
    """
    z, y, x = (slice(c, length - c) for c, length in zip(spec.crop, output.shape[2:], strict=True))
    output = output[..., z, y, x]
    parts = [_of_head(output if head.source is None else output[:, list(head.source)], head) for head in spec.heads]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _of_head(output: Tensor, head: Head) -> Tensor:
    """Convert the channels of a head."""
    if head.kind != "classes":
        return output.sigmoid() if head.activation == "sigmoid logits" else output
    tiny = torch.finfo(torch.float32).tiny
    match head.activation:
        case "softmax":
            return output.clamp_min(tiny).log()
        case "sigmoid":
            return torch.cat([1 - output, output], 1).clamp_min(tiny).log()
        case "sigmoid logits":
            return torch.cat([torch.zeros_like(output), output], 1)
    return output
