"""Read shards of a remote store with several concurrent requests.

zarr 3.1 requests the chunks inside a shard one after another. On a remote store each costs a round trip, which takes ten times
as long as for chunks without shards, of which it requests ten at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple

MAX_CONCURRENT_READS = 10
"""Most concurrent requests, as many as zarr makes for chunks without shards."""


def split_requests(box: Box, chunk: Triple, shard: Triple, layers: int = 1) -> Iterator[Box]:
    """Split a box into the parts to request: a whole shard where all its chunks are needed, else each chunk.

    Parameters
    ----------
    box
        The voxels to read.
    chunk, shard
        Shapes (z, y, x), in voxels.
    layers
        Number of chunks that a shard has for the same voxels, of which one is needed.

    Yields
    ------
    Box
        A part of the box.

    Examples
    --------
    >>> [str(part) for part in split_requests(Box((0, 0, 0), (1, 4, 5)), (1, 2, 2), (1, 4, 4))]
    ['0:1,0:4,0:4', '0:1,0:2,4:5', '0:1,2:4,4:5']
    """
    for place in box.cells(shard):
        inside = Box.at(place, shard).intersect(box)
        chunks = inside.cells(chunk)
        if len(chunks) == layers * math.prod(shard) // math.prod(chunk):
            yield inside
        else:
            yield from (Box.at(each, chunk).intersect(inside) for each in chunks)


def read_concurrently(
    read: Callable[[Box], NDArray[Any]], box: Box, chunk: Triple, shard: Triple, dtype: str, layers: int = 1
) -> NDArray[Any]:
    """Read a box with concurrent requests, in threads.

    Parameters
    ----------
    read
        Reads a box.
    box
        The voxels to read.
    chunk, shard
        Shapes (z, y, x), in voxels.
    dtype
        Name of the NumPy type of the result.
    layers
        Number of chunks that a shard has for the same voxels, of which one is needed.

    Returns
    -------
    ndarray
        Voxels ``(z, y, x)``.

    Raises
    ------
    Exception
        The first one that `read` raises.
    """
    parts, voxels = list(split_requests(box, chunk, shard, layers)), np.empty(box.shape, dtype)
    pool = ThreadPoolExecutor(min(MAX_CONCURRENT_READS, len(parts)))
    try:
        for part, found in zip(parts, pool.map(read, parts), strict=True):
            voxels[part.relative_to(box.start).slices()] = found
    finally:
        pool.shutdown(cancel_futures=True)
    return voxels
