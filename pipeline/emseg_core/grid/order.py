"""Order of the blocks: sequences that share chunks, created on demand, so there may be any number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from emseg_core.grid.blocks import Block, Blocks
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import groups, reading_of
from emseg_core.specs.volume import VolumeSpec

MAX_SEQUENCE_BLOCKS = 2**12
"""Largest number of blocks in a sequence; longer ones are split."""


@dataclass(frozen=True, slots=True)
class BlockSequence(Sequence[Block]):
    """Blocks that are best processed by one worker in this order, since each reads chunks that the previous one has read."""

    blocks: Blocks
    """All blocks of the region."""
    indices: NDArray[np.int64]
    """Positions of this sequence's blocks among all, ``(n,)``."""

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> Block: ...

    @overload
    def __getitem__(self, place: slice) -> BlockSequence: ...

    def __getitem__(self, place: int | slice) -> Block | BlockSequence:
        if isinstance(place, slice):
            return BlockSequence(self.blocks, self.indices[place])
        return self.blocks.block(int(self.indices[place]))


def block_sequences(plan: Plan, volume: VolumeSpec, wanted: NDArray[np.bool_]) -> Iterator[BlockSequence]:
    """Divide the wanted blocks of a plan into sequences.

    `emseg_core.grid.reading` explains sequences. A worker that processes them one after the other decompresses at most what
    `emseg_core.grid.reading.reading_of` predicts.

    Parameters
    ----------
    plan
        The plan.
    volume
        The volume.
    wanted
        Whether each block is to be processed, ``(block,) bool``.

    Yields
    ------
    BlockSequence
        A sequence that is not empty. Each wanted block is in exactly one.
    """
    lengths = reading_of(volume, plan.region, plan.model, plan.unit, plan.tile).section
    bounds = (
        itertools.pairwise([*groups(volume, plan.region, axis, plan.unit[axis], length).tolist(), plan.grid[axis]])
        for axis, length in enumerate(lengths)
    )
    for (z, z_stop), (y, y_stop) in itertools.product(*bounds):
        for indices in _walk(plan, range(z, z_stop), range(y, y_stop)):
            if len(left := indices[wanted[indices]]):
                yield BlockSequence(plan, left)


def sequences_in_order(blocks: Blocks, wanted: NDArray[np.bool_]) -> Iterator[BlockSequence]:
    """Divide the wanted blocks into sequences in the order of their positions, x fastest.

    Parameters
    ----------
    blocks
        All blocks.
    wanted
        Whether each block is to be processed, ``(block,) bool``.

    Yields
    ------
    BlockSequence
        A sequence that is not empty. Each wanted block is in exactly one.
    """
    for first in range(0, len(blocks), MAX_SEQUENCE_BLOCKS):
        indices = np.arange(first, min(first + MAX_SEQUENCE_BLOCKS, len(blocks)))
        if len(left := indices[wanted[indices]]):
            yield BlockSequence(blocks, left)


def _walk(plan: Plan, deep: range, high: range) -> Iterator[NDArray[np.int64]]:
    """Yield positions of the blocks of one cross-section, step by step along x; z changes fastest."""
    section = len(deep) * len(high)
    part = max(1, MAX_SEQUENCE_BLOCKS // section) * section if section <= MAX_SEQUENCE_BLOCKS else MAX_SEQUENCE_BLOCKS
    blocks = section * plan.grid[2]
    for first in range(0, blocks, part):
        x, within = np.divmod(np.arange(first, min(first + part, blocks)), section)
        y, z = np.divmod(within, len(deep))
        yield ((z + deep.start) * plan.grid[1] + y + high.start) * plan.grid[2] + x
