"""Compare two partitions of the same pixels: Rand scores, information scores, variation of information; NumPy only.

Let p_ij be the share of pixels in segment i of the proposal S and segment j of the truth T, let s_i and t_j be the shares of
these segments, and let I and H be mutual information and entropy:

    V_Rand           sum p_ij^2 / (1/2 sum s_i^2 + 1/2 sum t_j^2)        V_Info           2 I(S; T) / (H(S) + H(T))
        split        sum p_ij^2 / sum t_j^2                                  split        I(S; T) / H(S)
        merge        sum p_ij^2 / sum s_i^2                                  merge        I(S; T) / H(T)

Each is 1 for equal partitions. A split score falls if a true segment is broken into pieces, a merge score if a proposed
segment covers several true ones; the combined score is their harmonic mean. From Arganda-Carreras et al. 2015, equations 3
to 6, doi:10.3389/fnana.2015.00142.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.metrics.components import Labels


@dataclass(frozen=True, slots=True)
class Overlap:
    """Numbers of pixels that pairs of segments share: a contingency table without its zeros."""

    shared: NDArray[np.int64]
    """Pixels in both segments of a pair, ``(pair,) int64``."""
    proposed: NDArray[np.int64]
    """Pixels in each segment of the proposal, ``(segment,) int64``."""
    true: NDArray[np.int64]
    """Pixels in each segment of the truth, ``(segment,) int64``."""

    @property
    def pixels(self) -> int:
        """Number of pixels that are scored."""
        return int(self.true.sum())


def overlap(proposal: Labels, truth: Labels) -> Overlap:
    """Compute the overlap of two partitions where the truth has a segment.

    This is the *foreground-restricted* scoring of the challenge: pixels on the truth's borders are not counted. Elsewhere, each
    pixel that the proposal calls border is a segment of its own.

    Parameters
    ----------
    proposal, truth
        Segment of each pixel, ``int64`` of one shape; 0 is border.

    Returns
    -------
    Overlap
        The contingency table.

    Raises
    ------
    ValueError
        If the shapes differ, or the truth has no segment.

    Examples
    --------
    The proposal merges both segments of the truth, and has one border pixel inside the second:

    >>> table = overlap(np.array([5, 5, 5, 5, 0]), np.array([1, 1, 0, 2, 2]))
    >>> table.shared.tolist(), table.proposed.tolist(), table.true.tolist()
    ([2, 1, 1], [3, 1], [2, 2])
    """
    if proposal.shape != truth.shape:
        raise ValueError(f"the proposal has shape {proposal.shape}, but the truth has shape {truth.shape}")
    inside = truth != 0
    if not inside.any():
        raise ValueError("the truth has no segment, so there is nothing to compare")
    true, proposed = _numbered(truth[inside]), proposal[inside]
    border = proposed == 0
    proposed = _numbered(proposed)
    proposed[border] = proposed.max() + 1 + np.arange(np.count_nonzero(border))
    wide = int(proposed.max()) + 1
    _, shared = np.unique(true * wide + proposed, return_counts=True)
    return Overlap(shared, *(counted[counted > 0] for counted in (np.bincount(proposed), np.bincount(true))))


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of an overlap. For V scores, 1 is best; for errors and variations, 0."""

    rand: float
    """V_Rand."""
    rand_split: float
    """Falls if a true segment is broken into pieces."""
    rand_merge: float
    """Falls if a proposed segment covers several true ones."""
    info: float
    """V_Info."""
    info_split: float
    """Same as `rand_split`, for information."""
    info_merge: float
    """Same as `rand_merge`, for information."""
    variation_split: float
    """H(S | T) in bits: the part of the variation of information that is due to splits."""
    variation_merge: float
    """H(T | S) in bits: the part that is due to merges."""
    rand_error: float
    """Share of pairs of pixels on which the partitions disagree, 1 - Rand index (Rand 1971, doi:10.2307/2284239)."""
    adapted_rand_error: float
    """1 - F-score of the pairs of different pixels that lie in one segment."""

    @property
    def variation(self) -> float:
        """Variation of information in bits (Meila 2007, doi:10.1016/j.jmva.2006.11.013)."""
        return self.variation_split + self.variation_merge


def scores(table: Overlap) -> Scores:
    """Compute the scores of two partitions.

    Parameters
    ----------
    table
        Overlap of the partitions.

    Returns
    -------
    Scores
        All scores.

    Examples
    --------
    Of four pixels, the truth has two in each of two segments, the proposal all in one: sum p^2 = 1/2, sum s^2 = 1, sum t^2
    = 1/2. Of the six pairs, two are together correctly and four wrongly.

    >>> found = scores(overlap(np.array([1, 1, 1, 1]), np.array([1, 1, 2, 2])))
    >>> found.rand_split, found.rand_merge, round(found.rand, 3)
    (1.0, 0.5, 0.667)
    >>> found.info, found.variation_merge, round(found.rand_error, 3), found.adapted_rand_error
    (0.0, 1.0, 0.667, 0.5)
    """
    n = table.pixels
    both, proposed, true = (
        float(np.sum(counts.astype(np.float64) ** 2)) for counts in (table.shared, table.proposed, table.true)
    )
    joint, own, wanted = (_entropy(counts, n) for counts in (table.shared, table.proposed, table.true))
    mutual = max(0.0, own + wanted - joint)  # rounding may leave a small negative number
    return Scores(
        rand=2 * both / (proposed + true),
        rand_split=both / true,
        rand_merge=both / proposed,
        info=_share(2 * mutual, own + wanted),
        info_split=_share(mutual, own),
        info_merge=_share(mutual, wanted),
        variation_split=max(0.0, joint - wanted),
        variation_merge=max(0.0, joint - own),
        rand_error=(proposed + true - 2 * both) / (n * (n - 1)) if n > 1 else 0.0,
        adapted_rand_error=1 - _share(2 * (both - n), proposed + true - 2 * n),
    )


def _numbered(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber a partition with small integers."""
    if labels.size and int(labels.max()) < 4 * labels.size:
        return labels.astype(np.int64)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _entropy(counts: NDArray[np.int64], total: int) -> float:
    """Return the entropy in bits of a partition with these counts."""
    shares = counts / total
    return float(-np.sum(shares * np.log2(shares)))


def _share(part: float, whole: float) -> float:
    """Return a ratio; 1 for 0 / 0, since partitions without any choice agree."""
    return part / whole if whole else 1.0
