"""The reference executor: a for-loop. Every other executor must give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from emseg.block import Bench, segment_block
from emseg.grid.blocks import Block
from emseg.outcome import Outcome


def segment_blocks(bench: Bench, blocks: Iterable[Block]) -> Iterator[Outcome]:
    """The outcome of each block, in order."""
    for block in blocks:
        yield segment_block(bench, block)
