"""The order in which blocks are done: strand after strand, made as they are asked for, however many there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from emseg.grid.blocks import Block, Blocks
from emseg.grid.plan import Plan
from emseg.grid.reading import groups, reading_of
from emseg.specs.volume import VolumeSpec

LONGEST = 2**12
"""Most blocks of a strand: longer ones are handed out in parts."""


@dataclass(frozen=True, slots=True)
class Strand(Sequence[Block]):
    """Blocks that one worker does best one after another, as each reads chunks that the one before has read."""

    blocks: Blocks
    indices: NDArray[np.int64]
    """Positions of these among all."""

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> Block: ...

    @overload
    def __getitem__(self, place: slice) -> Strand: ...

    def __getitem__(self, place: int | slice) -> Block | Strand:
        if isinstance(place, slice):
            return Strand(self.blocks, self.indices[place])
        return self.blocks.block(int(self.indices[place]))


def strands_of(plan: Plan, volume: VolumeSpec, wanted: NDArray[np.bool_]) -> Iterator[Strand]:
    """Strands, none of them empty, that hold each block once for which `wanted`, ``(block,) bool``, says so.

    See `emseg.grid.reading` for what a strand is. A worker that does one after the other decompresses at most what
    `emseg.grid.reading.reading_of` says.
    """
    lengths = reading_of(volume, plan.region, plan.model, plan.unit, plan.tile).section
    bounds = (
        itertools.pairwise([*groups(volume, plan.region, axis, plan.unit[axis], length).tolist(), plan.grid[axis]])
        for axis, length in enumerate(lengths)
    )
    for (z, z_stop), (y, y_stop) in itertools.product(*bounds):
        for indices in _walk(plan, range(z, z_stop), range(y, y_stop)):
            if len(left := indices[wanted[indices]]):
                yield Strand(plan, left)


def strands_in_order(blocks: Blocks, wanted: NDArray[np.bool_]) -> Iterator[Strand]:
    """Strands, none of them empty, that hold each block once for which `wanted`, ``(block,) bool``, says so; x is fastest."""
    for first in range(0, len(blocks), LONGEST):
        indices = np.arange(first, min(first + LONGEST, len(blocks)))
        if len(left := indices[wanted[indices]]):
            yield Strand(blocks, left)


def _walk(plan: Plan, deep: range, high: range) -> Iterator[NDArray[np.int64]]:
    """Positions of the blocks of a cross-section, a step along x after the other; z changes fastest."""
    section = len(deep) * len(high)
    part = max(1, LONGEST // section) * section if section <= LONGEST else LONGEST
    blocks = section * plan.grid[2]
    for first in range(0, blocks, part):
        x, within = np.divmod(np.arange(first, min(first + part, blocks)), section)
        y, z = np.divmod(within, len(deep))
        yield ((z + deep.start) * plan.grid[1] + y + high.start) * plan.grid[2] + x
