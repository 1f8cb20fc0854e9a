"""Test reading shards of remote stores in parts: each voxel once, with a bounded number of concurrent requests."""

from __future__ import annotations

import threading
from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emseg_core.box import Box, triple
from emseg_core.store.volumes.concurrent_reads import MAX_CONCURRENT_READS, read_concurrently, split_requests

LENGTHS = st.tuples(*[st.integers(1, 4)] * 3)
CORNERS = st.tuples(*[st.integers(0, 9)] * 3)
VALUES = np.arange(24**3, dtype=np.int32).reshape(24, 24, 24)


@given(chunk=LENGTHS, chunks=LENGTHS, start=CORNERS, shape=LENGTHS)
def test_each_voxel_is_in_one_part(
    chunk: tuple[int, int, int], chunks: tuple[int, int, int], start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    """Each part is in one shard: all of its requested chunks, or one of them."""
    shard = triple(a * b for a, b in zip(chunk, chunks, strict=True))
    box = Box.of_shape(triple(3 * length for length in shape)).shift(start)
    seen = np.zeros(box.shape, int)
    for part in split_requests(box, chunk, shard):
        seen[part.relative_to(box.start).slices()] += 1
        assert len(places(part, shard)) == 1
        assert len(places(part, chunk)) in (1, np.prod(chunks))
    assert (seen == 1).all()


def places(box: Box, length: tuple[int, int, int]) -> set[tuple[int, ...]]:
    """Return which chunks of this shape a box touches."""
    voxels = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)), indexing="ij"), -1)
    return set(map(tuple, (voxels.reshape(-1, 3) // length).tolist()))


def test_what_is_read() -> None:
    box = Box((1, 2, 3), (20, 21, 22))
    most, now, changing = 0, 0, threading.Lock()

    def read(part: Box) -> NDArray[Any]:
        nonlocal most, now
        with changing:
            now += 1
            most = max(most, now)
        found = VALUES[part.slices()]
        with changing:
            now -= 1
        return found

    np.testing.assert_array_equal(read_concurrently(read, box, (2, 3, 4), (8, 9, 8), "int32"), VALUES[box.slices()])
    assert 1 <= most <= MAX_CONCURRENT_READS


def test_the_first_failure_ends_it() -> None:
    asked: list[Box] = []

    def read(part: Box) -> NDArray[Any]:
        asked.append(part)
        sleep(0.01)
        raise OSError(5, f"broken at {part}")

    with pytest.raises(OSError, match="broken at 0:1,0:1,0:1"):
        read_concurrently(read, Box.of_shape((9, 9, 9)), (1, 1, 1), (10, 10, 10), "int32")
    assert len(asked) < 100
