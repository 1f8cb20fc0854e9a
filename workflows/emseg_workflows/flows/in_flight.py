"""What arrives late at an object store: objects that somebody else sent before this run began, over those of this run.

A disk refuses them, as the folder that they were for is not there any more; an object store knows no such thing. So each
worker tells what it has sent, and at the end that is compared with what is stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emseg.outcome import Outcome
from emseg.store.level import Level


class Sent:
    """What the workers of a run have sent to a level of an output."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._sent = np.zeros((len(level.blocks), len(level.arrays), 2), np.uint64) if level.remote else None

    def note(self, outcome: Outcome) -> None:
        """Take in what a block has sent, in the place of what it had sent before."""
        if self._sent is not None and len(outcome.sent) == self._sent[outcome.block].size:
            self._sent[outcome.block].flat = outcome.sent

    def replaced(self) -> NDArray[np.bool_]:
        """Units in whose place something else is stored by now, ``(z, y, x) bool``.

        What the store calls the objects tells which to look into: only these are read.
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
