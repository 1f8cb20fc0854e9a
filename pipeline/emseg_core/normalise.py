"""Normalisation of intensities to mean 0 and standard deviation 1, measured once per volume or once per z slice.

Never per tile: two tiles would then disagree about the same voxel. The statistics come from a seeded sample, are stored
with the run, and are applied voxel by voxel, so that tiling cannot change them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, triple
from emseg_core.errors import VolumeError
from emseg_core.ports import VolumeReader
from emseg_core.specs.volume import VolumeSpec

Scope = Literal["volume", "slice"]
"""Set of voxels that share one mean and deviation."""

SAMPLE_EDGE_VOXELS = 64
"""Edge of a sampled cube, in voxels, for scope ``volume``; depth of a sampled box for both scopes."""
MAX_SAMPLE_BOXES = 64
"""Number of boxes sampled in a volume."""
SLICE_EDGE_PIXELS = 128
"""Edge of a sampled square, in pixels, for scope ``slice``."""
MAX_SLICE_BOXES = 16
"""Number of squares sampled in each slice."""
PADDING_EDGE_PIXELS = 4
"""Edge, in pixels, of a square of equal pixels that counts as padding; noise never produces one."""
MIN_RELATIVE_DEVIATION = 1e-6
"""Smallest deviation relative to the mean; less is rounding error of a constant."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``(value - mean) / deviation``, with one pair of numbers for the volume or one for each z slice."""

    scope: Scope
    """Whether the numbers are per volume or per slice."""
    mean: tuple[float, ...]
    """Mean grey value; one, or one per z slice of the volume."""
    deviation: tuple[float, ...]
    """Standard deviation in grey values, never 0; one, or one per z slice of the volume."""
    others: tuple[Normalisation, ...] = ()
    """Those of further channels that are read with the first one, or what the further members of an ensemble want."""

    def apply(self, values: NDArray[Any], box: Box) -> NDArray[np.float32]:
        """Normalise the voxels of a box.

        Parameters
        ----------
        values
            Voxels of `box`, ``(z, y, x)``, or ``(c, z, y, x)`` of several channels, of any numeric type.
        box
            A box inside the volume.

        Returns
        -------
        ndarray
            Normalised voxels, ``(z, y, x) float32``, or ``(members, z, y, x)`` for an ensemble.
        """
        return normalised(values, *self.table(np.arange(box.start[0], box.stop[0])))

    def table(self, slices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and deviation ``(z)`` of these z slices; ``(c, z)`` of several channels or members of an ensemble.

        Parameters
        ----------
        slices
            Indices of slices within the volume, ``(z) int64``.

        Returns
        -------
        tuple of ndarray
            Mean and deviation.
        """
        if self.others:
            tables = [channel.table(slices) for channel in (replace(self, others=()), *self.others)]
            return np.stack([mean for mean, _ in tables]), np.stack([deviation for _, deviation in tables])
        rows = slices if self.scope == "slice" else np.zeros_like(slices)
        return np.array(self.mean, np.float32)[rows], np.array(self.deviation, np.float32)[rows]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        said = {"scope": self.scope, "mean": list(self.mean), "deviation": list(self.deviation)}
        return said | ({"others": [other.to_json() for other in self.others]} if self.others else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the normalisation that `to_json` wrote."""
        others = tuple(map(cls.from_json, data.get("others", ())))
        return cls(data["scope"], tuple(data["mean"]), tuple(data["deviation"]), others)


def normalised(values: NDArray[Any], mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise voxels slice by slice.

    Parameters
    ----------
    values
        Voxels, ``(..., z, y, x)`` of any numeric type.
    mean, deviation
        Mean and standard deviation of each slice, ``(..., z)``.

    Returns
    -------
    ndarray
        Normalised voxels, ``(..., z, y, x) float32``.
    """
    result: NDArray[np.float32] = np.subtract(values, mean[..., None, None], dtype=np.float32)
    result /= deviation[..., None, None]
    return result


def survey(
    volume: VolumeReader,
    scope: Scope,
    seed: int = 0,
    percentiles: tuple[float, float] | None = None,
    eps: float = 0.0,
) -> tuple[Normalisation, str]:
    """Measure the normalisation of a volume on a sample of it.

    The sample depends on the seed alone. Constant padding around the tissue is left out.

    Parameters
    ----------
    volume
        The open volume.
    scope
        Whether to measure once per volume or once per slice.
    seed
        Seed of the sample.
    percentiles
        Two percentiles of the sample that become 0 and 1, in place of mean 0 and deviation 1; only per volume.
    eps
        What is added to the deviation, or to the range between the percentiles, in grey values.

    Returns
    -------
    normalisation
        Mean and deviation; or the lower percentile and the range between them.
    digest
        SHA-256 of the sampled voxels, in hexadecimal digits.

    Raises
    ------
    VolumeError
        If a sampled voxel is NaN or infinite, or the scope is unknown.
    """
    if volume.spec.channels:
        numbers = range(len(volume.spec.channels))
        surveys = [survey(_Channel(volume, number), scope, seed, percentiles, eps) for number in numbers]
        digests = hashlib.sha256("".join(digest for _, digest in surveys).encode())
        first, *others = (normalisation for normalisation, _ in surveys)
        return replace(first, others=tuple(others)), digests.hexdigest()
    if scope not in get_args(Scope):
        raise VolumeError(f"normalisation is per {' or per '.join(get_args(Scope))}, not per {scope!r}: choose one of these")
    rows = volume.spec.shape[0] if scope == "slice" else 1
    moments, padded = np.zeros((3, rows)), np.zeros((3, rows))
    digest = hashlib.sha256()
    kept: dict[bool, list[NDArray[Any]]] = {False: [], True: []}
    for box in sample_boxes(volume.spec, scope, seed):
        values = volume.read(box)
        refuse_nonfinite(values, box, VolumeError)
        digest.update(np.ascontiguousarray(values).tobytes())
        padding = _padding(values)
        if percentiles is not None:
            for which, found in kept.items():
                found.append(values[padding == which])
        where = slice(box.start[0], box.stop[0]) if scope == "slice" else slice(0, 1)
        moments[:, where] += _moments(values, ~padding, scope)
        padded[:, where] += _moments(values, padding, scope)
    moments = np.where(moments[0] > 0, moments, padded)  # nothing but padding: use that
    count, total, squares = moments
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    if percentiles is not None:
        sample = np.concatenate(kept[False])
        mean, high = np.percentile(sample if sample.size else np.concatenate(kept[True]), percentiles)[:, None]
        deviation = high - mean
    constant = deviation <= MIN_RELATIVE_DEVIATION * np.abs(mean)
    deviation = np.where(constant, 1, deviation + eps)
    return Normalisation(scope, tuple(mean.tolist()), tuple(deviation.tolist())), digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Channel:
    """One of the channels that a volume reads together; implements `emseg_core.ports.VolumeReader`."""

    volume: VolumeReader
    number: int

    @property
    def spec(self) -> VolumeSpec:
        return replace(self.volume.spec, channels=())

    def read(self, box: Box) -> NDArray[Any]:
        voxels: NDArray[Any] = self.volume.read(box)[self.number]
        return voxels


def sample_boxes(volume: VolumeSpec, scope: Scope, seed: int) -> Iterator[Box]:
    """Draw the boxes to measure: the whole volume if it is small, otherwise a random sample.

    Parameters
    ----------
    volume
        The volume.
    scope
        With ``slice``, each z slice gets its share of the sample.
    seed
        Seed of the random generator.

    Yields
    ------
    Box
        A box inside the volume.
    """
    depth = SAMPLE_EDGE_VOXELS
    edge, boxes = (SLICE_EDGE_PIXELS, MAX_SLICE_BOXES) if scope == "slice" else (SAMPLE_EDGE_VOXELS, MAX_SAMPLE_BOXES)
    rng = np.random.default_rng(seed)
    z, y, x = volume.shape
    slabs = (Box((start, 0, 0), (min(start + depth, z), y, x)) for start in range(0, z, depth))
    if (y * x if scope == "slice" else z * y * x / depth) <= boxes * edge * edge:
        yield from slabs
        return
    for region in slabs if scope == "slice" else [volume.box]:
        for _ in range(boxes):
            yield _random_box(rng, region, edge)


def refuse_nonfinite(values: NDArray[Any], box: Box, error: type[Exception]) -> None:
    """Raise `error` with the first voxel of `box` that is NaN or infinite, if there is one.

    Parameters
    ----------
    values
        Voxels ``(..., z, y, x)`` of `box`.
    box
        Where the voxels lie in the volume.
    error
        Type of the error to raise.

    Raises
    ------
    Exception
        An `error`, if a voxel is not finite.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    where = np.argwhere(~np.isfinite(values))[0]
    place = tuple(int(a + b) for a, b in zip(box.start, where[-3:], strict=True))
    raise error(
        f"voxel {place} (z, y, x) is {values[tuple(where)]}, but a network needs finite numbers: "
        "replace it, or leave it out with --roi"
    )


def _random_box(rng: np.random.Generator, within: Box, edge: int) -> Box:
    shape = triple(min(SAMPLE_EDGE_VOXELS if axis == 0 else edge, length) for axis, length in enumerate(within.shape))
    free = (length - taken + 1 for length, taken in zip(within.shape, shape, strict=True))
    return Box.of_shape(shape).shift(triple(int(rng.integers(f)) for f in free)).shift(within.start)


def _padding(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which voxels lie in a constant square of their slice."""
    padding = np.zeros(values.shape, bool)
    depth, height, width = values.shape[0], *(length - PADDING_EDGE_PIXELS + 1 for length in values.shape[1:])
    if min(height, width) < 1:
        return padding
    corners = itertools.product(range(PADDING_EDGE_PIXELS), repeat=2)
    squares = [np.s_[:, dy : dy + height, dx : dx + width] for dy, dx in corners]
    flat = np.ones((depth, height, width), bool)
    for square in squares:
        flat &= values[square] == values[squares[0]]
    for square in squares:
        padding[square] |= flat
    return padding


def _moments(values: NDArray[Any], where: NDArray[np.bool_], scope: Scope) -> NDArray[np.float64]:
    """Return count, sum and sum of squares ``(3, z or 1) float64`` of the chosen voxels."""
    axis = (1, 2) if scope == "slice" else None
    numbers = values.astype(np.float64)
    powers = [where.astype(np.float64), np.where(where, numbers, 0), np.where(where, numbers * numbers, 0)]
    return np.stack([np.atleast_1d(power.sum(axis=axis)) for power in powers])
