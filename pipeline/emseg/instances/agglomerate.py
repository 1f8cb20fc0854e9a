"""Merging segments by the mean boundary between them, lowest first, in an order that blocks cannot change.

The mean over a merged contact is never below the lower of the means that it is made of. So two segments each of which is the
other's nearest are merged in any order of all that goes on around them: nothing that happens elsewhere brings something
nearer to either. A block may therefore merge what it sees whole, long before anybody has seen the rest, and the end is that of
one greedy pass over the whole volume.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from emseg.grid.stitch import QUANTA
from emseg.instances.contacts import Contacts, Indices
from emseg.joining import roots_of


def agglomerate(
    count: int, contacts: Contacts, threshold: float, open_: NDArray[np.bool_]
) -> tuple[Indices, NDArray[np.bool_]]:
    """Merges pairs of segments, the lowest mean boundary first, while that is below a threshold.

    Equal means are merged in the order of their contacts' first faces.

    Parameters
    ----------
    count
        Segments are numbered from 0 to `count` - 1.
    threshold
        A probability, 0 to 1.
    open_
        Segments ``(count,) bool`` of which not all contacts are known.

    Returns
    -------
    names
        The smallest number of each segment's merged segment, ``(count,) int64``.
    undecided
        Merged segments, by their names, ``(count,) bool``, that might merge further once all contacts are known. All others
        are what they will be.
    """
    limit = threshold * QUANTA
    total, number, face = contacts.total.tolist(), contacts.count.tolist(), contacts.face.tolist()
    ends = [list(pair) for pair in zip(contacts.one.tolist(), contacts.other.tolist(), strict=True)]
    around: list[dict[int, int]] = [{} for _ in range(count)]
    for edge, (one, other) in enumerate(ends):
        around[one][other] = around[other][one] = edge
    means: list[float | None] = (contacts.total / np.maximum(contacts.count, 1)).tolist()
    heap = [(mean, face[edge], edge) for edge, mean in enumerate(means) if mean is not None and mean < limit]
    heapq.heapify(heap)
    waiting, into = open_.tolist(), list(range(count))
    while heap:
        mean, first, edge = heapq.heappop(heap)
        if means[edge] != mean or face[edge] != first:
            continue  # merged, or changed since
        kept, gone = ends[edge]
        if waiting[kept] or waiting[gone]:  # and whatever one of them is nearest to has to wait as well
            waiting[kept] = waiting[gone] = True
            continue
        if len(around[kept]) < len(around[gone]):
            kept, gone = gone, kept
        into[gone], means[edge] = kept, None
        near = around[kept]
        del near[gone], around[gone][kept]
        for third, moved in around[gone].items():
            del around[third][gone]
            here = near.get(third)
            if here is None:
                near[third] = around[third][kept] = moved
                ends[moved][ends[moved].index(gone)] = kept
                continue
            total[here] += total[moved]
            number[here] += number[moved]
            face[here] = min(face[here], face[moved])
            means[moved], means[here] = None, total[here] / number[here]
            if means[here] < limit:
                heapq.heappush(heap, (means[here], face[here], here))
        around[gone] = {}
    roots = roots_of(np.array(into, np.int64))
    names = smallest_of(roots)
    undecided = np.zeros(count, bool)
    undecided[names[np.flatnonzero(waiting)]] = True
    return names, undecided


def smallest_of(roots: Indices) -> Indices:
    """The smallest member of each member's set, ``(n,) int64``, of sets that share a root."""
    least = np.full(len(roots), len(roots), np.int64)
    np.minimum.at(least, roots, np.arange(len(roots)))
    return least[roots]
