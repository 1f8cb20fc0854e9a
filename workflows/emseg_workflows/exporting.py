"""The work of `emseg export`: what workers do to each part of a level, which is whole files of what is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emseg.block import outcome_of
from emseg.errors import BlockError, OutputError
from emseg.grid.blocks import Block
from emseg.model.device import Device
from emseg.outcome import Outcome, Stopwatch
from emseg.specs.numerics import Numerics
from emseg.store.blame import fault_of
from emseg.store.exported import LevelCopy, Store
from emseg.store.staging import output_error


@dataclass(frozen=True, slots=True)
class ExportWork:
    """Copying parts of one level of an output."""

    copy: LevelCopy
    target: Path
    """What is made, as messages name it."""
    name: str = "export"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  all that is read and written knows of threads
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What copies a part."""
        store = self.copy.opened()
        yield lambda block: outcome_of(block, partial(self._copy, store, block)), None

    def _copy(self, store: Store, block: Block, watch: Stopwatch) -> None:
        with watch.phase("read"):
            voxels = self.copy.level.read(block.write)
        with watch.phase("write"):
            try:
                store(block.write, voxels)
            except OSError as error:
                raise BlockError(str(output_error(self.target, error)), fault_of(error)) from error
            except OutputError as error:
                raise BlockError(str(error)) from error
