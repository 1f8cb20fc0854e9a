"""What hangs together, over any number of joints between two of many nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]


def joined(count: int, one: Nodes, other: Nodes) -> Nodes:
    """The lowest node ``(count,) int64`` that each node hangs together with, by joints ``one[i]``, ``other[i]``.

    Examples
    --------
    >>> joined(5, np.array([4, 1]), np.array([1, 2])).tolist()
    [0, 1, 1, 3, 1]
    """
    roots = np.arange(count)
    while True:
        one, other = roots[one], roots[other]
        apart = one != other
        if not apart.any():
            return roots
        one, other = one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        roots = roots_of(roots)


def roots_of(into: Nodes) -> Nodes:
    """Where each chain of nodes ends, ``(n,) int64``; ``into[i]`` is what follows ``i``, at an end itself.

    Chains are halved until they end.
    """
    while np.any((further := into[into]) != into):
        into = further
    return into
