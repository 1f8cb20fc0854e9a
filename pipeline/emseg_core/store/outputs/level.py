"""One pyramid level of an output: arrays of the same voxels, written unit by unit. Existing files record what is done.

A write unit of a coarser level is computed from units of the next finer level, and exists only if all of these do. To remove a
unit, the coarser units above it are therefore removed first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError, OutputError
from emseg_core.grid.blocks import Block, Blocks
from emseg_core.grid.pyramid import Rule, coarsened
from emseg_core.outcome import Stopwatch
from emseg_core.store.files.atomic_write import output_error, translate_oserror
from emseg_core.store.files.faults import StoreError, translate_errors
from emseg_core.store.files.place import Address, Place
from emseg_core.store.zarrs.arrays import Shards

REPAIR_HINT = "repair it with `emseg verify --repair`"


@dataclass(frozen=True, slots=True)
class Level:
    """Arrays of one level; boxes are relative to their first voxel."""

    path: Place
    """Path of the output."""
    arrays: tuple[Shards, ...]
    """Arrays in the order of writing: a unit in the last one is in all of them."""
    rules: tuple[Rule, ...]
    """How the next coarser level is computed from each array."""
    step: Triple = (1, 1, 1)
    """Voxels (z, y, x) of the next finer level in one voxel of this one."""
    outside: NDArray[np.bool_] | None = None
    """Write units that a mask excludes, ``(z, y, x) bool`` on the grid of write units: they are never computed."""

    @property
    def blocks(self) -> Blocks:
        """Grid of write units."""
        last = self.arrays[-1]
        return Blocks(Box.of_shape(last.shape), last.unit)

    def indices(self, box: Box) -> list[Triple]:
        """Return the grid index of each write unit of a box.

        Parameters
        ----------
        box
            Whole write units, in voxels of this level.

        Returns
        -------
        list of tuple of int
            Indices (z, y, x).

        Raises
        ------
        ValueError
            If `box` does not consist of whole write units.
        """
        return self.arrays[-1].indices(box)

    def is_done(self, box: Box) -> bool:
        """Check whether each write unit of `box` exists in each array.

        Parameters
        ----------
        box
            Whole write units, in voxels of this level.

        Returns
        -------
        bool
            True if all of them exist.

        Raises
        ------
        ValueError
            If `box` does not consist of whole write units.
        """
        return all(array.has(index) for array, index in itertools.product(self.arrays, self.indices(box)))

    def done(self, *, tidy: bool = False) -> NDArray[np.bool_]:
        """Find the write units that exist in each array or lie outside.

        Parameters
        ----------
        tidy
            Whether to remove partial files that killed writers have left.

        Returns
        -------
        ndarray
            ``(z, y, x) bool`` on the grid of write units.

        Raises
        ------
        OutputError
            If the arrays no longer exist, which says nothing about their units.
        """
        done = np.ones(self.blocks.grid, dtype=bool)
        try:
            for array in self.arrays:
                done &= array.stored(tidy=tidy)
        except StoreError as error:
            remedy = f"{error.remedy}, and run again to resume"
            raise OutputError(f"the output {self.path} cannot be listed ({error.strerror}): {remedy}") from error
        except OSError as error:
            raise output_error(self.path, error) from error
        return done if self.outside is None else done | self.outside

    def written(self) -> NDArray[np.bool_]:
        """Find the write units that exist in each array and do not lie outside.

        Returns
        -------
        ndarray
            ``(z, y, x) bool`` on the grid of write units.

        Raises
        ------
        OutputError
            If the arrays no longer exist.
        """
        return self.done() if self.outside is None else self.done() & ~self.outside

    def check(self, box: Box, name: str) -> None:
        """Read every byte of a box in each array, so that each checksum is verified.

        Parameters
        ----------
        box
            Voxels to read.
        name
            Name of the box in error messages.

        Raises
        ------
        BlockError
            If a shard is missing, damaged, or holds a voxel that was never computed.
        """
        for array in self.arrays:
            with translate_errors(f"{name} of {self.path} cannot be read", "compute it again"):
                highest = array.read(box).max()  # NaN if one voxel is NaN
            if array.dense:  # the fill value is a valid label
                continue
            # where blocks are outside, parts of a coarser unit are rightly not computed
            if np.array_equal(highest, array.array.fill_value, equal_nan=True) and (
                self.outside is None or self.step == (1, 1, 1)
            ):
                raise BlockError(f"{name} of {self.path} has voxels that were not computed: compute it again")

    @property
    def remote(self) -> bool:
        """Whether the output is on an object store."""
        return isinstance(self.path, Address)

    def take_sent(self, box: Box) -> tuple[int, ...]:
        """Return and forget what was last sent to an object store for a write unit, see `emseg_core.outcome.Outcome.sent`.

        Parameters
        ----------
        box
            One write unit, in voxels of this level.

        Returns
        -------
        tuple of int
            Empty on a local file system.
        """
        if not self.remote:
            return ()
        (index,) = self.indices(box)
        return tuple(itertools.chain.from_iterable(array.take_sent(index) for array in self.arrays))

    def remove(self, box: Box) -> None:
        """Remove each write unit of `box`, from the last array first, so that it counts as not computed.

        Parameters
        ----------
        box
            Whole write units, in voxels of this level.

        Raises
        ------
        OutputError
            If the store fails.
        """
        with translate_oserror(self.path):
            for array, index in itertools.product(reversed(self.arrays), self.indices(box)):
                array.remove(index)

    def ready(self, finer: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Find the write units whose finer write units all exist.

        Parameters
        ----------
        finer
            Whether each write unit of the next finer level exists, ``(z, y, x) bool``.

        Returns
        -------
        ndarray
            ``(z, y, x) bool`` on the grid of this level.
        """
        return complete_parents(finer, self.step)

    def build(self, finer: Level, block: Block, watch: Stopwatch) -> None:
        """Compute a write unit from the next finer level, and store it.

        Parameters
        ----------
        finer
            The next finer level.
        block
            The write unit.
        watch
            Stopwatch of the block.

        Raises
        ------
        BlockError
            If the finer level cannot be read, or the unit cannot be written.
        OrphanError
            If another run has taken over the output.
        """
        box, values = block.write, self.coarsen(finer, block.write, watch)
        with watch.phase("write"), translate_errors(f"{box} of a level of {self.path} cannot be written", "check the disk"):
            for array, made in zip(self.arrays, values, strict=True):
                array.write(box, made)

    def coarsen(self, finer: Level, box: Box, watch: Stopwatch) -> list[NDArray[Any]]:
        """Compute the voxels of a box from the next finer level.

        Only the source voxels of one chunk are in memory at a time.

        Parameters
        ----------
        finer
            The next finer level.
        box
            A box in voxels of this level.
        watch
            Stopwatch of the block.

        Returns
        -------
        list of ndarray
            Voxels of the box in each array, ``(z, y, x)`` or ``(channel, z, y, x)``, in the dtype of the array.

        Raises
        ------
        BlockError
            If the finer level cannot be read.
        """
        values = [np.empty((*array.channels, *box.shape), array.array.dtype) for array in self.arrays]
        for made, array, source, rule in zip(values, self.arrays, finer.arrays, finer.rules, strict=True):
            for part in Blocks(box, array.chunk):
                seen = part.write.refine(self.step).intersect(finer.blocks.region)
                with watch.phase("read"), translate_errors(f"{seen} of a level of {self.path} cannot be read", REPAIR_HINT):
                    voxels = source.read(seen)
                with watch.phase("stitch"):
                    made[(..., *part.write.relative_to(box.start).slices())] = coarsened(voxels, self.step, rule)
        return values


def complete_parents(units: NDArray[np.bool_], step: Triple) -> NDArray[np.bool_]:
    """Find the write units of the next coarser level all of whose finer units are set.

    Parameters
    ----------
    units
        Which finer write units are set, ``(z, y, x) bool``.
    step
        Finer write units (z, y, x) in a coarser one.

    Returns
    -------
    ndarray
        ``(z, y, x) bool`` on the coarser grid.
    """
    for axis, length in enumerate(step):
        units = np.logical_and.reduceat(units, range(0, units.shape[axis], length), axis=axis)
    return units


def remove_stale_units(levels: Sequence[Level], doubted: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Remove each coarser write unit that depends on a missing finer one; it will be computed again.

    Partial files that killed writers have left are removed as well, so the caller must hold the lease.

    Parameters
    ----------
    levels
        All levels, the finest first.
    doubted
        Write units of the finest level that count as missing, ``(z, y, x) bool``; their files stay until they are replaced.

    Returns
    -------
    ndarray
        Which write units of the finest level are done, ``(z, y, x) bool``.

    Raises
    ------
    OutputError
        If the store fails.
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
