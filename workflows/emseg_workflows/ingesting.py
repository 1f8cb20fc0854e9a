"""The work of `emseg ingest`: what workers do to each part of a new volume, which is whole shards of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emseg.block import outcome_of
from emseg.box import Box
from emseg.errors import BlockError, Fault, InputError, VolumeError
from emseg.grid.blocks import Block
from emseg.model.device import Device
from emseg.outcome import Outcome, Stopwatch
from emseg.specs.numerics import Numerics
from emseg.store.array_stack import Array
from emseg.store.blame import fault_of
from emseg.store.formats import open_stack
from emseg.store.lease import Token
from emseg.store.new_volume import SlabWriter, open_slabs
from emseg.store.stack import ChunkedStack, Known, Stack
from emseg.store.staging import output_error

PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV}
"""Errors with which a disk, or a server of files, is away for a while; all others are those of a file."""


@dataclass(frozen=True, slots=True)
class IngestWork:
    """Copying parts of a stack into a new volume."""

    source: Path | Array
    """A path that all workers see; an array stays in this process."""
    dataset: str | None
    allow_missing: bool
    known: Known
    """What the source was found to be."""
    target: Path
    """The volume, as messages name it."""
    token: Token
    """The right to write."""
    name: str = "ingest"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self, turn: AbstractContextManager[object] | None = None
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What copies a part; while one is compressed and written, another one is read.

        Raises
        ------
        VolumeError
            If the source cannot be opened here, or is not what it was.
        """
        with open_stack(self.source, self.dataset, allow_missing=self.allow_missing, known=self.known) as stack:
            found = Known(stack.shape, stack.dtype, stack.missing)
            if found != self.known:
                raise VolumeError(
                    f"{self.source} was {self.known.shape} {self.known.dtype}, but is {found.shape} {found.dtype} by now: "
                    "ingest it again when nobody writes to it"
                )
            slabs = open_slabs(self.token.files)
            yield lambda block: outcome_of(block, partial(self._copy, stack, slabs, turn, block)), None

    def _copy(
        self,
        stack: Stack,
        slabs: SlabWriter,
        turn: AbstractContextManager[object] | None,
        block: Block,
        watch: Stopwatch,
    ) -> None:
        # libraries that read from one open file do not all know of threads
        with watch.phase("wait"), turn or nullcontext(), watch.phase("read"):
            voxels = self._read(stack, block.write)
        with watch.phase("write"):
            try:
                slabs.write_box(block.write, voxels, threads=turn is None)
            except OSError as error:
                raise BlockError(str(output_error(self.target, error)), fault_of(error)) from error

    def _read(self, stack: Stack, box: Box) -> NDArray[Any]:
        """The voxels of a part, ``(z, y, x)``."""
        try:
            return stack.read_box(box) if isinstance(stack, ChunkedStack) else stack.read(box.start[0], box.stop[0])
        except InputError as error:
            raise BlockError(str(error), self._fault(error)) from error

    def _fault(self, error: BaseException) -> Fault:
        """Whether the source is away, or damaged: libraries call both an `OSError`."""
        if isinstance(self.source, Path) and not self.source.exists():
            return "store"
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        return "block" if cause is None or cause.errno not in PASSING else "store"
