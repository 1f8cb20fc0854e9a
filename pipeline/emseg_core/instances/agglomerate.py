"""Agglomeration of segments by mean boundary probability, lowest first, in an order that does not depend on blocks.

The mean over a merged contact is never below the lower of the means that it combines. Therefore two segments that are each
other's nearest neighbour can be merged no matter in which order everything around them is merged: no merge elsewhere brings
anything nearer to either. A block may merge the segments that it sees completely before the rest is known, and the result is
that of one greedy pass over the whole volume.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from emseg_core.graph_components import find_roots
from emseg_core.grid.stitch import QUANTA
from emseg_core.instances.contacts import Contacts, Indices


def agglomerate(
    count: int, contacts: Contacts, threshold: float, open_: NDArray[np.bool_]
) -> tuple[Indices, NDArray[np.bool_]]:
    """Merge pairs of segments, the lowest mean boundary first, while it is below a threshold.

    Equal means are merged in the order of the first faces of their contacts.

    Parameters
    ----------
    count
        Number of segments, which are numbered from 0.
    contacts
        Contacts between segments.
    threshold
        A probability, 0 to 1.
    open_
        Segments whose contacts are not all known, ``(count,) bool``.

    Returns
    -------
    names
        Name of the merged segment that each segment belongs to, ``(count,) int64``: its smallest member.
    undecided
        Merged segments that might merge further once all contacts are known, by name, ``(count,) bool``. All others are final.
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
            continue  # outdated: merged or changed since it was pushed
        kept, gone = ends[edge]
        if waiting[kept] or waiting[gone]:  # a segment whose nearest neighbour waits has to wait, too
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
    roots = find_roots(np.array(into, np.int64))
    names = smallest_of(roots)
    undecided = np.zeros(count, bool)
    undecided[names[np.flatnonzero(waiting)]] = True
    return names, undecided


def smallest_of(roots: Indices) -> Indices:
    """Find the smallest member of the set that each element belongs to.

    Parameters
    ----------
    roots
        Root of each element, ``(n,) int64``; elements of a set share a root.

    Returns
    -------
    ndarray
        Smallest element of each element's set, ``(n,) int64``.
    """
    least = np.full(len(roots), len(roots), np.int64)
    np.minimum.at(least, roots, np.arange(len(roots)))
    return least[roots]
