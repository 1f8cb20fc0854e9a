"""Chunks that were decompressed a short while ago, kept for the blocks that come next.

Blocks overlap: each reads a context beyond its own voxels, and whole chunks of that. The threads of a process share one
cache; what one of them is reading, the others wait for.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.specs.volume import VolumeSpec

CALL_BYTES = 2**24
"""Most bytes that one call reads where that is more than a chunk: enough chunks to decompress many at once."""


class ChunkCache:
    """The voxels of a volume, read as whole chunks, of which the last ones used are kept.

    A chunk is kept only once the call that read it has returned.
    """

    def __init__(self, spec: VolumeSpec, load: Callable[[Box], NDArray[Any]], limit: int) -> None:
        """Nothing is kept where `limit`, in bytes, is less than a chunk.

        Parameters
        ----------
        load
            Reads a box within the volume, ``(z, y, x)`` in the volume's type; threads may call it at the same time.
        """
        self._spec = spec
        self._load = load
        self._limit = limit
        self._kept: OrderedDict[Triple, NDArray[Any]] = OrderedDict()
        self._kept_bytes = 0
        self._coming: set[Triple] = set()
        self._changed = Condition()
        self._decoded_bytes = 0

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all chunks decompressed so far, each as often as it was."""
        return self._decoded_bytes

    @property
    def kept_bytes(self) -> int:
        """Bytes of the chunks that are kept."""
        return self._kept_bytes

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box within the volume, ``(z, y, x)``; the caller owns the array.

        Raises
        ------
        Exception
            What `load` raises.
        """
        places = places_of(box, self._spec.chunk)
        if self._spec.chunk_bytes > self._limit:
            self._count(sum(self._box(place).voxels for place in places))
            return self._load(box)
        values = np.empty(box.shape, self._spec.dtype)
        left = list(places)
        while left := [place for place in left if not self._paste_kept(place, box, values)]:
            if mine := self._claim(left):
                self._fetch(mine, box, values)
                left = [place for place in left if place not in mine]
            else:
                self._wait(left)
        return values

    def _paste_kept(self, place: Triple, box: Box, values: NDArray[Any]) -> bool:
        """Whether a chunk is kept; its voxels are in `values` then."""
        with self._changed:
            chunk = self._kept.get(place)
            if chunk is None:
                return False
            self._kept.move_to_end(place)
        self._paste(place, chunk, box, values)
        return True

    def _claim(self, places: Collection[Triple]) -> set[Triple]:
        """Those of these chunks that nobody has or is reading; this thread reads them now."""
        with self._changed:
            mine = {place for place in places if place not in self._coming and place not in self._kept}
            self._coming |= mine
        return mine

    def _wait(self, places: Collection[Triple]) -> None:
        """Wait until other threads have read one of these chunks, or failed to."""
        with self._changed:
            self._changed.wait_for(lambda: not self._coming.issuperset(places))

    def _fetch(self, mine: set[Triple], box: Box, values: NDArray[Any]) -> None:
        """Read claimed chunks in few calls, keep them, and paste their voxels of `box`."""
        rest = set(mine)
        try:
            for group in merge(mine, max(1, CALL_BYTES // (self._spec.chunk_bytes * self._spec.together))):
                places = list(_span(group))
                whole = Box(self._box(places[0]).start, self._box(places[-1]).stop)
                self._count(whole.voxels)
                read = self._load(whole)
                for place in places:
                    # a copy: a view would keep all that was read with it
                    chunk = read[self._box(place).relative_to(whole.start).slices()].copy()
                    self._paste(place, chunk, box, values)
                    self._keep(place, chunk)
                    rest.discard(place)  # from now on another thread may read it again
        finally:
            with self._changed:
                self._coming -= rest
                self._changed.notify_all()

    def _keep(self, place: Triple, chunk: NDArray[Any]) -> None:
        """Keep a chunk, and let go of those that were used longest ago."""
        with self._changed:
            self._coming.discard(place)
            self._kept[place] = chunk
            self._kept_bytes += chunk.nbytes
            while self._kept_bytes > self._limit:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._changed.notify_all()

    def _paste(self, place: Triple, chunk: NDArray[Any], box: Box, values: NDArray[Any]) -> None:
        whole = self._box(place)
        shared = whole.intersect(box)
        values[shared.relative_to(box.start).slices()] = chunk[shared.relative_to(whole.start).slices()]

    def _box(self, place: Triple) -> Box:
        """The voxels of a chunk, cut short at the volume's far end."""
        return Box.at(place, self._spec.chunk).intersect(self._spec.box)

    def _count(self, voxels: int) -> None:
        with self._changed:
            self._decoded_bytes += voxels * self._spec.itemsize * self._spec.together


def merge(places: Collection[Triple], most: int) -> list[Box]:
    """Few boxes that hold each of these places (z, y, x) once, and nothing else; none holds more than `most` places.

    Examples
    --------
    >>> [str(box) for box in merge([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 2, 1)], most=8)]
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
    """Whether a box begins where the other ends on an axis, and is alike on the others."""
    return all(
        (start, stop) == (a, b) if i != axis else start == b
        for i, (start, stop, a, b) in enumerate(zip(box.start, box.stop, other.start, other.stop, strict=True))
    )


def places_of(box: Box, chunk: Triple) -> list[Triple]:
    """Places (z, y, x) in the grid of chunks of those that a box touches."""
    spans = (range(a // length, -(-b // length)) for a, b, length in zip(box.start, box.stop, chunk, strict=True))
    return [triple(place) for place in itertools.product(*spans)]


def _span(group: Box) -> Iterator[Triple]:
    """Each place of a box, the first corner first and the last one last."""
    return map(triple, itertools.product(*(range(a, b) for a, b in zip(group.start, group.stop, strict=True))))
