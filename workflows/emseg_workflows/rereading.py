"""The work that reads again what blocks have read of their volume: what workers do to each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from emseg.block import reread_block
from emseg.grid.blocks import Block
from emseg.grid.plan import Plan
from emseg.grid.reading import CACHE_BYTES
from emseg.model.device import Device
from emseg.outcome import Outcome
from emseg.specs.numerics import Numerics
from emseg.specs.volume import Part
from emseg.store.place import Place


@dataclass(frozen=True, slots=True)
class RereadWork:
    """Reading the voxels that blocks of a plan see, for their digests; nothing is computed or written."""

    plan: Plan
    volume: Place
    part: Part | None
    """Which of the volumes there, if it holds several."""
    name: str = "reread"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  no predictor here
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What reads for a block."""
        from emseg.store.volume import await_volume  # noqa: PLC0415

        yield partial(reread_block, await_volume(self.volume, CACHE_BYTES, self.part), self.plan), None
