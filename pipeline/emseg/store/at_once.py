"""Reading what lies in shards of a remote store with several requests at once.

zarr 3.1 asks for the chunks inside a shard one after another, each when the last one has come. On a remote store that takes
as many round trips, ten times as long as chunks without shards, of which it asks for ten at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.store.chunk_cache import places_of

AT_ONCE = 10
"""Most requests at once, as zarr makes for chunks without shards."""


def parts_of(box: Box, chunk: Triple, shard: Triple, layers: int = 1) -> Iterator[Box]:
    """What is asked for at a time: where all chunks of a shard are needed all of it, else each chunk.

    Parameters
    ----------
    layers
        How many chunks a shard has at each place, of which one is needed.

    Examples
    --------
    >>> [str(part) for part in parts_of(Box((0, 0, 0), (1, 4, 5)), (1, 2, 2), (1, 4, 4))]
    ['0:1,0:4,0:4', '0:1,0:2,4:5', '0:1,2:4,4:5']
    """
    for place in places_of(box, shard):
        inside = Box.at(place, shard).intersect(box)
        chunks = places_of(inside, chunk)
        if len(chunks) == layers * math.prod(shard) // math.prod(chunk):
            yield inside
        else:
            yield from (Box.at(each, chunk).intersect(inside) for each in chunks)


def read_at_once(
    read: Callable[[Box], NDArray[Any]], box: Box, chunk: Triple, shard: Triple, dtype: str, layers: int = 1
) -> NDArray[Any]:
    """The voxels of a box, ``(z, y, x)``, in threads.

    Parameters
    ----------
    read
        Reads a box.
    layers
        How many chunks a shard has at each place, of which one is needed.

    Raises
    ------
    Exception
        What `read` raises first.
    """
    parts, voxels = list(parts_of(box, chunk, shard, layers)), np.empty(box.shape, dtype)
    pool = ThreadPoolExecutor(min(AT_ONCE, len(parts)))
    try:
        for part, found in zip(parts, pool.map(read, parts), strict=True):
            voxels[part.relative_to(box.start).slices()] = found
    finally:
        pool.shutdown(cancel_futures=True)
    return voxels
