"""Test connected components of a graph against a search from every node."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emseg_core.graph_components import connected_components, find_roots


@given(st.data())
def test_components_are_named_by_their_lowest_node(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    node = st.integers(0, count - 1)
    pairs = data.draw(st.lists(st.tuples(node, node), max_size=20))
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    expected = []
    for start in range(count):
        seen = {start}
        while further := {b for a, b in [*pairs, *((b, a) for a, b in pairs)] if a in seen} - seen:
            seen |= further
        expected.append(min(seen))
    assert connected_components(count, one, other).tolist() == expected


@given(st.permutations(range(9)), st.integers(1, 9))
def test_roots_of_paths_of_any_length(order: list[int], ends: int) -> None:
    """Some order of the nodes has each parent before its children."""
    parents = np.arange(9)
    for place, node in enumerate(order[ends:], ends):
        parents[node] = order[place - ends]
    expected = [order[order.index(node) % ends] for node in range(9)]
    assert find_roots(parents).tolist() == expected
