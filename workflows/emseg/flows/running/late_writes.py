"""Detect late writes to an object store: objects of an earlier run that arrive after, and replace, those of this run.

A disk refuses late writes because their folder does not exist any more, but an object store has no folders. So each worker
reports the objects that it sent, and at the end they are compared with those that are stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg_core.outcome import Outcome
from emseg_core.store.outputs.level import Level


class SentObjects:
    """Tags and checksums of the objects that the workers of a run have sent to a level of an output."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._sent = np.zeros((len(level.blocks), len(level.arrays), 2), np.uint64) if level.remote else None

    def record(self, outcome: Outcome) -> None:
        """Record the objects that a block has sent, in place of those of an earlier attempt.

        Parameters
        ----------
        outcome
            Outcome of the block.
        """
        if self._sent is not None and len(outcome.sent) == self._sent[outcome.block].size:
            self._sent[outcome.block].flat = outcome.sent

    def replaced(self) -> NDArray[np.bool_]:
        """Find write units whose stored objects are not those that were sent.

        Only objects whose tags have changed are read.

        Returns
        -------
        numpy.ndarray
            Whether each unit was replaced, ``(z, y, x) bool``.
        """
        level, grid = self._level, self._level.blocks.grid
        if self._sent is None:
            return np.zeros(grid, bool)
        tags, digests = self._sent[..., 0], self._sent[..., 1]
        found = np.zeros(len(tags), bool)
        for number, array in enumerate(level.arrays):
            stored = array.tags().ravel()
            for unit in np.flatnonzero((tags[:, number] != 0) & (stored != 0) & (stored != tags[:, number])):
                index = np.unravel_index(int(unit), grid)
                found[unit] |= array.digest((int(index[0]), int(index[1]), int(index[2]))) != int(digests[unit, number])
        return found.reshape(grid)
