"""Give networks with several input channels what they take: neighbouring slices, or copies of the grey values.

A 2.5-D network is a 2-D network whose channels are 2 n + 1 neighbouring slices; its output belongs to the middle one. Applied
to each slice, it is a 3-D network that is valid along z: from z slices to z - 2 n::

    slices    0 1 2 3 4 5 6            0 1 2
    n = 1     [0 1 2][1 2 3] ...  ->     1 2 3 ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from emseg_core.box import Triple
from emseg_core.errors import ModelError
from emseg_core.model.receptive_arithmetic import Trace
from emseg_core.specs.contract import Contract

Source = Literal["slices", "copies"]
"""What the input channels of a network are: a slice and its neighbours, or the same grey values in each."""


class Channels(nn.Module):
    """Wrapper that lets a network with several input channels be used like one with a single channel.

    Parameters
    ----------
    network
        The network, called with ``(1, count, y, x)`` or ``(1, count, z, y, x)``; for slices along a third axis ``(1, 1, count,
        y, x)``.
    count
        Number of channels, or of slices.
    source
        What they are.
    deep
        Whether slices lie along a third axis.
    """

    def __init__(self, network: Any, count: int, source: Source, *, deep: bool = False) -> None:
        super().__init__()
        self.network, self.count, self.source, self.deep = network, count, source, deep

    def forward(self, tiles: Tensor) -> Tensor:
        """Run the network.

        Parameters
        ----------
        tiles
            Normalised grey values, ``(1, 1, y, x)`` or ``(1, 1, z, y, x)``; of slices always the latter.

        Returns
        -------
        Tensor
            Output of the network with as many axes; of slices ``(1, channels, z - count + 1, y', x')``.
        """
        if self.source == "copies":
            output: Tensor = self.network(tiles.expand(-1, self.count, *tiles.shape[2:]).contiguous())
            return output
        windows = tiles[0, 0].unfold(0, self.count, 1).movedim(-1, 1)
        return torch.stack([self._of_window(window) for window in windows.unbind()], 2)

    def sampled(self, tiles: Tensor) -> Tensor:
        """Run the network on slices that differ only by a factor, to experiment with it as with a 2-D network.

        Parameters
        ----------
        tiles
            Grey values of one slice, ``(1, 1, y, x)``.

        Returns
        -------
        Tensor
            Output of the network, ``(1, channels, y', x')``.
        """
        if self.source == "copies":
            return self.forward(tiles)
        factors = torch.linspace(0.5, 1.5, self.count)[:, None, None]  # opposite weights of two slices do not cancel
        return self._of_window(tiles[0] * factors)

    def _of_window(self, window: Tensor) -> Tensor:
        """Return the output ``(1, channels, y', x')`` for some slices ``(count, y, x)``."""
        output: Tensor = self.network(window.contiguous()[None, None] if self.deep else window.contiguous()[None])
        if output.dim() == 5 and output.shape[2] == 1:
            output = output[:, :, 0]
        if output.dim() != 4:
            raise ModelError(
                f"a network of {self.count} slices gives {output.shape[2]} of them, but its output belongs to the middle one: "
                'leave out input = "slices"'
            )
        return output

    def trace(self, shape: tuple[int, ...]) -> Trace:
        """Follow how elements lie over an input of one channel; see the wrapped network."""
        trace: Trace = self.network.trace(self._whole(shape))
        return trace

    def cost(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Estimate the cost of an input of one channel; see the wrapped network.

        Parameters
        ----------
        shape
            Shape of the input, batch and channel included.

        Returns
        -------
        tuple of int
            Floating-point operations, and most bytes of intermediate results.
        """
        cost: tuple[int, int] = self.network.cost(self._whole(shape))
        return cost

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that the network takes in place of one with a single channel."""
        return (1, 1, self.count, *shape[-2:]) if self.deep else (1, self.count, *shape[2:])


def channels_for(network: Any, shape: Sequence[int | None], source: str | None, path: str, place: str) -> Channels | None:
    """Wrap a network for its input channels, if it has several.

    Parameters
    ----------
    network
        The network.
    shape
        Shape of its input; None for axes of any length.
    source
        What its channels are told to be; None if that is not told.
    path
        Its path, for messages.
    place
        File in which it is told, for messages.

    Returns
    -------
    Channels or None
        The wrapped network; None if it takes one channel and nothing is told.

    Raises
    ------
    ModelError
        If it has several channels and they are not told, or the other way round.
    """
    deep = len(shape) == 5 and shape[1] in (1, None)
    count = shape[2] if deep and source == "slices" else shape[1]
    if source is None:
        if count in (1, None):
            return None
        ways = ['input = "copies" if it takes the same grey values in each']
        if len(shape) == 4 and count is not None and count % 2:
            ways.insert(0, f'input = "slices" if these are a slice and the {count // 2} before and after it')
        raise ModelError(f"{path} takes {count} channels, but a volume gives 1: write {', or '.join(ways)}, into {place}")
    if source not in get_args(Source):
        raise ModelError(f"input in {place} is {source!r}, not slices or copies: correct it")
    if count in (1, None) or (source == "slices" and len(shape) == 5 and not deep):
        raise ModelError(
            f'{place} says input = "{source}", but {path} takes an input of {" x ".join(str(n or "any") for n in shape)}: '
            "remove that line, or export the network with a fixed number of channels"
        )
    assert count is not None
    if source == "slices" and count % 2 == 0:
        raise ModelError(
            f'{place} says input = "slices", but {path} takes {count} channels, of which none is in the middle: use a network '
            "with an odd number"
        )
    return Channels(network, count, cast("Source", source), deep=deep and source == "slices")


def of_slices(contract: Contract, count: int) -> Contract:
    """Return the contract of a 2.5-D network, given that of the 2-D network on slices that do not move.

    Parameters
    ----------
    contract
        Contract of the 2-D network.
    count
        Number of slices that it sees.

    Returns
    -------
    Contract
        That of the 3-D network which it is.
    """

    def along_z(triple: Triple, first: int) -> Triple:
        return first, triple[1], triple[2]

    only = None if contract.only_tile is None else along_z(contract.only_tile, count)
    return replace(
        contract,
        planar=False,
        context=along_z(contract.context, count // 2),
        least=along_z(contract.least, count),
        only_tile=only,
        bytes_per_voxel=-(-contract.bytes_per_voxel // count),
    )
