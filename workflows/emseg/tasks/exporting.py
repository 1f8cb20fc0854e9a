"""Work of `emseg export`: copy the parts of a level, each of which is whole files of the target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emseg.tasks.port import CoreWork, Process
from emseg_core.block import outcome_of
from emseg_core.errors import BlockError, OutputError
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Stopwatch
from emseg_core.store.exports.image import LevelCopy, WriteBox
from emseg_core.store.files.atomic_write import output_error
from emseg_core.store.files.faults import classify_fault


@dataclass(frozen=True, slots=True)
class ExportWork(CoreWork):
    """Copies parts of one level of an output."""

    copy: LevelCopy
    target: Path
    """The new file or folder, as named in messages."""
    name = "export"

    def opened_on_cores(self) -> Process:
        """Open the level and the target."""
        store = self.copy.open_writer()
        return lambda block: outcome_of(block, partial(self._copy, store, block))

    def _copy(self, store: WriteBox, block: Block, watch: Stopwatch) -> None:
        with watch.phase("read"):
            voxels = self.copy.level.read(block.write)
        with watch.phase("write"):
            try:
                store(block.write, voxels)
            except OSError as error:
                raise BlockError(str(output_error(self.target, error)), classify_fault(error)) from error
            except OutputError as error:
                raise BlockError(str(error)) from error
