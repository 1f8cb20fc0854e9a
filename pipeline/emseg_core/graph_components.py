"""Connected components of a graph, from its edges; NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]
"""Numbers of nodes, counted from 0."""


def connected_components(count: int, one: Nodes, other: Nodes) -> Nodes:
    """Find the connected components of a graph.

    Each round, every root is attached to the lowest root beside it, then all paths are compressed.

    Parameters
    ----------
    count
        Number of nodes.
    one, other
        The two ends of each edge, ``(edges,) int64``.

    Returns
    -------
    ndarray
        The lowest node in the component of each node, ``(count,) int64``.

    Examples
    --------
    >>> connected_components(5, np.array([4, 1]), np.array([1, 2])).tolist()
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
        roots = find_roots(roots)


def find_roots(parents: Nodes) -> Nodes:
    """Find the root of each node of a forest by pointer jumping, which halves every path in each round.

    Parameters
    ----------
    parents
        Parent of each node, ``(n,) int64``; a root is its own parent.

    Returns
    -------
    ndarray
        Root of each node, ``(n,) int64``.
    """
    while np.any((grandparents := parents[parents]) != parents):
        parents = grandparents
    return parents
