"""Which nodes hang together, against a walk from node to node."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emseg.joining import joined, roots_of


@given(st.data())
def test_the_lowest_node_that_each_is_joined_to(data: st.DataObject) -> None:
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
    assert joined(count, one, other).tolist() == expected


@given(st.permutations(range(9)), st.integers(1, 9))
def test_where_chains_end(order: list[int], ends: int) -> None:
    """Chains of any length: each node is followed by one that comes before it in some order."""
    into = np.arange(9)
    for place, node in enumerate(order[ends:], ends):
        into[node] = order[place - ends]
    expected = [order[order.index(node) % ends] for node in range(9)]
    assert roots_of(into).tolist() == expected
