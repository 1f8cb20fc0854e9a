"""Find by experiment how a network treats tiles: accepted sizes, receptive field, and the shifts it commutes with.

The network is given noise, one axis at a time:

* Shifted noise: where output voxels stay the same, the network commutes with that shift. The smallest such shift is its
  *lattice*.
* Noise changed from one voxel on: how far from there the output changes is how far the *receptive field* reaches. Padding is
  further away than that from every voxel that is kept, so kept voxels do not depend on where a tile ends.

Effects that noise does not show are missed: a probe is an experiment, not a proof. `emseg verify` gives the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.specs.contract import Contract

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""The network as a function from tiles ``(n, z, y, x) float32`` to ``(n, channels, z', y', x') float32``.

It may raise any exception for tiles that do not fit.
"""

TRIED_LENGTHS = (*range(16, 68, 4), *range(68, 300, 8))
"""Lengths of cubic or square tiles, in voxels, that are tried first."""
TRIED_LATTICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Shifts, in voxels, that are tried as the lattice."""
PROBE_LENGTH_PLANAR, PROBE_LENGTH_CUBIC = 640, 176
"""Length of the tested axis, in voxels, for 2-D and 3-D networks that accept any length."""
RELATIVE_ROUNDING = 1e-4
"""Largest difference that counts as rounding, as a fraction of the range of the output."""
MAX_POSITIONS_PER_CELL = 4
"""Largest number of positions within a lattice cell at which noise is changed."""
CHANGE_DEVIATIONS = np.float32(4)
"""Size of the change, in standard deviations of the noise."""
SEED = 0


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Results of a probe."""

    channels: int
    """Number of output channels."""
    context: Triple
    lattice: Triple
    least: Triple
    crop: Triple
    local: bool
    """The five fields above and this one mean the same as in `emseg_core.specs.contract.Contract`."""
    lowest: float
    """Smallest value of the output."""
    highest: float
    """Largest value of the output."""
    sums_to_one: bool
    """Whether the channels of each voxel sum to 1."""
    only_tile: Triple | None
    """The only tile shape (z, y, x) that the network accepts, if there is just one."""

    def contract(self, **facts: Any) -> Contract:
        """Return the contract of the network, given the fields that no probe shows."""
        found = {name: getattr(self, name) for name in ("context", "lattice", "least", "crop", "local", "only_tile")}
        return Contract(**found, **facts)


def probe(run: Run, *, planar: bool, hint: Triple | None = None) -> ProbeResult:
    """Find by experiment how a network treats tiles. The result is reproducible.

    Parameters
    ----------
    run
        The network as a function.
    planar
        Whether it is a 2-D network, which is blind along z.
    hint
        Shape (z, y, x) in voxels of a tile that it accepts, if one is known.

    Returns
    -------
    ProbeResult
        Context, lattice, tile sizes and range of values.

    Raises
    ------
    ModelError
        If it accepts none of the tiles tried, or its output cannot be assembled from tiles.
    """
    base, only_tile = _smallest(run, planar), None
    if hint is not None and base is None:
        base = only_tile = hint
    if base is None:
        raise ModelError(
            f"the network rejects every tile of {TRIED_LENGTHS[0]} to {TRIED_LENGTHS[-1]} voxels per axis that was tried: "
            "it must accept one channel, (n, 1, z, y, x) or (n, 1, y, x)"
        )
    output = _noise_through(run, base)
    axes = [_Axis(run, base, axis, planar, fixed=only_tile is not None).found() for axis in range(3)]
    context, lattice, crop, least = (triple(axis[part] for axis in axes) for part in range(4))
    values = np.moveaxis(output[0], 0, -1)
    return ProbeResult(
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
    """Return the shape of the smallest accepted tile among those tried, all of them cubes or squares."""
    for side in (*TRIED_LENGTHS, *range(16, 64)):
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
        raise ModelError(
            f"the network gives an output of shape {output.shape} for a tile {shape}, or values that are not finite: "
            "it must give finite values of shape (1, channels, z, y, x)"
        )
    return output


def _noise(shape: Triple, draw: int = 0) -> NDArray[np.float32]:
    """Return noise with structure at several scales, with mean 0 and standard deviation 1."""
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
    """Return whether two outputs agree within rounding."""
    return bool(np.abs(one - other).max() <= RELATIVE_ROUNDING * max(float(np.ptp(one)), float(np.ptp(other)), 1e-6))


@dataclass(frozen=True, slots=True)
class _Axis:
    """Experiments along one axis."""

    run: Run
    base: Triple
    axis: int
    planar: bool
    fixed: bool
    """Whether the network accepts no other length."""

    def found(self) -> tuple[int, int, int, int, bool]:
        """Return context, lattice, crop and least length in voxels, and whether the receptive field is within the context."""
        if self.planar and self.axis == 0:
            return 0, 1, 0, 1, True
        given = self._length(self.base[self.axis])
        taken = self.base[self.axis] - given
        if taken % 2 or taken < 0:
            raise ModelError(
                f"the network turns {self.base[self.axis]} voxels along {'zyx'[self.axis]} into {given}, but must crop "
                "the same number from both sides: give it a fixed shape, or pad it"
            )
        valid = taken // 2
        lattice, commutes = self._lattice(taken)
        reach, local = valid, True
        if not (taken and not self.fixed and self._unpadded(lattice)):
            reach, local = self._receptive_field(self._long(lattice), valid, lattice)
        local = local and commutes
        crop = max(0, -(-(reach - valid) // lattice) * lattice)
        context = valid + crop
        least = self.base[self.axis]
        least += max(0, -(-(2 * context + 1 - least) // lattice) * lattice)
        return context, lattice, crop, least, local

    def _tile(self, values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
        """Return the output for the first `length` voxels, tested axis first: ``(length', channels, ...)``."""
        output = self.run(values.take(range(length), axis=self.axis)[None])
        return np.moveaxis(output[0], self.axis + 1, 0)

    def _shape(self, length: int) -> Triple:
        return triple(length if axis == self.axis else side for axis, side in enumerate(self.base))

    def _length(self, length: int) -> int:
        """Return the output length for a tile of this length; 0 if the network rejects it."""
        try:
            return len(self._tile(_noise(self._shape(length)), length))
        except Exception:  # networks raise all kinds of errors for tiles that do not fit
            return 0

    def _long(self, lattice: int) -> int:
        """Return a length that is long enough to measure the receptive field."""
        base = self.base[self.axis]
        wanted = max(base, PROBE_LENGTH_PLANAR if self.planar else PROBE_LENGTH_CUBIC)
        return base if self.fixed else base + -(-(wanted - base) // lattice) * lattice

    def _unpadded(self, lattice: int) -> bool:
        """Return whether a longer tile gives the same output as a shorter one, up to the very ends of the latter."""
        base = self.base[self.axis]
        noise = _noise(self._shape(base + lattice))
        long, short = self._tile(noise, base + lattice), self._tile(noise, base)
        moved = self._tile(noise.take(range(lattice, base + lattice), axis=self.axis), base)
        return _same(long[: len(short)], short) and _same(long[lattice:], moved)

    def _lattice(self, taken: int) -> tuple[int, bool]:
        """Return the smallest shift that the network commutes with, and True; or the largest one tried, and False."""
        largest = 0
        for lattice in TRIED_LATTICES:
            if not self.fixed and self._length(self.base[self.axis] + lattice) != self.base[self.axis] + lattice - taken:
                continue
            length = self.base[self.axis] + 2 * lattice if taken and not self.fixed else self._long(lattice)
            if all(self._commutes(length, lattice, draw) for draw in range(2)):
                return lattice, True
            largest = lattice
        if not largest:
            raise ModelError(
                f"along {'zyx'[self.axis]} the network accepts {self.base[self.axis]} voxels, but not up to "
                f"{TRIED_LATTICES[-1]} more: give the only shape that it accepts as only_tile"
            )
        return largest, False

    def _commutes(self, length: int, shift: int, draw: int) -> bool:
        """Return whether the middle of the output moves with the tile."""
        noise = _noise(self._shape(length + shift), draw)
        one = self._tile(noise, length)
        other = self._tile(noise.take(range(shift, length + shift), axis=self.axis), length)
        middle = range(max(shift, len(one) // 2 - shift), max(shift, len(one) // 2 - shift) + 2 * shift)
        middle = range(middle.start, min(middle.stop, len(one)))
        if not middle:
            return False
        there, moved = one[middle.start : middle.stop], other[middle.start - shift : middle.stop - shift]
        return _same(there, moved)

    def _receptive_field(self, length: int, valid: int, lattice: int) -> tuple[int, bool]:
        """Return how many voxels the receptive field reaches beyond each lattice cell, and whether the tile holds it."""
        values, others = (_noise(self._shape(length), draw) for draw in (2, 3))
        known, farthest, local = self._tile(values, length), 0, True
        stride = -(-lattice // MAX_POSITIONS_PER_CELL)
        for step in range(0, lattice, stride):
            for place, late in ((length - lattice + step, True), (lattice - step, False)):
                changed = self._changed(values, CHANGE_DEVIATIONS * others, known, place, late=late)
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
        """Return which output voxels change with the input voxels from a place on, or with those before it."""
        there = np.arange(values.shape[self.axis]) >= place
        where = np.expand_dims(there if late else ~there, [axis for axis in range(3) if axis != self.axis])
        output = self._tile(np.where(where, others, values), len(there))
        return np.flatnonzero((output != known).reshape(len(known), -1).any(axis=1))
