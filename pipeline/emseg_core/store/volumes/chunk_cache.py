"""Cache of recently decompressed chunks, for the blocks that are read next.

Blocks overlap: each reads a context around its own voxels, in whole chunks. The threads of a process share one cache, and
wait for chunks that another thread is already reading.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.specs.volume import VolumeSpec

MAX_READ_BYTES = 2**24
"""Most bytes that one call reads, unless a chunk is larger: enough chunks to decompress many at once."""


class ChunkCache:
    """Reads a volume in whole chunks, and keeps the most recently used ones.

    A chunk is kept only once the call that read it has returned.
    """

    def __init__(self, spec: VolumeSpec, load: Callable[[Box], NDArray[Any]], limit: int) -> None:
        """Create an empty cache.

        Parameters
        ----------
        load
            Reads a box within the volume, ``(z, y, x)`` in the volume's type; threads may call it at the same time.
        limit
            Most bytes to keep; nothing is kept if that is less than a chunk.
        """
        self._spec = spec
        self._load = load
        self._limit = limit
        self._kept: OrderedDict[Triple, NDArray[Any]] = OrderedDict()
        self.kept_bytes = 0
        """Bytes of the chunks in the cache."""
        self._loading: set[Triple] = set()
        self._changed = Condition()
        self.decoded_bytes = 0
        """Bytes of all chunks decompressed so far, counted each time."""

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box within the volume.

        Parameters
        ----------
        box
            A box within the volume.

        Returns
        -------
        ndarray
            Voxels ``(z, y, x)`` of the volume's type, in an array that the caller owns.

        Raises
        ------
        Exception
            What `load` raises.
        """
        places = box.cells(self._spec.chunk)
        if self._spec.chunk_bytes > self._limit:
            self._count(sum(self._box(place).voxels for place in places))
            return self._load(box)
        values = np.empty(box.shape, self._spec.dtype)
        missing = places
        while missing := [place for place in missing if not self._paste_kept(place, box, values)]:
            if claimed := self._claim(missing):
                self._fetch(claimed, box, values)
                missing = [place for place in missing if place not in claimed]
            else:
                self._wait(missing)
        return values

    def _paste_kept(self, place: Triple, box: Box, values: NDArray[Any]) -> bool:
        """Copy a chunk's voxels to `values` if it is in the cache; return whether it is."""
        with self._changed:
            chunk = self._kept.get(place)
            if chunk is None:
                return False
            self._kept.move_to_end(place)
        self._paste(place, chunk, box, values)
        return True

    def _claim(self, places: Collection[Triple]) -> set[Triple]:
        """Claim those of these chunks that are neither in the cache nor being read; the caller must read them."""
        with self._changed:
            claimed = {place for place in places if place not in self._loading and place not in self._kept}
            self._loading |= claimed
        return claimed

    def _wait(self, places: Collection[Triple]) -> None:
        """Wait until other threads have read one of these chunks, or failed to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._loading.issuperset(places))

    def _fetch(self, claimed: set[Triple], box: Box, values: NDArray[Any]) -> None:
        """Read claimed chunks in few calls, keep them, and copy their voxels of `box` to `values`."""
        remaining = set(claimed)
        try:
            for group in merge_boxes(claimed, max(1, MAX_READ_BYTES // (self._spec.chunk_bytes * self._spec.together))):
                places = group.cells((1, 1, 1))
                whole = Box(self._box(places[0]).start, self._box(places[-1]).stop)
                self._count(whole.voxels)
                read = self._load(whole)
                for place in places:
                    # a copy, as a view would keep everything that was read with it
                    chunk = read[self._box(place).relative_to(whole.start).slices()].copy()
                    self._paste(place, chunk, box, values)
                    self._keep(place, chunk)
                    remaining.discard(place)  # from now on another thread may read it again
        finally:
            with self._changed:
                self._loading -= remaining
                self._changed.notify_all()

    def _keep(self, place: Triple, chunk: NDArray[Any]) -> None:
        """Keep a chunk, and drop the least recently used ones."""
        with self._changed:
            self._loading.discard(place)
            self._kept[place] = chunk
            self.kept_bytes += chunk.nbytes
            while self.kept_bytes > self._limit:
                self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._changed.notify_all()

    def _paste(self, place: Triple, chunk: NDArray[Any], box: Box, values: NDArray[Any]) -> None:
        """Copy the voxels of a chunk that are in `box` to `values`."""
        whole = self._box(place)
        shared = whole.intersect(box)
        values[shared.relative_to(box.start).slices()] = chunk[shared.relative_to(whole.start).slices()]

    def _box(self, place: Triple) -> Box:
        """Return the voxels of a chunk, cut short at the volume's far end."""
        return Box.at(place, self._spec.chunk).intersect(self._spec.box)

    def _count(self, voxels: int) -> None:
        """Count decompressed voxels."""
        with self._changed:
            self.decoded_bytes += voxels * self._spec.itemsize * self._spec.together


def merge_boxes(places: Collection[Triple], most: int) -> list[Box]:
    """Cover cells of a grid with few boxes.

    Parameters
    ----------
    places
        Index (z, y, x) of each cell.
    most
        Most cells in a box.

    Returns
    -------
    list of Box
        Boxes that contain each cell once, and nothing else.

    Examples
    --------
    >>> [str(box) for box in merge_boxes([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 1)], most=8)]
    ['0:1,0:2,0:2', '0:1,2:3,1:2']
    """
    boxes = [Box(place, triple(i + 1 for i in place)) for place in places]
    for axis in (2, 1, 0):
        merged: list[Box] = []
        boxes.sort(key=lambda box: (box.start[:axis], box.start[axis + 1 :], box.stop[axis + 1 :], box.start[axis]))
        for box in boxes:
            if merged and merged[-1].voxels + box.voxels <= most and _follows(box, merged[-1], axis):
                merged[-1] = Box(merged[-1].start, box.stop)
            else:
                merged.append(box)
        boxes = merged
    return boxes


def _follows(box: Box, other: Box, axis: int) -> bool:
    """Return whether a box starts where the other ends along an axis, and is the same along the others."""
    return all(
        (start, stop) == (a, b) if i != axis else start == b
        for i, (start, stop, a, b) in enumerate(zip(box.start, box.stop, other.start, other.stop, strict=True))
    )
