"""Work that computes a coarser pyramid level from the next finer one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from emseg_core.block import outcome_of
from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome
from emseg_core.specs.numerics import Numerics
from emseg_core.store.outputs.level import Level


@dataclass(frozen=True, slots=True)
class CoarsenWork:
    """Computes the write units of one level."""

    finer: Level
    level: Level
    """The level to write, with the right to do so."""
    name: str = "coarsen"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  no predictor here
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """Open the levels.

        Parameters
        ----------
        turn
            Has no effect: there is no predictor.

        Yields
        ------
        process : callable
            Computes and writes one write unit.
        numerics : None
            Results do not depend on the hardware.
        """

        def coarsen(block: Block) -> Outcome:
            outcome = outcome_of(block, partial(self.level.build, self.finer, block))
            return replace(outcome, sent=self.level.take_sent(block.write))

        yield coarsen, None
