"""The work that makes a coarser level: what workers do to each of its write units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from emseg.block import outcome_of
from emseg.grid.blocks import Block
from emseg.model.device import Device
from emseg.outcome import Outcome
from emseg.specs.numerics import Numerics
from emseg.store.level import Level


@dataclass(frozen=True, slots=True)
class CoarsenWork:
    """Making one level of the next finer one."""

    finer: Level
    level: Level
    """What is written, with the right to do so."""
    name: str = "coarsen"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  no predictor here
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What makes a write unit."""

        def coarsen(block: Block) -> Outcome:
            outcome = outcome_of(block, partial(self.level.build, self.finer, block))
            return replace(outcome, sent=self.level.take_sent(block.write))

        yield coarsen, None
