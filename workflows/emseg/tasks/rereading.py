"""Work that reads again what blocks have read of their volume, to find changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from emseg_core.block import reread_block
from emseg_core.grid.blocks import Block
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import CACHE_BYTES
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome
from emseg_core.specs.numerics import Numerics
from emseg_core.specs.volume import Selection
from emseg_core.store.files.place import Place


@dataclass(frozen=True, slots=True)
class RereadWork:
    """Reads the voxels that blocks of a plan see, for their checksums; computes and writes nothing."""

    plan: Plan
    volume: Place
    part: Selection | None
    """Selects one of several volumes."""
    name: str = "reread"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  no predictor here
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """Open the volume.

        Parameters
        ----------
        turn
            Has no effect: there is no predictor.

        Yields
        ------
        process : callable
            Reads the voxels of one block.
        numerics : None
            Results do not depend on the hardware.
        """
        from emseg_core.store.volumes.volume import open_volume_patiently

        yield partial(reread_block, open_volume_patiently(self.volume, CACHE_BYTES, self.part), self.plan), None
