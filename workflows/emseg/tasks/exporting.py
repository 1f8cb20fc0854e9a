"""Work of `emseg export`: copy the parts of a level, each of which is whole files of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emseg_core.block import outcome_of
from emseg_core.errors import BlockError, OutputError
from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome, Stopwatch
from emseg_core.specs.numerics import Numerics
from emseg_core.store.exports.image import LevelCopy, WriteBox
from emseg_core.store.files.atomic_write import output_error
from emseg_core.store.files.faults import classify_fault


@dataclass(frozen=True, slots=True)
class ExportWork:
    """Copies parts of one level of an output."""

    copy: LevelCopy
    target: Path
    """The new file or folder, as named in messages."""
    name: str = "export"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  reading and writing are thread-safe
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """Open the level and the target.

        Parameters
        ----------
        turn
            Has no effect: there is no predictor.

        Yields
        ------
        process : callable
            Copies one part.
        numerics : None
            Results do not depend on the hardware.
        """
        store = self.copy.open_writer()
        yield lambda block: outcome_of(block, partial(self._copy, store, block)), None

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
