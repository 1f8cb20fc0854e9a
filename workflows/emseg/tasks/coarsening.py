"""Work that computes a coarser pyramid level from the next finer one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from emseg.tasks.port import CoreWork, Process
from emseg_core.block import outcome_of
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Outcome
from emseg_core.store.outputs.level import Level


@dataclass(frozen=True, slots=True)
class CoarsenWork(CoreWork):
    """Computes the write units of one level."""

    finer: Level
    level: Level
    """The level to write, with the right to do so."""
    name = "coarsen"

    def opened_on_cores(self) -> Process:
        """Return the function: the levels are open."""

        def coarsen(block: Block) -> Outcome:
            outcome = outcome_of(block, partial(self.level.build, self.finer, block))
            return replace(outcome, sent=self.level.take_sent(block.write))

        return coarsen
