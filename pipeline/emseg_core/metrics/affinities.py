"""Check without truth whether affinities mean what is stated; NumPy only.

Around a square of four voxels, true labels never have exactly one cut edge: where three of its edges lie inside one object, so
does the fourth. Two offsets a and b span the squares::

    v ------- v+a        each side is an edge, whose affinity is stored at one of its two voxels;
    |          |         predicted affinities are cut where they say "different objects" with more than 0.5
   v+b ----- v+a+b

If edges are read at the wrong voxel, or along the wrong axis, many squares have one cut edge wherever borders are curved. This
compares the stated reading with others, and finds the one that fits best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple
from emseg_core.specs.heads import Anchor, Head

MIN_MIXED = 500
"""Smallest number of squares with both cut and uncut edges from which a reading is judged."""
MAX_SINGLE = 0.02
"""Largest share of these squares with a single cut edge that counts as right, whatever other readings give."""
MIN_GAIN = 2.0
"""Factor by which this share must be smaller in another reading to be told."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a reading of affinities fits labels."""

    mixed: int
    """Number of squares with both cut and uncut edges."""
    single: int
    """Number of squares with exactly one cut edge."""

    @property
    def share(self) -> float:
        """Share of the mixed squares that no labels can have; 0 if there are none."""
        return self.single / self.mixed if self.mixed else 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """Where the edges of affinities lie."""

    offsets: tuple[Triple, ...]
    """Offset (z, y, x) in voxels of each channel."""
    anchor: Anchor
    """Voxel that an edge is stored at."""


def fit_of(cut: NDArray[np.bool_], reading: Reading) -> Fit:
    """Count squares of which labels could have no, or some, cut edges.

    Parameters
    ----------
    cut
        Whether each edge is cut, ``(channel, z, y, x)``.
    reading
        Where the edges lie.

    Returns
    -------
    Fit
        Counts over the squares of all pairs of offsets that lie in the array.
    """
    mixed = single = 0
    for (first, a), (second, b) in combinations(enumerate(reading.offsets), 2):
        if a == tuple(-step for step in b):
            continue  # the four voxels are three
        start, far, near = _sum(a, b), a, b
        if reading.anchor == "source":  # an edge is stored where it starts
            places = ((first, (0, 0, 0)), (first, b), (second, (0, 0, 0)), (second, a))
        else:  # or where it leads to
            places = ((first, far), (first, start), (second, near), (second, start))
        edges = _together(cut, places)
        if edges is None:
            continue
        count = edges.sum(axis=0, dtype=np.uint8)
        mixed += int(np.count_nonzero((count > 0) & (count < len(places))))
        single += int(np.count_nonzero(count == 1))
    return Fit(mixed, single)


def readings_of(head: Head) -> Iterator[Reading]:
    """List readings of affinities, the stated one first.

    Parameters
    ----------
    head
        The affinities.

    Yields
    ------
    Reading
        Each order of the axes in the offsets with each anchor. Offsets of the other sign are the same as the other anchor.
        Offsets within a slice stay there.
    """
    planar = all(offset[0] == 0 for offset in head.offsets)
    anchors = (head.anchor, *(anchor for anchor in get_args(Anchor) if anchor != head.anchor))
    seen = set()
    for anchor in anchors:
        for order in permutations(range(3)):
            if planar and order[0] != 0:
                continue
            offsets = tuple((offset[order[0]], offset[order[1]], offset[order[2]]) for offset in head.offsets)
            if (offsets, anchor) not in seen:
                seen.add((offsets, anchor))
                yield Reading(offsets, anchor)


def better_reading(head: Head, boxes: Sequence[NDArray[np.float32]]) -> tuple[Reading, Fit, Fit] | None:
    """Look for a reading that fits clearly better than the stated one.

    Parameters
    ----------
    head
        The affinities, with their stated meaning.
    boxes
        Predicted affinities ``(channel, z, y, x)`` of some boxes.

    Returns
    -------
    tuple or None
        The best reading, how well it fits, and how well the stated one does; None if the stated one is as good, or if there
        are too few borders to judge.
    """
    cuts = _cuts(head, boxes)
    fits = []
    for reading in readings_of(head):
        counts = [fit_of(cut, reading) for cut in cuts]
        fits.append((reading, Fit(sum(fit.mixed for fit in counts), sum(fit.single for fit in counts))))
    (_, stated), *_ = fits
    best, fit = min(fits, key=lambda item: item[1].share)
    if min(stated.mixed, fit.mixed) < MIN_MIXED or stated.share <= max(MAX_SINGLE, MIN_GAIN * fit.share):
        return None
    return best, fit, stated


def mostly_cut(head: Head, boxes: Sequence[NDArray[np.float32]]) -> bool:
    """Return whether nearly all edges are cut in a way that labels seldom have, as if 1 and 0 were exchanged.

    Labels have more squares with three cut edges, where a few voxels lie in background, than with one. Read the other way
    round, they have more with one, at the corners between three objects.

    Parameters
    ----------
    head
        The affinities, with their stated meaning.
    boxes
        Predicted affinities ``(channel, z, y, x)`` of some boxes.

    Returns
    -------
    bool
        Whether `repulsive` seems to be stated wrongly.
    """
    stated = Reading(head.offsets, head.anchor)
    cuts = _cuts(head, boxes)
    if not cuts or np.mean([float(cut.mean()) for cut in cuts]) < 0.5:
        return False
    here, there = ([fit_of(cut, stated) for cut in kind] for kind in (cuts, [~cut for cut in cuts]))
    one, three = (sum(fit.single for fit in fits) for fits in (here, there))
    return sum(fit.mixed for fit in here) >= MIN_MIXED and one > MIN_GAIN * three


def lines_of(reading: Reading, head: Head) -> str:
    """Return what to write for a reading, where it differs from the stated one.

    Parameters
    ----------
    reading
        A reading.
    head
        The affinities, with their stated meaning.

    Returns
    -------
    str
        Lines of TOML.
    """
    parts = []
    if reading.anchor != head.anchor:
        parts.append(f'anchor = "{reading.anchor}"')
    if reading.offsets != head.offsets:
        parts.append(f"offsets = {[list(offset) for offset in reading.offsets]}")
    return ", ".join(parts)


def _cuts(head: Head, boxes: Sequence[NDArray[np.float32]]) -> list[NDArray[np.bool_]]:
    """Return which edges lie between different objects, as the head states its affinities."""
    limits = np.array(head.limits, np.float32)[:, None, None, None]
    return [(box >= limits) == head.repulsive for box in boxes]


def _sum(a: Triple, b: Triple) -> Triple:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _together(cut: NDArray[np.bool_], places: Sequence[tuple[int, Triple]]) -> NDArray[np.bool_] | None:
    """Return the edges of each square ``(edge, z, y, x)``, of channels shifted by some voxels; None if no square fits."""
    shifts = [shift for _, shift in places]
    low = [max(0, *(-shift[axis] for shift in shifts)) for axis in range(3)]
    high = [length - max(0, *(shift[axis] for shift in shifts)) for axis, length in enumerate(cut.shape[1:])]
    if any(start >= stop for start, stop in zip(low, high, strict=True)):
        return None
    edges = []
    for channel, shift in places:
        z, y, x = (slice(start + step, stop + step) for start, stop, step in zip(low, high, shift, strict=True))
        edges.append(cut[channel, z, y, x])
    return np.stack(edges)
