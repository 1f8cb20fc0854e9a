"""Work of `emseg ingest`: copy the parts of a new volume, each of which is whole shards."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emseg.tasks.port import CoreWork, Process, Turn
from emseg_core.block import outcome_of
from emseg_core.box import Box
from emseg_core.errors import BlockError, Fault, InputError, VolumeError
from emseg_core.grid.blocks import Block
from emseg_core.outcome import Stopwatch
from emseg_core.store.exports.new_volume import SlabWriter, open_slabs
from emseg_core.store.files.atomic_write import output_error
from emseg_core.store.files.faults import classify_fault
from emseg_core.store.files.lease import Token
from emseg_core.store.stacks.array_stack import Array
from emseg_core.store.stacks.formats import open_stack
from emseg_core.store.stacks.stack import ChunkedStack, KnownStack, Stack

TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV}
"""Errors of a disk or file server that is temporarily unavailable; all others mean that the file is damaged."""


@dataclass(frozen=True, slots=True)
class IngestWork(CoreWork):
    """Copies parts of a stack to a new volume."""

    source: Path | Array
    """A path that all workers can read; an array stays in this process."""
    dataset: str | None
    allow_missing: bool
    known: KnownStack
    """Shape, dtype and missing slices that were found in the source."""
    target: Path
    """The volume, as named in messages."""
    token: Token
    """The right to write."""
    name = "ingest"

    @contextmanager
    def opened(self, turn: Turn | None = None) -> Iterator[tuple[Process, None]]:
        """Open the source and the new volume; while one part is compressed and written, another is read.

        Parameters
        ----------
        turn
            Held while a part is read; None if there is only one block at a time.

        Yields
        ------
        process : callable
            Copies one part.
        numerics : None
            Results do not depend on the hardware.

        Raises
        ------
        VolumeError
            If the source cannot be opened here, or has changed.
        """
        with open_stack(self.source, self.dataset, allow_missing=self.allow_missing, known=self.known) as stack:
            found = KnownStack(stack.shape, stack.dtype, stack.missing)
            if found != self.known:
                raise VolumeError(
                    f"{self.source} was {self.known.shape} {self.known.dtype}, but is now {found.shape} {found.dtype}: "
                    "ingest it again when no process writes to it"
                )
            slabs = open_slabs(self.token.files)
            yield lambda block: outcome_of(block, partial(self._copy, stack, slabs, turn, block)), None

    def _copy(self, stack: Stack, slabs: SlabWriter, turn: Turn | None, block: Block, watch: Stopwatch) -> None:
        # not all libraries can read one open file from several threads
        with watch.phase("wait"), turn or nullcontext(), watch.phase("read"):
            voxels = self._read(stack, block.write)
        with watch.phase("write"):
            try:
                slabs.write_box(block.write, voxels, threads=turn is None)
            except OSError as error:
                raise BlockError(str(output_error(self.target, error)), classify_fault(error)) from error

    def _read(self, stack: Stack, box: Box) -> NDArray[Any]:
        """Read the voxels of a part, ``(z, y, x)``."""
        try:
            return stack.read_box(box) if isinstance(stack, ChunkedStack) else stack.read(box.start[0], box.stop[0])
        except InputError as error:
            raise BlockError(str(error), self._fault(error)) from error

    def _fault(self, error: BaseException) -> Fault:
        """Decide whether the source is unavailable or damaged: libraries raise `OSError` for both."""
        if isinstance(self.source, Path) and not self.source.exists():
            return "store"
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        return "block" if cause is None or cause.errno not in TRANSIENT_ERRNOS else "store"
