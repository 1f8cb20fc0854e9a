"""Find how a network treats tiles: accepted sizes, receptive field, and the shifts that it commutes with.

If the operations of the network are known, arithmetic on them gives the answer (`emseg_core.model.receptive_arithmetic`), and
an experiment confirms it. Otherwise experiments alone do. The network is given noise, one axis at a time:

* Shifted noise: where output voxels stay the same, the network commutes with that shift. The smallest such shift is its
  *lattice*.
* Noise changed from one voxel on: how far from there the output changes is how far the *receptive field* reaches. Padding is
  further away than that from every voxel that is kept, so kept voxels do not depend on where a tile ends.

Effects that noise does not show are missed: a probe is an experiment, not a proof. `emseg verify` gives the proof. Experiments
are limited by the operations and bytes that they take, which are known before they start, never by a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.model.receptive_arithmetic import Trace
from emseg_core.specs.contract import Basis, Contract
from emseg_core.specs.inputs import Inputs

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""The network as a function from tiles ``(n, z, y, x) float32`` to ``(n, channels, z', y', x') float32``.

It may raise any exception for tiles that do not fit.
"""
Cost = Callable[[Triple], tuple[int, int]]
"""Operations and bytes that a tile of this shape takes; it may raise any exception for tiles that do not fit."""
Tracing = Callable[[Triple], Trace]
"""Arithmetic on the operations of a network for a tile of this shape; it may raise any exception for tiles that do not fit."""

TRIED_LENGTHS = (*range(16, 68, 4), *range(68, 300, 8))
"""Lengths of cubic or square tiles, in voxels, that are tried first."""
LONGER_LENGTHS = (320, 384, 448, 512, 640, 768, 1024)
"""Lengths that are tried if it costs nothing to know that a tile fits."""
TRIED_LATTICES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Shifts, in voxels, that are tried as the lattice."""
PROBE_LENGTH_PLANAR, PROBE_LENGTH_CUBIC = 640, 176
"""Length of the tested axis, in voxels, for 2-D and 3-D networks that accept any length."""
USUAL_LENGTH_PLANAR, USUAL_LENGTH_CUBIC = 512, 128
"""Usual length of tiles, in voxels, if a network does not say for which it was made."""
MAX_OPERATIONS = 2 * 10**12
"""Floating-point operations of all experiments together; about a minute on two cores."""
MAX_BYTES = 2**32
"""Memory of the values of one experiment."""
OPERATIONS_PER_VOXEL, BYTES_PER_VOXEL = 10_000, 256
"""Cost of a network that does not say its own."""
MAX_SHORTER = 64
"""Number of lengths below the declared one that are tried."""
RELATIVE_ROUNDING = 1e-4
"""Largest difference that counts as rounding, as a fraction of the range of the output."""
MAX_POSITIONS_PER_CELL = 4
"""Largest number of positions within a lattice cell at which noise is changed."""
CHANGE_DEVIATIONS = np.float32(4)
"""Size of the change, in standard deviations of the noise."""
SEED = 0
SEES_ALL = "voxels that see more of a tile than the context"
"""Reason why labels depend on tiles, if only experiments show that they do."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is stated about how a network treats tiles; it is used even if something else is found."""

    context: Triple | None = None
    lattice: Triple | None = None
    only_tile: Triple | None = None
    """Fields as in `emseg_core.specs.contract.Contract`."""
    place: str = "FILE.toml"
    """Where it is stated, for messages."""


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
    only_tile: Triple | None
    """The only tile shape (z, y, x) that the network accepts, if there is just one."""
    basis: Basis = "experiment"
    reason: str = ""
    """These fields mean the same as in `emseg_core.specs.contract.Contract`."""

    def along_z(self, inputs: Inputs) -> ProbeResult:
        """Return the result for a network whose channels are slices, which was probed as a 2-D network.

        Parameters
        ----------
        inputs
            Its slices.

        Returns
        -------
        ProbeResult
            Result for tiles that have the slices along z.
        """
        only, deep = self.only_tile, inputs.count
        return replace(
            self,
            context=triple((inputs.reach, *self.context[1:])),
            least=triple((deep, *self.least[1:])),
            only_tile=None if only is None else triple((deep, *only[1:])),
        )

    def contract(self, **facts: Any) -> Contract:
        """Return the contract of the network, given the fields that no probe shows."""
        names = ("context", "lattice", "least", "crop", "local", "only_tile", "basis", "reason")
        return Contract(**{name: getattr(self, name) for name in names}, **facts)


class ProbeLimitError(ModelError):
    """Experiments would take more operations or memory than they may."""


def probe(
    run: Run,
    *,
    planar: bool,
    declared: Triple | None = None,
    static: bool = False,
    told: Told = Told(),
    cost: Cost | None = None,
    tracing: Tracing | None = None,
) -> ProbeResult:
    """Find how a network treats tiles. The result is reproducible.

    Parameters
    ----------
    run
        The network as a function.
    planar
        Whether it is a 2-D network, which is blind along z.
    declared
        Shape (z, y, x) in voxels of a tile that it was made for, if one is known.
    static
        Whether it was written down for tiles of this shape only.
    told
        What is stated about it.
    cost
        What a tile takes.
    tracing
        Arithmetic on its operations.

    Returns
    -------
    ProbeResult
        Context, lattice, tile sizes and range of values.

    Raises
    ------
    ModelError
        If it accepts none of the tiles tried, its output cannot be assembled from tiles, it contradicts what is told, or
        finding out would take too many operations.
    """
    return _Probe(_Limited(run, cost, told), planar, declared, static, told, tracing).result()


class _Limited:
    """The network, run within the limits."""

    def __init__(self, run: Run, cost: Cost | None, told: Told) -> None:
        self._run, self._cost, self._told, self._left = run, cost, told, MAX_OPERATIONS

    def __call__(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        self._left -= self.checked([triple(tiles.shape[1:])])
        return self._run(tiles)

    def unlimited(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on a tile that a run takes anyway."""
        return self._run(tiles)

    def checked(self, shapes: list[Triple]) -> int:
        """Return the operations that tiles of these shapes take.

        Raises
        ------
        ProbeLimitError
            If these are too many, or a tile takes too much memory.
        """
        total = 0
        for shape in shapes:
            operations, size = self._cost_of(shape)
            total += operations
            if total > self._left or size > MAX_BYTES:
                raise ProbeLimitError(
                    f"to find out how the network treats tiles, one of {' x '.join(map(str, shape))} voxels would take "
                    f"{operations:.1e} operations and {size / 1e9:.1f} GB, and experiments may take {MAX_OPERATIONS:.0e} in "
                    f"all and {MAX_BYTES / 1e9:.1f} GB: {self._remedy()}"
                )
        return total

    def _remedy(self) -> str:
        """Return what to tell that is not told yet."""
        told, place = self._told, self._told.place
        tile = "only_tile = [z, y, x], the tile that it was made for"
        if told.context and told.lattice:
            return f"write a smaller {tile}, into {place}" if told.only_tile else f"write {tile}, into {place}"
        both = "write context = [z, y, x] and lattice = [z, y, x], in voxels,"
        return f"{both} into {place}" if told.only_tile else f"{both} or {tile}, into {place}"

    def _cost_of(self, shape: Triple) -> tuple[int, int]:
        if self._cost is not None:
            return self._cost(shape)
        return OPERATIONS_PER_VOXEL * math.prod(shape), BYTES_PER_VOXEL * math.prod(shape)


@dataclass(frozen=True, slots=True)
class _Along:
    """What is known along one axis, in voxels."""

    valid: int
    """Removed by the network on each side."""
    crop: int
    lattice: int
    least: int
    reason: str = ""
    """Why labels depend on tiles; empty if they do not."""


class _Probe:
    """The steps of a probe."""

    def __init__(
        self, run: _Limited, planar: bool, declared: Triple | None, static: bool, told: Told, tracing: Tracing | None
    ) -> None:
        self._run, self._planar, self._declared, self._told, self._tracing = run, planar, declared, told, tracing
        for name in ("context", "lattice", "only_tile"):
            given = getattr(told, name)
            if given is not None and planar and given[0] != (0 if name == "context" else 1):
                raise ModelError(
                    f"{told.place} says {name} = {list(given)}, but the network is two-dimensional: its first number, along z, "
                    f"is {0 if name == 'context' else 1}"
                )
        self._base = told.only_tile or declared or self._smallest()
        self._fixed = static or told.only_tile is not None
        self._periods = 1
        """Number of known periods in the lattice."""
        self._output: NDArray[np.float32] | None = None
        """Output for a tile that was run although that exceeds the limits."""
        self._axes = range(1, 3) if planar else range(3)

    def result(self) -> ProbeResult:
        """Return what was found."""
        trace = self._good_trace()
        basis: Basis
        if trace is None:
            along, basis = self._by_experiment(), "experiment"
        else:
            self._check_output(trace)
            along, basis = self._by_arithmetic(trace)
        along = [self._as_told(axis, known) for axis, known in enumerate(along)]
        self._check_room(along)
        channels = self._channels(along, trace if basis == "graph" else None)
        reason = "; ".join(dict.fromkeys(known.reason for known in along if known.reason))
        if not reason and (basis == "graph" or self._told.context or self._told.lattice):
            basis, reason = self._confirmed(along, basis)
        only = self._base if self._fixed else None
        return ProbeResult(
            channels=channels,
            context=triple(known.valid + known.crop for known in along),
            lattice=triple(known.lattice for known in along),
            least=only or triple(known.least for known in along),
            crop=triple(known.crop for known in along),
            local=not reason,
            only_tile=only,
            basis=basis,
            reason=reason,
        )

    # -- tiles ----------------------------------------------------------------------------------------------------------

    def _smallest(self) -> Triple:
        """Return the shape of the smallest accepted tile among those tried, all of them cubes or squares."""
        free = LONGER_LENGTHS if self._tracing is not None else ()
        for side in (*TRIED_LENGTHS, *range(16, 64), *free):
            shape = (1 if self._planar else side, side, side)
            if self._accepts(shape):
                return shape
        raise ModelError(
            f"the network rejects every tile of {TRIED_LENGTHS[0]} to {(*TRIED_LENGTHS, *free)[-1]} voxels per axis that was "
            "tried: it must accept one channel, (n, 1, z, y, x) or (n, 1, y, x); if it accepts another shape, write "
            f"only_tile = [z, y, x], in voxels, into {self._told.place}"
        )

    def _accepts(self, shape: Triple) -> bool:
        """Return whether the network accepts a tile of this shape."""
        try:
            if self._tracing is not None:
                return math.prod(self._tracing(shape).shape) > 0
            return _noise_through(self._run, shape).size > 0
        except ProbeLimitError:
            raise
        except Exception:  # networks raise all kinds of errors for tiles that do not fit
            return False

    def _trace(self, shape: Triple) -> Trace | None:
        """Return the arithmetic for a tile that must fit."""
        if self._tracing is None:
            return None
        try:
            return self._tracing(shape)
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            size = " x ".join(map(str, shape))
            if shape == self._told.only_tile:
                raise ModelError(
                    f"{self._told.place} says only_tile = {list(shape)}, but the network rejects it ({said}): correct it"
                ) from error
            raise ModelError(
                f"the network rejects a tile of {size} voxels, the shape that its file declares ({said})"
            ) from error

    def _good_trace(self) -> Trace | None:
        """Return the arithmetic for the base, or for a tile near it that the network treats as it does longer ones.

        A network that resizes to the shape of skips accepts lengths that it treats differently from all others. A pooling that
        takes in all of a short tile looks like one of the whole tile.
        """
        trace = self._trace(self._base)
        if trace is not None and trace.notes.fixed and self._told.only_tile is None:
            trace = self._longer_trace(trace)
        if trace is None or self._fixed or trace.notes.fixed:
            return trace
        first = self._base
        for count in (0, 1, 2, 4):
            cells = [self._period(trace, axis) for axis in range(3)]
            shape = (
                first
                if not count
                else triple(
                    cell * max(count, -(-length // cell)) if axis in self._axes else 1
                    for axis, (cell, length) in enumerate(zip(cells, first, strict=True))
                )
            )
            if self._accepts(shape):
                self._base = shape
                other = self._trace(shape)
                assert other is not None
                if not other.output.lost and len(other.shape) == len(trace.shape) and self._grows(other):
                    return other
        self._base = first
        return trace

    def _longer_trace(self, trace: Trace) -> Trace:
        """Return the arithmetic for a longer tile, if nothing fixes the size of that, else the one for the base."""
        assert self._tracing is not None
        for factor in (2, 4):
            shape = triple(length * factor if axis in self._axes else 1 for axis, length in enumerate(self._base))
            try:
                other = self._tracing(shape)
            except Exception:
                continue
            if not other.notes.fixed and len(other.shape) == len(trace.shape):
                self._base = shape
                return other
        return trace

    def _at(self, shape: Triple, axis: int, length: int) -> Triple:
        return triple(length if index == axis else side for index, side in enumerate(shape))

    def _shortest(self, axis: int, lattice: int, length: int) -> int:
        """Return the smallest accepted length on an axis that is at least `length`, and congruent to that of the base."""
        base = self._base[axis]
        first = length + (base - length) % lattice
        lengths = range(first, max(first, base) + lattice * MAX_SHORTER, lattice)
        for tried in lengths[:MAX_SHORTER]:
            try:
                if tried == base or self._accepts(self._at(self._base, axis, tried)):
                    return tried
            except ProbeLimitError:
                if not self._told.lattice:
                    raise
                break
        return max(first, base)

    # -- by arithmetic --------------------------------------------------------------------------------------------------

    def _check_output(self, trace: Trace) -> None:
        """Refuse an output that is no image of the tile."""
        rank = 4 if self._planar else 5
        if len(trace.shape) != rank:
            source = (1, 1, *self._base[self._planar :])
            raise ModelError(
                f"the network gives an output of shape {trace.shape} for an input of shape {source}: it must give "
                f"(1, channels, {'y, x' if self._planar else 'z, y, x'})"
            )

    def _by_arithmetic(self, trace: Trace) -> tuple[list[_Along], Basis]:
        """Return what the operations of the network say, or experiments if not all are known."""
        notes = trace.notes
        if notes.fixed and self._told.only_tile and self._declared and self._told.only_tile != self._declared:
            raise ModelError(
                f"{self._told.place} says only_tile = {list(self._told.only_tile)}, but {next(iter(notes.fixed))} in the "
                f"network fixes its size at {list(self._declared)}: leave it out, or export it for the other size"
            )
        if trace.output.lost and not notes.reasons:
            self._fixed = self._fixed or bool(notes.fixed)
            return self._by_experiment(), "experiment"
        if not trace.output.lost:
            if any(trace.output.axes[2:][axis - self._planar] is None for axis in self._axes):
                raise ModelError(f"the output of the network, of shape {trace.shape}, is no image of the tile")
            self._check_steps(trace)
            self._fixed = self._told.only_tile is not None or bool(notes.fixed) or not self._grows(trace)
        elif not self._fixed:
            self._fixed = bool(notes.fixed) or not self._finds_longer(trace)
        along = [_Along(0, 0, 1, 1)] if self._planar else []
        return along + [self._axis_by_arithmetic(trace, axis) for axis in self._axes], "graph"

    def _check_steps(self, trace: Trace) -> None:
        """Refuse an output whose voxels are not those of the tile."""
        for axis in self._axes:
            found = trace.output.axes[2:][axis - self._planar]
            assert found is not None
            if found.step != 1:
                raise ModelError(
                    f"along {'zyx'[axis]} the network gives one value for every {found.step} voxels of its input, so its "
                    "output has another resolution: let it end at the resolution of its input, and export it again"
                )

    def _period(self, trace: Trace, axis: int) -> int:
        return self._periods * trace.notes.periods.get(axis - self._planar, 1) if axis in self._axes else 1

    def _finds_longer(self, trace: Trace) -> bool:
        """Find a longer tile that fits; strides after an operation that is not known are in no period."""
        for self._periods in (1, 2, 4, 8, 16, 32):
            if self._accepts(self._longer(trace)):
                return True
        self._periods = 1
        return False

    def _longer(self, trace: Trace) -> Triple:
        return triple(
            length + (self._period(trace, axis) if axis in self._axes else 0) for axis, length in enumerate(self._base)
        )

    def _grows(self, trace: Trace) -> bool:
        """Return whether the network treats a longer tile as this one."""
        shape = self._longer(trace)
        try:
            assert self._tracing is not None
            other = self._tracing(shape)
        except Exception:
            return False
        if trace.notes.numbers != other.notes.numbers:
            return False
        for axis in self._axes:
            one, two = (made.output.axes[2:][axis - self._planar] for made in (trace, other))
            added = shape[axis] - self._base[axis]
            if one is None or two is None or replace(two, length=two.length - added) != one:
                return False
        return True

    def _axis_by_arithmetic(self, trace: Trace, axis: int) -> _Along:
        base, lattice, notes = self._base[axis], self._period(trace, axis), trace.notes
        valid = self._taken(axis, base, trace.shape[2:][axis - self._planar])
        found = trace.output.axes[2:][axis - self._planar]
        usual = USUAL_LENGTH_PLANAR if self._planar else USUAL_LENGTH_CUBIC
        quarter = (base if self._declared or self._fixed else usual) // 4
        needed = max(found.before, found.after) if found is not None else quarter
        reason, crop = ", ".join(notes.reasons), needed
        if reason:  # nothing makes it exact: as much as such networks are used with
            crop = min(crop, quarter)
            if found is not None and crop < needed and self._told.context is None:
                reason += f", and a context of fewer than the {valid + needed} voxels that the network sees"
        if self._fixed and self._told.context is None and base - 2 * (valid + crop) < lattice:
            crop = max(0, min(base // 4 - valid, (base - 2 * valid - lattice) // 2))
            if found is not None:
                reason = reason or (
                    f"the only tile, of {' x '.join(map(str, self._base))} voxels, which is shorter than the {valid + needed} "
                    "voxels on each side that the network sees"
                )
        least = base
        if not self._fixed and not (reason and self._declared):  # statistics should be of tiles as large as it was made for
            least = self._shortest(axis, lattice, 2 * (valid + crop) + 1)
        return _Along(valid, crop, lattice, least, reason)

    def _taken(self, axis: int, length: int, given: int) -> int:
        """Return the voxels that the network removes on each side."""
        if (length - given) % 2 or given > length or given == 0:
            raise ModelError(
                f"the network turns {length} voxels along {'zyx'[axis]} into {given}, but must crop the same number from both "
                "sides: give it a fixed shape, or pad it"
            )
        return (length - given) // 2

    # -- by experiment --------------------------------------------------------------------------------------------------

    def _by_experiment(self) -> list[_Along]:
        """Return what experiments find."""
        if self._told.context and self._told.lattice:
            return self._by_one_tile(self._told.lattice)
        _noise_through(self._run, self._base)
        self._fixed = self._fixed or not self._accepts_longer()
        found = []
        for axis in range(3):
            experiments = _Axis(self._run, self._base, axis, self._planar, fixed=self._fixed)
            try:
                found.append(experiments.found(self._told.lattice[axis] if self._told.lattice else None, self._told.context))
            except ModelError:
                raise
            except Exception as error:
                raise self._failure(self._base, error) from error
        return found

    def _accepts_longer(self) -> bool:
        """Return whether the network accepts tiles that are longer than the declared one, if one is declared."""
        return self._declared is None or any(
            self._accepts(self._at(self._base, axis, self._base[axis] + more)) for axis in self._axes for more in TRIED_LATTICES
        )

    def _by_one_tile(self, lattice: Triple) -> list[_Along]:
        """Return what one tile shows, if context and lattice are told."""
        try:
            self._output = _noise_through(self._run.unlimited, self._base)
        except ModelError:
            raise
        except Exception as error:
            raise self._failure(self._base, error) from error
        with suppress(ProbeLimitError):
            self._fixed = self._fixed or not self._accepts_longer()
        taken = [self._taken(axis, self._base[axis], self._output.shape[axis + 2]) for axis in range(3)]
        return [_Along(valid, 0, step, length) for valid, step, length in zip(taken, lattice, self._base, strict=True)]

    # -- what is told ---------------------------------------------------------------------------------------------------

    def _as_told(self, axis: int, known: _Along) -> _Along:
        """Return what is known, with what is told in its place."""
        told, name = self._told, "zyx"[axis]
        if (told.context is None and told.lattice is None) or axis not in self._axes:
            return known
        reasons = [known.reason] if known.reason else []
        crop, lattice = known.crop, known.lattice
        if told.context is not None:
            crop = told.context[axis] - known.valid
            if crop < 0:
                raise ModelError(
                    f"{told.place} says context = {list(told.context)}, but along {name} the network itself removes "
                    f"{known.valid} voxels on each side: tell at least as many"
                )
            if crop < known.crop and not known.reason:
                reasons.append(f"the context, which is told; the network sees {known.valid + known.crop} voxels")
        if told.lattice is not None:
            lattice = told.lattice[axis]
            if (
                lattice % known.lattice
                and not self._fixed
                and not self._accepts(self._at(self._base, axis, self._base[axis] + lattice))
            ):
                raise ModelError(
                    f"{told.place} says lattice = {list(told.lattice)}, but along {name} the network accepts "
                    f"{self._base[axis]} voxels and not {lattice} more: its lattice is {known.lattice}"
                )
            if lattice % known.lattice:
                reasons.append(f"the lattice, which is told; that of the network is {known.lattice}")
        least = known.least
        if not self._fixed:
            least = self._shortest(axis, lattice, max(2 * (known.valid + crop) + 1, 1))
        return _Along(known.valid, crop, lattice, least, ", ".join(reasons))

    def _check_room(self, along: list[_Along]) -> None:
        """Refuse a context that leaves nothing of the only tile."""
        for axis, known in enumerate(along):
            kept = self._base[axis] - 2 * (known.valid + known.crop)
            if self._fixed and kept < known.lattice:
                raise ModelError(
                    f"the only tile of the network has {self._base[axis]} voxels along {'zyx'[axis]}, of which a context of "
                    f"{known.valid + known.crop} on each side leaves {max(0, kept)}, less than its lattice, {known.lattice}: "
                    f"tell a smaller context in {self._told.place}, or export it for a larger tile"
                )

    # -- experiments on what is known -----------------------------------------------------------------------------------

    def _channels(self, along: list[_Along], trace: Trace | None) -> int:
        """Return the number of channels of the output, after a look at its values if that is within the limits."""
        if self._output is not None:
            return int(self._output.shape[1])
        try:
            return int(self._values(along).shape[1])
        except ProbeLimitError:
            if trace is None:
                raise
            return trace.shape[1]

    def _values(self, along: list[_Along]) -> NDArray[np.float32]:
        """Return the output for noise, of the smallest tile that is good for it."""
        shapes = [self._base]
        if not self._fixed and self._tracing is not None:
            cells = 4 if self._planar else 2
            for count in (cells, 1):
                small = triple(
                    self._shortest(axis, known.lattice, max(16, 2 * known.valid + count * known.lattice))
                    if axis in self._axes
                    else 1
                    for axis, known in enumerate(along)
                )
                if self._accepts(small):
                    shapes.append(small)
        for shape in sorted(set(shapes[1:]) or shapes, key=math.prod, reverse=True):
            try:
                return _noise_through(self._run, shape)
            except ProbeLimitError as error:
                refused: Exception = error
            except ModelError:
                raise
            except Exception as error:
                refused = self._failure(shape, error)
        raise refused

    def _failure(self, shape: Triple, error: Exception) -> ModelError:
        """Return the refusal of a network that fails on a tile that it should accept."""
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return ModelError(
            f"the network fails on a tile of {' x '.join(map(str, shape))} voxels ({said}): write only_tile = [z, y, x], in "
            f"voxels, the tile that it was made for, into {self._told.place}"
        )

    def _confirmed(self, along: list[_Along], basis: Basis) -> tuple[Basis, str]:
        """Run shifted tiles: return what the contract rests on, and why labels depend on tiles if they turn out to do so.

        Voxels that both tiles keep are compared, up to those at the ends of what each keeps.
        """
        told = bool(self._told.context or self._told.lattice)
        for axis in self._axes:
            known = along[axis]
            try:
                shape = self._for_shift(axis, along)
                if shape[axis] - 2 * (known.valid + known.crop) <= known.lattice:
                    return ("told" if told and basis == "experiment" else basis), ""
                self._run.checked([shape, shape])
                alike = self._alike(axis, shape, known)
            except ProbeLimitError:
                if basis == "graph":
                    return basis, ""
                return "told", "the context and the lattice, which are told and were not checked"
            except Exception as error:
                raise self._failure(shape, error) from error
            if not alike:
                return basis, "an output that does not move with its input" + (" as told" if told else "")
        return ("experiment" if basis == "experiment" else "graph and experiment"), ""

    def _for_shift(self, axis: int, along: list[_Along]) -> Triple:
        """Return the shape of two tiles that are shifted along an axis."""
        if self._fixed:
            return self._base
        known = along[axis]
        length = self._shortest(axis, known.lattice, 2 * (known.valid + known.crop) + 2 * known.lattice)
        small = triple(
            self._shortest(other, at.lattice, 2 * at.valid + 1) if other in self._axes else 1 for other, at in enumerate(along)
        )
        return self._at(small if self._accepts(self._at(small, axis, length)) else self._base, axis, length)

    def _alike(self, axis: int, shape: Triple, known: _Along) -> bool:
        """Return whether what two shifted tiles both keep is the same."""
        shift, length = known.lattice, shape[axis]
        noise = _noise(self._at(shape, axis, length + shift), 4)
        one, other = (
            np.moveaxis(self._run(noise.take(range(start, start + length), axis=axis)[None])[0], axis + 1, 0)[
                known.crop : length - 2 * known.valid - known.crop
            ]
            for start in (0, shift)
        )
        return _same(one[shift:], other[: len(other) - shift])


def _noise_through(run: _Limited | Run, shape: Triple) -> NDArray[np.float32]:
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

    run: _Limited
    base: Triple
    axis: int
    planar: bool
    fixed: bool
    """Whether the network accepts no other length."""

    def found(self, told_lattice: int | None, told_context: Triple | None) -> _Along:
        """Return what is found; what is told is not looked for."""
        if self.planar and self.axis == 0:
            return _Along(0, 0, 1, 1)
        base = self.base[self.axis]
        given = self._length(base)
        taken = base - given
        if taken % 2 or taken < 0 or self._coarse(given):
            self._refuse(given)
        valid = taken // 2
        lattice, commutes = (told_lattice, True) if told_lattice else self._lattice(taken)
        reach, local = valid, True
        if told_context is not None:
            reach = told_context[self.axis]
        elif not (taken and not self.fixed and self._unpadded(lattice)):
            reach, local = self._receptive_field(self._long(lattice), valid, lattice)
        crop = max(0, -(-(reach - valid) // lattice) * lattice)
        if told_context is not None:
            crop = max(0, reach - valid)
        elif self.fixed and not (local and commutes):
            crop = max(0, min(base // 4 - valid, (given - lattice) // 2))
        context = valid + crop
        least = base + max(0, -(-(2 * context + 1 - base) // lattice) * lattice)
        return _Along(valid, crop, lattice, least, "" if local and commutes else SEES_ALL)

    def _coarse(self, given: int) -> bool:
        """Return whether the output has fewer voxels than the tile for the same length."""
        base = self.base[self.axis]
        longer = self._length(2 * base) if not self.fixed else 0
        return 0 < longer == 2 * given < 2 * base

    def _refuse(self, given: int) -> None:
        """Refuse lengths of the output that cannot be those of what is left of a tile."""
        base, name = self.base[self.axis], "zyx"[self.axis]
        if self._coarse(given) or 0 < given <= base // 2:
            raise ModelError(
                f"the network turns {base} voxels along {name} into {given}, as if its output had another resolution: let it "
                "end with an upsampling to the resolution of its input, and export it again"
            )
        raise ModelError(
            f"the network turns {base} voxels along {name} into {given}, but must crop the same number from both sides: give "
            "it a fixed shape, or pad it"
        )

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
        except ProbeLimitError:
            raise
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
        if self._length(base + lattice) != self._length(base) + lattice:
            return False
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
                f"{TRIED_LATTICES[-1]} more: give the only shape that it accepts as only_tile, or its lattice"
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
