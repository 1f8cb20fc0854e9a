"""How alike two partitions of the same pixels are: Rand scores, information scores, variation of information; NumPy only.

With p_ij the share of pixels that lie in segment i of the proposal S and in segment j of the truth T, s_i and t_j the
shares of these segments, and I and H mutual information and entropy:

    V_Rand           sum p_ij^2 / (1/2 sum s_i^2 + 1/2 sum t_j^2)        V_Info           2 I(S; T) / (H(S) + H(T))
        split        sum p_ij^2 / sum t_j^2                                  split        I(S; T) / H(S)
        merge        sum p_ij^2 / sum s_i^2                                  merge        I(S; T) / H(T)

Each is 1 for equal partitions. A split score falls where one true segment is in pieces, a merge score where a proposed
segment lies in several true ones; the whole is their harmonic mean. From Arganda-Carreras et al. 2015, equations 3 to 6,
doi:10.3389/fnana.2015.00142.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.metrics.components import Labels


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many pixels each pair of segments shares; a contingency table without its zeros."""

    shared: NDArray[np.int64]
    """Pixels in both segments of a pair, ``(pair,) int64``."""
    proposed: NDArray[np.int64]
    """Pixels in each segment of the proposal, ``(segment,) int64``."""
    true: NDArray[np.int64]
    """Pixels in each segment of the truth, ``(segment,) int64``."""

    @property
    def pixels(self) -> int:
        """Pixels that are scored."""
        return int(self.true.sum())


def overlap(proposal: Labels, truth: Labels) -> Overlap:
    """The overlap of two partitions where the truth has a segment.

    That is the *foreground-restricted* scoring of the challenge: pixels on the truth's borders do not count. A pixel there
    that the proposal calls border is a segment of its own.

    Parameters
    ----------
    proposal, truth
        Number of the segment of each pixel, ``int64`` of one shape; 0 is border.

    Raises
    ------
    ValueError
        If the shapes differ, or the truth has no segment.

    Examples
    --------
    The proposal joins both segments of the truth, and has one border pixel inside the second:

    >>> table = overlap(np.array([5, 5, 5, 5, 0]), np.array([1, 1, 0, 2, 2]))
    >>> table.shared.tolist(), table.proposed.tolist(), table.true.tolist()
    ([2, 1, 1], [3, 1], [2, 2])
    """
    if proposal.shape != truth.shape:
        raise ValueError(f"the proposal has shape {proposal.shape}, but the truth {truth.shape}")
    inside = truth != 0
    if not inside.any():
        raise ValueError("partitions cannot be compared where the truth has no segment")
    true, proposed = _numbered(truth[inside]), proposal[inside]
    border = proposed == 0
    proposed = _numbered(proposed)
    proposed[border] = proposed.max() + 1 + np.arange(np.count_nonzero(border))
    wide = int(proposed.max()) + 1
    _, shared = np.unique(true * wide + proposed, return_counts=True)
    return Overlap(shared, *(counted[counted > 0] for counted in (np.bincount(proposed), np.bincount(true))))


@dataclass(frozen=True, slots=True)
class Scores:
    """What an overlap comes to; V scores are 1 at best, errors and variations 0."""

    rand: float
    """V_Rand."""
    rand_split: float
    """Falls where a true segment is in pieces."""
    rand_merge: float
    """Falls where a proposed segment lies in several true ones."""
    info: float
    """V_Info."""
    info_split: float
    """As `rand_split`."""
    info_merge: float
    """As `rand_merge`."""
    variation_split: float
    """H(S | T) in bits: what it takes to tell the piece of a true segment; a part of the variation of information."""
    variation_merge: float
    """H(T | S) in bits."""
    rand_error: float
    """Share of the pairs of pixels on which the partitions disagree, 1 - Rand index (Rand 1971, doi:10.2307/2284239)."""
    adapted_rand_error: float
    """1 - F-score of the pairs of different pixels that lie in one segment."""

    @property
    def variation(self) -> float:
        """Variation of information in bits (Meila 2007, doi:10.1016/j.jmva.2006.11.013)."""
        return self.variation_split + self.variation_merge


def scores(table: Overlap) -> Scores:
    """The scores of two partitions.

    Examples
    --------
    Four pixels, of which the truth has two in each segment and the proposal all in one: sum p^2 = 1/2, sum s^2 = 1, sum t^2
    = 1/2. Of the six pairs, two are rightly together, and four wrongly.

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
    mutual = max(0.0, own + wanted - joint)  # rounding may leave a little less than nothing
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
    """The same partition with low numbers."""
    if labels.size and int(labels.max()) < 4 * labels.size:
        return labels.astype(np.int64)
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _entropy(counts: NDArray[np.int64], total: int) -> float:
    """Entropy in bits of parts of a whole."""
    shares = counts / total
    return float(-np.sum(shares * np.log2(shares)))


def _share(part: float, whole: float) -> float:
    """A share; 1 of nothing, as partitions without any choice agree."""
    return part / whole if whole else 1.0
