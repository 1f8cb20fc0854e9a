"""Work that reads again what blocks have read of their volume, to find changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from emseg.tasks.port import CoreWork, Process
from emseg_core.block import reread_block
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import CACHE_BYTES
from emseg_core.specs.volume import Selection
from emseg_core.store.files.place import Place


@dataclass(frozen=True, slots=True)
class RereadWork(CoreWork):
    """Reads the voxels that blocks of a plan see, for their checksums; computes and writes nothing."""

    plan: Plan
    volume: Place
    part: Selection | None
    """Selects one of several volumes."""
    name = "reread"

    def opened_on_cores(self) -> Process:
        """Open the volume."""
        from emseg_core.store.volumes.volume import open_volume_patiently

        return partial(reread_block, open_volume_patiently(self.volume, CACHE_BYTES, self.part), self.plan)
