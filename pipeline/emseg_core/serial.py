"""The reference executor: a plain loop. Every other executor must give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emseg_core.block import BlockContext, segment_block
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Outcome


def segment_blocks(context: BlockContext, blocks: Iterable[Block]) -> Iterator[Outcome]:
    """Segment blocks one after another.

    Parameters
    ----------
    context
        Open resources of this process.
    blocks
        The blocks to segment.

    Yields
    ------
    Outcome
        Result of each block, in order.
    """
    for block in blocks:
        yield segment_block(context, block)
