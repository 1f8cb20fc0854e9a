"""One level of an output: arrays of the same voxels that are written unit by unit, and are their own ledger.

A unit of a coarser level is made of units of the next finer one. That it exists means that all of these did: who takes one
of them away takes it away first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import BlockError, OutputError
from emseg.grid.blocks import Block, Blocks
from emseg.grid.pyramid import Rule, coarsened
from emseg.outcome import Stopwatch
from emseg.store.arrays import Shards
from emseg.store.blame import StoreError, blamed
from emseg.store.place import Address, Place
from emseg.store.staging import output_error

MEND = "mend it with `emseg verify --repair`"


@dataclass(frozen=True, slots=True)
class Level:
    """Arrays of one level; boxes are relative to their first voxel."""

    path: Place
    """Of the output."""
    arrays: tuple[Shards, ...]
    """In the order in which they are written: a unit that is in the last one is in all."""
    rules: tuple[Rule, ...]
    """What the next level holds of each."""
    step: Triple = (1, 1, 1)
    """Voxels (z, y, x) of the next finer level in one of this one."""
    outside: NDArray[np.bool_] | None = None
    """Write units that a mask leaves out, ``(z, y, x) bool`` on their grid: there is nothing to be done."""

    @property
    def blocks(self) -> Blocks:
        """Its write units."""
        last = self.arrays[-1]
        return Blocks(Box.of_shape(last.shape), last.unit)

    def indices(self, box: Box) -> list[Triple]:
        """Index of each write unit of `box` in the grid.

        Raises
        ------
        ValueError
            If `box` is not whole write units.
        """
        return list(self.arrays[-1].indices(box))

    def is_done(self, box: Box) -> bool:
        """Whether each write unit of `box` exists in each array."""
        return all(array.has(index) for array, index in itertools.product(self.arrays, self.indices(box)))

    def done(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Whether each write unit exists in each array or lies outside, ``(z, y, x) bool`` on the grid of write units.

        With `tidy`, files that a killed writer has left half-written are removed.

        Raises
        ------
        OutputError
            If the arrays are not there any more, which says nothing about their units.
        """
        done = np.ones(self.blocks.grid, dtype=bool)
        try:
            for array in self.arrays:
                done &= array.stored(tidy=tidy)
        except StoreError as error:
            remedy = f"{error.remedy}, and run again to go on"
            raise OutputError(f"the output {self.path} cannot be listed ({error.strerror}): {remedy}") from error
        except OSError as error:
            raise output_error(self.path, error) from error
        return done if self.outside is None else done | self.outside

    def written(self) -> NDArray[np.bool_]:
        """Whether each write unit exists in each array, ``(z, y, x) bool``, and is not left out.

        Raises
        ------
        OutputError
            If the arrays are not there any more.
        """
        return self.done() if self.outside is None else self.done() & ~self.outside

    def check(self, box: Box, name: str) -> None:
        """Reads every byte of a box in each array, so that each checksum is proven.

        Parameters
        ----------
        name
            What a message calls the box.

        Raises
        ------
        BlockError
            If a shard is missing, damaged, or holds a voxel that was never computed.
        """
        for array in self.arrays:
            with blamed(f"{name} of {self.path} cannot be read", "compute it again"):
                highest = int(array.read(box).max())
            if array.dense:  # the fill value is one of those that are computed
                continue
            if highest == array.array.fill_value and (self.outside is None or self.step == (1, 1, 1)):  # else part is outside
                raise BlockError(f"{name} of {self.path} has voxels that were not computed: compute it again")

    @property
    def remote(self) -> bool:
        """Whether it is on an object store."""
        return isinstance(self.path, Address)

    def take_sent(self, box: Box) -> tuple[int, ...]:
        """What was last sent to an object store for the write unit `box`, see `emseg.outcome.Outcome.sent`."""
        if not self.remote:
            return ()
        (index,) = self.indices(box)
        return tuple(itertools.chain.from_iterable(array.take_sent(index) for array in self.arrays))

    def remove(self, box: Box) -> None:
        """Makes each write unit of `box` *not computed* again, the last array first.

        Raises
        ------
        OutputError
            If the disk refuses.
        """
        for array, index in itertools.product(reversed(self.arrays), self.indices(box)):
            try:
                array.remove(index)
            except OSError as error:
                raise output_error(self.path, error) from error

    def ready(self, finer: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of which write units all that they are made of is there, ``(z, y, x) bool``.

        Parameters
        ----------
        finer
            Whether each write unit of the next finer level is there, ``(z, y, x) bool``.
        """
        return above(finer, self.step)

    def build(self, finer: Level, block: Block, watch: Stopwatch) -> None:
        """Makes a write unit, and stores it.

        Raises
        ------
        BlockError
            If what it is made of cannot be read, or the disk refuses.
        OrphanError
            If another run has taken over the output.
        """
        box, values = block.write, self.made(finer, block.write, watch)
        with watch.phase("write"), blamed(f"{box} of a level of {self.path} cannot be written", "check the disk"):
            for array, made in zip(self.arrays, values, strict=True):
                array.write(box, made)

    def made(self, finer: Level, box: Box, watch: Stopwatch) -> list[NDArray[Any]]:
        """What belongs into a box of each array, ``(z, y, x)`` or ``(channel, z, y, x)``, made of the next finer level.

        What the chunks in it are made of is in memory one after another.

        Raises
        ------
        BlockError
            If that cannot be read.
        """
        values = [np.empty((*array.channels, *box.shape), array.array.dtype) for array in self.arrays]
        for made, array, source, rule in zip(values, self.arrays, finer.arrays, finer.rules, strict=True):
            for part in Blocks(box, array.chunk):
                seen = part.write.refine(self.step).intersect(finer.blocks.region)
                with watch.phase("read"), blamed(f"{seen} of a level of {self.path} cannot be read", MEND):
                    voxels = source.read(seen)
                with watch.phase("stitch"):
                    made[(..., *part.write.relative_to(box.start).slices())] = coarsened(voxels, self.step, rule)
        return values


def above(units: NDArray[np.bool_], step: Triple) -> NDArray[np.bool_]:
    """Which write units of the next level consist of such units alone, ``(z, y, x) bool``."""
    for axis, length in enumerate(step):
        units = np.logical_and.reduceat(units, range(0, units.shape[axis], length), axis=axis)
    return units


def remove_unfounded(levels: Sequence[Level], doubted: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Removes each write unit of a coarser level that is made of one which is not there: it will be built again.

    Files that a killed writer has left half-written are removed, too; only who holds the lease may ask for that. Which write
    units of the finest level there are, ``(z, y, x) bool``. Those that are `doubted`, ``(z, y, x) bool``, count as not there:
    they stay until something else is put in their place.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    finest = levels[0].done(tidy=True)
    if doubted is not None:
        finest &= ~doubted if levels[0].outside is None else ~doubted | levels[0].outside
    founded = finest
    for level in levels[1:]:
        there, ready = level.done(tidy=True), level.ready(founded)
        for index in np.flatnonzero(there & ~ready):
            level.remove(level.blocks.block(int(index)).write)
        founded = there & ready
    return finest
