"""Warping error: topological errors of a border map, regardless of where exactly the borders run; NumPy only.

The truth is warped towards the proposal pixel by pixel, without changing its topology: a pixel is flipped only if it is
*simple*, so that no segment and no border is split, merged, created or lost. Where truth and proposal still differ in the end,
the proposal has another topology. Jain et al. 2010, Boundary learning by optimization with topological constraints,
doi:10.1109/CVPR.2010.5539950.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
"""Steps (y, x) to the eight neighbours, around the pixel; those at odd positions share an edge with it."""


@dataclass(frozen=True, slots=True)
class Warped:
    """Numbers of pixels that no warping explains."""

    opened: int
    """Border in the warped truth, inside in the proposal: segments are merged, or a border was lost."""
    closed: int
    """Inside in the warped truth, border in the proposal: a segment is split, or was lost."""
    pixels: int
    """Number of pixels that are scored."""

    @property
    def error(self) -> float:
        """Warping error, the share of pixels that no warping explains; 0 if there are no pixels."""
        return (self.opened + self.closed) / self.pixels if self.pixels else 0.0


def warped_truth(proposal: NDArray[np.bool_], truth: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Warp the truth towards the proposal as far as its topology allows.

    Segments are 4-connected and borders 8-connected, as in `emseg_core.metrics.components`. Everything outside the slice is
    border. Simple pixels that differ are flipped, in turn for the four positions in squares of 2 x 2 pixels, until none is
    left. Pixels of one turn are not neighbours, so each is still simple when the others are flipped. Another order may
    leave a few pixels more or less: the minimum is hard to find, and Jain et al. descend as well.

    Only pixels that differ are flipped. A border is therefore moved as far as it touches or overlaps the proposal's, but a thin
    border drawn two pixels away is not.

    Parameters
    ----------
    proposal, truth
        Whether a pixel is inside a segment, ``(y, x) bool``.
    known
        Whether a pixel is scored, ``(y, x) bool``; others are never flipped.

    Returns
    -------
    ndarray
        Whether a pixel of the warped truth is inside a segment, ``(y, x) bool``.
    """
    width = truth.shape[1] + 2
    padded = np.pad(truth, 1)
    warped, wanted = padded.ravel(), np.pad(proposal, 1).ravel()
    ring = np.array([y * width + x for y, x in RING])
    differing = np.flatnonzero((warped != wanted) & np.pad(known, 1).ravel())
    turn = differing // width % 2 * 2 + differing % width % 2
    turns = [differing[turn == which] for which in range(4)]
    moving = True
    while moving:
        moving = False
        for which, pixels in enumerate(turns):
            simple = SIMPLE[warped[pixels[:, None] + ring] @ BITS]
            warped[pixels[simple]] ^= True
            turns[which] = pixels[~simple]
            moving = moving or bool(simple.any())
    return padded[1:-1, 1:-1].copy()


def warp(proposal: NDArray[np.bool_], truth: NDArray[np.bool_], known: NDArray[np.bool_]) -> Warped:
    """Count the pixels that no warping of the truth explains.

    Parameters
    ----------
    proposal, truth
        Whether a pixel is inside a segment, ``(y, x) bool``.
    known
        Whether a pixel is scored, ``(y, x) bool``.

    Returns
    -------
    Warped
        Counts by the kind of error.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    A border that is shifted by one pixel is not an error, but one with a hole is:

    >>> truth, known = np.array([[1, 1, 0, 1, 1]] * 3, bool), np.ones((3, 5), bool)
    >>> warp(np.roll(truth, 1, axis=1), truth, known).error
    0.0
    >>> holed = truth.copy()
    >>> holed[1, 2] = True
    >>> warp(holed, truth, known)
    Warped(opened=1, closed=0, pixels=15)
    """
    if not proposal.shape == truth.shape == known.shape:
        raise ValueError(
            f"proposal, truth and known must have one shape, not {proposal.shape}, {truth.shape} and {known.shape}"
        )
    warped = warped_truth(proposal, truth, known)
    opened, closed = (int(np.count_nonzero(left & known)) for left in (proposal & ~warped, warped & ~proposal))
    return Warped(opened, closed, int(np.count_nonzero(known)))


def is_simple(ring: tuple[int, ...]) -> bool:
    """Test whether flipping a pixel keeps the topology.

    It does if, among the eight neighbours, exactly one 4-connected piece of the inside shares an edge with the pixel, and not
    all eight are inside (Rosenfeld 1970, doi:10.1145/321556.321570). Then exactly one 8-connected piece of the border touches
    it, too.

    Parameters
    ----------
    ring
        The eight neighbours in the order of `RING`; 1 is inside, 0 is border.

    Returns
    -------
    bool
        Whether the pixel is simple.

    Examples
    --------
    >>> is_simple((1, 1, 1, 0, 0, 0, 0, 0)), is_simple((0, 1, 0, 0, 0, 1, 0, 0))
    (True, False)
    """
    # each piece is counted at its first neighbour that shares an edge with the pixel
    return sum(bool(ring[place] and not (ring[place - 1] and ring[place - 2])) for place in range(1, 8, 2)) == 1


BITS = 1 << np.arange(8)
"""Value of each position in `RING`, ``(8,) int64``."""
SIMPLE = np.array([is_simple(tuple(code >> bit & 1 for bit in range(8))) for code in range(256)])
"""Whether a pixel is simple, ``(256,) bool``, indexed by the sum of the `BITS` of its neighbours inside."""
