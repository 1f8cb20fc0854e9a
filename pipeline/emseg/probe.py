"""What a network does to tiles, found by experiment: which it takes, how far its voxels see, which shifts it commutes with.

On one axis after the other it is given noise that is

* shifted: where an output voxel stays the same, the network commutes with that shift; the smallest is its *lattice*;
* changed from one voxel on: how far from there the output changes is how far a voxel *sees*. Padding is further away than
  that from all voxels that are kept, so that they do not depend on where a tile ends.

What cannot be seen with noise is not found: a probe is an experiment, not a proof. That is what `emseg verify` is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emseg.box import Triple, triple
from emseg.errors import ModelError

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What a network gives, ``(n, channels, z', y', x') float32``, for tiles ``(n, z, y, x) float32``; raises what it likes if
they do not fit."""

SIDES = (*range(16, 68, 4), *range(68, 300, 8))
"""Lengths that are tried first."""
LATTICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LONG_PLANAR, LONG_CUBIC = 640, 176
"""Length of the axis that is looked at, where the network takes any."""
SAME = 1e-4
"""Of the range of all values of an output: a difference below it comes of rounding."""
PHASES = 4
"""Most places within a lattice from which on noise is changed."""
CHANGE = np.float32(4)
"""How large changes are, in deviations."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a probe has found."""

    channels: int
    """Of the output."""
    context: Triple
    lattice: Triple
    least: Triple
    crop: Triple
    local: bool
    """As in `emseg.specs.contract.Contract`."""
    lowest: float
    highest: float
    """Of all values of the output."""
    sums_to_one: bool
    """Whether the channels of each voxel do."""
    only_tile: Triple | None
    """The only shape of tiles that it takes, if there is just one."""


def probe(run: Run, *, planar: bool, hint: Triple | None = None) -> Found:
    """What a network does to tiles; the same each time.

    Parameters
    ----------
    planar
        Whether it is a 2-D network, which sees nothing along z.
    hint
        Shape (z, y, x) in voxels of a tile that it takes, if one is known.

    Raises
    ------
    ModelError
        If it takes no tile that was tried, or does something that does not fit tiles.
    """
    base, only_tile = _smallest(run, planar), None
    if hint is not None and base is None:
        base = only_tile = hint
    if base is None:
        raise ModelError(
            f"the network takes no tile of {SIDES[0]} to {SIDES[-1]} voxels along each axis that was tried: it wants one "
            "channel, (n, 1, z, y, x) or (n, 1, y, x)"
        )
    output = _noise_through(run, base)
    axes = [_Axis(run, base, axis, planar, fixed=only_tile is not None).found() for axis in range(3)]
    context, lattice, crop, least = (triple(axis[part] for axis in axes) for part in range(4))
    values = np.moveaxis(output[0], 0, -1)
    return Found(
        channels=output.shape[1],
        context=context,
        lattice=lattice,
        least=only_tile or least,
        crop=crop,
        local=all(axis[4] for axis in axes),
        lowest=float(values.min()),
        highest=float(values.max()),
        sums_to_one=bool(np.allclose(values.sum(axis=-1), 1, atol=1e-3)),
        only_tile=only_tile,
    )


def _smallest(run: Run, planar: bool) -> Triple | None:
    """The smallest of the tiles that are tried, as long as they are wide."""
    for side in (*SIDES, *range(16, 64)):
        shape = (1 if planar else side, side, side)
        try:
            output = _noise_through(run, shape)
        except Exception:
            continue
        if output.size:
            return shape
    return None


def _noise_through(run: Run, shape: Triple) -> NDArray[np.float32]:
    output = run(_noise(shape)[None])
    if output.ndim != 5 or output.shape[0] != 1 or not np.isfinite(output).all():
        raise ModelError(f"the network makes {output.shape} with odd values of a tile {shape}, not (1, channels, z, y, x)")
    return output


def _noise(shape: Triple, draw: int = 0) -> NDArray[np.float32]:
    """Noise with structure of a few sizes, of mean 0 and deviation 1."""
    rng = np.random.default_rng((SEED, draw))
    noise = rng.standard_normal(shape, np.float32)
    for size in (2, 5):
        coarse = rng.standard_normal([-(-length // size) for length in shape], np.float32)
        for axis, length in enumerate(shape):
            coarse = np.repeat(coarse, size, axis=axis).take(range(length), axis=axis)
        noise += coarse
    unit: NDArray[np.float32] = noise / noise.std()
    return unit


def _same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two outputs are the same but for rounding."""
    return bool(np.abs(one - other).max() <= SAME * max(float(np.ptp(one)), float(np.ptp(other)), 1e-6))


@dataclass(frozen=True, slots=True)
class _Axis:
    """The experiments on one axis."""

    run: Run
    base: Triple
    axis: int
    planar: bool
    fixed: bool
    """Whether no other lengths are taken."""

    def found(self) -> tuple[int, int, int, int, bool]:
        """Context, lattice, crop and least length in voxels, and whether no voxel saw more."""
        if self.planar and self.axis == 0:
            return 0, 1, 0, 1, True
        given = self._length(self.base[self.axis])
        taken = self.base[self.axis] - given
        if taken % 2 or taken < 0:
            raise ModelError(
                f"of {self.base[self.axis]} voxels along {'zyx'[self.axis]} the network gives {given}, which is not the same "
                "number less on both sides: give it a fixed shape, or pad it"
            )
        valid = taken // 2
        lattice, commutes = self._lattice(taken)
        sees, local = valid, True
        if not (taken and not self.fixed and self._unpadded(lattice)):
            sees, local = self._sees(self._long(lattice), valid, lattice)
        local = local and commutes
        crop = max(0, -(-(sees - valid) // lattice) * lattice)
        context = valid + crop
        least = self.base[self.axis]
        least += max(0, -(-(2 * context + 1 - least) // lattice) * lattice)
        return context, lattice, crop, least, local

    def _tile(self, values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
        """The output for the first voxels of some noise, its axis first: ``(length', channels, ...)``."""
        output = self.run(values.take(range(length), axis=self.axis)[None])
        return np.moveaxis(output[0], self.axis + 1, 0)

    def _shape(self, length: int) -> Triple:
        return triple(length if axis == self.axis else side for axis, side in enumerate(self.base))

    def _length(self, length: int) -> int:
        """Length of the output for a tile of this length; 0 if it is not taken."""
        try:
            return len(self._tile(_noise(self._shape(length)), length))
        except Exception:  # whatever a network raises, it does not take such a tile
            return 0

    def _long(self, lattice: int) -> int:
        """A length that is long enough to see how far a voxel sees."""
        base = self.base[self.axis]
        wanted = max(base, LONG_PLANAR if self.planar else LONG_CUBIC)
        return base if self.fixed else base + -(-(wanted - base) // lattice) * lattice

    def _unpadded(self, lattice: int) -> bool:
        """Whether a longer tile gives the same for what a shorter one gives, up to its very ends."""
        base = self.base[self.axis]
        noise = _noise(self._shape(base + lattice))
        long, short = self._tile(noise, base + lattice), self._tile(noise, base)
        moved = self._tile(noise.take(range(lattice, base + lattice), axis=self.axis), base)
        return _same(long[: len(short)], short) and _same(long[lattice:], moved)

    def _lattice(self, taken: int) -> tuple[int, bool]:
        """The smallest shift that the network commutes with, and whether it does; else the largest that is tried."""
        largest = 0
        for lattice in LATTICES:
            if not self.fixed and self._length(self.base[self.axis] + lattice) != self.base[self.axis] + lattice - taken:
                continue
            length = self.base[self.axis] + 2 * lattice if taken and not self.fixed else self._long(lattice)
            if all(self._commutes(length, lattice, draw) for draw in range(2)):
                return lattice, True
            largest = lattice
        if not largest:
            raise ModelError(
                f"along {'zyx'[self.axis]} the network takes {self.base[self.axis]} voxels, but not up to {LATTICES[-1]} more: "
                "tell the only shape that it takes, with only_tile"
            )
        return largest, False

    def _commutes(self, length: int, shift: int, draw: int) -> bool:
        """Whether the middle of the output moves along with the tile."""
        noise = _noise(self._shape(length + shift), draw)
        one = self._tile(noise, length)
        other = self._tile(noise.take(range(shift, length + shift), axis=self.axis), length)
        middle = range(max(shift, len(one) // 2 - shift), max(shift, len(one) // 2 - shift) + 2 * shift)
        middle = range(middle.start, min(middle.stop, len(one)))
        if not middle:
            return False
        there, moved = one[middle.start : middle.stop], other[middle.start - shift : middle.stop - shift]
        return _same(there, moved)

    def _sees(self, length: int, valid: int, lattice: int) -> tuple[int, bool]:
        """How many voxels the output sees beside each cell of the lattice, and whether that is less than there are."""
        values, others = (_noise(self._shape(length), draw) for draw in (2, 3))
        known, farthest, local = self._tile(values, length), 0, True
        stride = -(-lattice // PHASES)
        for step in range(0, lattice, stride):
            for place, late in ((length - lattice + step, True), (lattice - step, False)):
                changed = self._changed(values, CHANGE * others, known, place, late=late)
                if not len(changed):
                    continue
                first, last = (int(index) // lattice * lattice + valid for index in (changed[0], changed[-1]))
                beside = place - first - lattice + 1 if late else last - place + 1
                farthest, local = max(farthest, beside), local and (changed[0] > 0 if late else changed[-1] < len(known) - 1)
        if not local:
            return length // 4, False
        return farthest + stride - 1, True

    def _changed(
        self, values: NDArray[np.float32], others: NDArray[np.float32], known: NDArray[np.float32], place: int, *, late: bool
    ) -> NDArray[np.intp]:
        """Which voxels of the output change along with those from a place on, or with those before it."""
        there = np.arange(values.shape[self.axis]) >= place
        where = np.expand_dims(there if late else ~there, [axis for axis in range(3) if axis != self.axis])
        output = self._tile(np.where(where, others, values), len(there))
        return np.flatnonzero((output != known).reshape(len(known), -1).any(axis=1))
