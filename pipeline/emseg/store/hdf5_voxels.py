"""The voxels of HDF5 datasets, however these are stored: in one piece, in chunks, or put together of other datasets.

The library itself reads as the fill value what is not there: chunks that were never written, files of virtual datasets that
were not copied. It decompresses chunks as far as they go, and loads plugins for filters that a file names. So chunks and
virtual datasets are read here; all is looked at before the first voxel is.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES, LONGEST_AXIS
from emseg.store.decompress import inflate, unpack_lzf
from emseg.store.hdf5_links import OpenFiles

if TYPE_CHECKING:
    import h5py

Region = tuple[slice, ...]
"""Part of a dataset: where it starts and stops on each axis."""

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
"""Filters by their numbers: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md."""
ROOM = 2**16
"""What a filter may add to a chunk beside an eighth of it."""
DEEPEST = 8
"""Most virtual datasets one behind the other."""
MOST_STEPS = 2**22
"""Most steps of looking whether the parts of a virtual dataset cover it: some seconds."""


class Voxels:
    """A dataset that can be read whole, of any number of axes.

    Raises
    ------
    VolumeError
        If some of it is not there, lies in other files that are not beside this one, or is of a type, or stored in a way, that
        emseg does not read.
    """

    def __init__(
        self,
        files: OpenFiles,
        path: Path,
        stored: h5py.Dataset,
        allow_missing: bool = False,
        checked: set[tuple[Path, str]] | None = None,
        above: tuple[tuple[Path, int], ...] = (),
    ) -> None:
        """
        Parameters
        ----------
        allow_missing
            Whether chunks may never have been written, fewer than were; they are the fill value.
        checked
            Datasets that a virtual one is made of, and that are known to be sound; None to look at them when they are read.
        above
            Virtual datasets that this one belongs to.
        """
        self.name = f"{stored.name} of {path}"
        shape, dtype = stored.shape, stored.dtype.newbyteorder("=").name
        if shape is None or not shape or 0 in shape:
            raise VolumeError(f"{self.name} holds no voxel, its shape is {shape}: choose another dataset")
        if dtype not in DTYPES or not stored.id.get_type().equal(files.h5py.h5t.py_create(stored.dtype)):
            raise VolumeError(f"{self.name} is {dtype}, but emseg reads {', '.join(DTYPES)}: convert it first")
        if max(shape) > LONGEST_AXIS:
            raise VolumeError(f"{self.name} has shape {shape}, but an axis has 1 to {LONGEST_AXIS} voxels: it is damaged")
        self.shape: tuple[int, ...] = shape
        self.dtype = np.dtype(dtype)
        self._files, self._path, self._stored = files, path, stored
        self._allow_missing, self._checked = allow_missing, checked
        properties = stored.id.get_create_plist()
        if properties.get_external_count():
            name = os.fsdecode(properties.get_external(0)[0])
            raise VolumeError(
                f"the voxels of {self.name} lie in another file, {name!r}, which could be any file: emseg does not open it, "
                "so copy them into the HDF5 file, with `h5repack` say"
            )
        layout, h5d = properties.get_layout(), files.h5py.h5d
        self._mappings: list[_Mapping] = []
        self._filters: list[tuple[int, int]] = []
        if layout == h5d.VIRTUAL:
            self._above = (*above, (path, files.h5py.h5o.get_info(stored.id).addr))
            self._mappings = self._virtual()
        elif layout == h5d.CHUNKED:
            self._filters = self._known_filters(properties)
            self._refuse_missing_chunks()
        elif layout == h5d.CONTIGUOUS:
            self._refuse_missing_bytes()

    def read(self, region: Region) -> NDArray[Any]:
        """The voxels of a region, in the machine's byte order.

        Raises
        ------
        VolumeError
            If they have gone.
        Exception
            Of almost any type, if they are damaged.
        """
        if self._mappings:
            return self._read_virtual(region)
        if self._stored.chunks is not None:
            return self._read_chunks(region)
        return np.asarray(self._stored[region]).astype(self.dtype, copy=False)

    # -- in one piece, and in chunks ----------------------------------------------------------------------------

    def _refuse_missing_bytes(self) -> None:
        """Refuses what was never written, or lies behind the end of the file, where the library reads zeros."""
        start, said = self._stored.id.get_offset(), math.prod(self.shape) * self._stored.dtype.itemsize
        if start is None:
            raise VolumeError(f"no voxel of {self.name} was ever written, of {math.prod(self.shape)}: choose another dataset")
        if start + said > (held := self._path.stat().st_size):
            raise VolumeError(f"{self.name} should end at byte {start + said}, but the file at {held}: copy it again")

    def _refuse_missing_chunks(self) -> None:
        """Refuses chunks that were never written, as those of N5 that have no file."""
        chunk, stored = self._stored.chunks, self._stored.id
        grid = [-(-length // edge) for length, edge in zip(self.shape, chunk, strict=True)]
        said, held = math.prod(grid), stored.get_num_chunks()
        if held >= said or (self._allow_missing and 2 * held > said):
            return
        there: set[tuple[int, ...]] = set()
        if held:
            stored.chunk_iter(lambda info: there.add(info.chunk_offset))
        starts = (
            tuple(i * edge for i, edge in zip(place, chunk, strict=True)) for place in itertools.product(*map(range, grid))
        )
        first = next((start for start in starts if start not in there), None)
        raise VolumeError(
            f"{self.name} has {said} chunks, but {held} of them were ever written, not that at {first}: "
            + (
                "write them, or read them as what fills them by --allow-missing"
                if 2 * held > said
                else "choose another dataset"
            )
        )

    def _known_filters(self, properties: Any) -> list[tuple[int, int]]:
        """Number and first setting of each filter of the chunks."""
        found = []
        for index in range(properties.get_nfilters()):
            number, _, settings, name = properties.get_filter(index)
            if number not in (DEFLATE, SHUFFLE, FLETCHER32, LZF):
                said = name.decode(errors="replace") or f"number {number}"
                raise VolumeError(
                    f"the chunks of {self.name} went through the filter {said!r}, but emseg knows gzip, shuffle, fletcher32 "
                    "and lzf, and loads no plugins: convert the file with `h5repack -f GZIP=1`"
                )
            found.append((number, settings[0] if settings else 0))
        return found

    def _read_chunks(self, region: Region) -> NDArray[Any]:
        chunk = self._stored.chunks
        voxels = np.empty([part.stop - part.start for part in region], self.dtype)
        spans = (range(part.start // edge * edge, part.stop, edge) for part, edge in zip(region, chunk, strict=True))
        for start in itertools.product(*spans):
            inside, target = [], []
            for first, edge, part in zip(start, chunk, region, strict=True):
                a, b = max(first, part.start), min(first + edge, part.stop)
                inside.append(slice(a - first, b - first))
                target.append(slice(a - part.start, b - part.start))
            voxels[tuple(target)] = self._chunk(start)[tuple(inside)]
        return voxels

    def _chunk(self, start: tuple[int, ...]) -> NDArray[Any]:
        """The voxels of a chunk, also those beyond the end of the dataset."""
        stored, shape, dtype = self._stored.id, self._stored.chunks, self._stored.dtype
        info = stored.get_chunk_info_by_coord(start)
        if info.byte_offset is None:
            if not self._allow_missing:
                raise VolumeError(f"the chunk at {start} of {self.name} is not there any more: copy the file again")
            return np.full(shape, self._stored.fillvalue, self.dtype)
        length = math.prod(shape) * dtype.itemsize
        try:
            if info.size > length + length // 8 + ROOM:
                raise ValueError(f"it should have {length} bytes, but {info.size} are stored")
            if info.byte_offset + info.size > self._path.stat().st_size:
                raise ValueError("it ends behind the end of the file")
            mask, packed = stored.read_direct_chunk(start)
            found = self._unfiltered(packed, mask, length)
            if len(found) != length:
                raise ValueError(f"it should have {length} bytes, but has {len(found)}")
        except Exception as error:  # a damaged chunk may raise anything
            error.add_note(f"the chunk at {start}")
            raise
        return np.frombuffer(found, dtype).reshape(shape)

    def _unfiltered(self, packed: bytes, mask: int, length: int) -> Any:
        """The bytes of a chunk as they were before its filters, no more than `length`, and a little where filters add some."""
        used = [(number, setting) for index, (number, setting) in enumerate(self._filters) if not mask >> index & 1]
        found: Any = packed
        while used:
            number, setting = used.pop()
            before = {number for number, _ in used}
            most = length + 4 * sum(number == FLETCHER32 for number, _ in used)
            if before & {DEFLATE, LZF}:
                most += most // 8 + ROOM
            if number == DEFLATE:
                found = inflate(found, most)
            elif number == LZF:
                found = unpack_lzf(bytes(found), most)
            elif number == SHUFFLE:
                found = numcodecs.Shuffle(setting).decode(found) if setting > 1 else found
            else:
                found = numcodecs.Fletcher32().decode(found)
        return memoryview(found).cast("B")

    # -- virtual ------------------------------------------------------------------------------------------------

    def _virtual(self) -> list[_Mapping]:
        """What a virtual dataset is made of, if that is all there, and covers it."""
        if len(self._above) > DEEPEST or len(set(self._above)) < len(self._above):
            raise VolumeError(
                f"{self.name} is made of datasets that are made of itself, or of more than {DEEPEST} one behind the other: "
                "copy all voxels into one dataset"
            )
        mappings = []
        for number, source in enumerate(self._stored.virtual_sources()):
            target = _runs(self._files.h5py, source.vspace, self.shape)
            within = _runs(self._files.h5py, source.src_space, None)
            if target is None or within is None or _numbered(source.file_name) or _numbered(source.dset_name):
                raise VolumeError(
                    f"part {number} of {self.name} is no regular selection with an end: copy all voxels into one dataset"
                )
            if any(run.stop > length for run, length in zip(target, self.shape, strict=True)):
                raise VolumeError(f"part {number} of {self.name} ends behind the end of its shape {self.shape}: write it again")
            file, dataset = source.file_name.replace("%%", "%"), source.dset_name.replace("%%", "%")
            mappings.append(_Mapping(file, dataset, target, within or None))
        try:
            gap = _gap([mapping.target for mapping in mappings], self.shape, [MOST_STEPS])
        except RecursionError:
            raise VolumeError(
                f"the parts of {self.name} are too many to be looked at: copy all voxels into one dataset"
            ) from None
        if gap is not None:
            raise VolumeError(
                f"the virtual dataset {self.name} has no source for the voxel {gap}: its parts must cover {self.shape}"
            )
        if self._checked is not None:
            for mapping in mappings:
                key = (self._files.beside(self._path, mapping.file, self.name), mapping.dataset)
                source = self._source(mapping)
                self._checked.add(key)
                self._pairs(mapping, source)
        return mappings

    def _source(self, mapping: _Mapping) -> Voxels:
        """The dataset that a part comes from."""
        path = self._files.beside(self._path, mapping.file, self.name)
        stored = self._files.dataset(path, mapping.dataset)
        if stored is None:
            raise VolumeError(
                f"{self.name} takes voxels from the dataset {mapping.dataset!r} of {path}, which is not there: copy it again"
            )
        known = self._checked is None or (path, mapping.dataset) in self._checked
        found = Voxels(self._files, path, stored, self._allow_missing, None if known else self._checked, self._above)
        if found.dtype != self.dtype:
            raise VolumeError(f"{self.name} is {self.dtype}, but its source {found.name} is {found.dtype}: convert one of them")
        return found

    def _pairs(self, mapping: _Mapping, source: Voxels) -> list[tuple[int, int]]:
        """Axes of this dataset, and those of a source that they are taken from; axes of one entry have none."""
        within = mapping.of(source.shape)
        if len(within) != len(source.shape) or any(run.stop > length for run, length in zip(within, source.shape, strict=True)):
            raise VolumeError(
                f"{self.name} takes more of {source.name} than its shape {source.shape} holds: copy it again, or write both"
            )
        mine = [axis for axis, run in enumerate(mapping.target) if run.length > 1]
        its = [axis for axis, run in enumerate(within) if run.length > 1]
        if [mapping.target[axis].length for axis in mine] != [within[axis].length for axis in its]:
            one, other = (tuple(run.length for run in runs) for runs in (mapping.target, within))
            raise VolumeError(
                f"{self.name} has room for {one} voxels from {source.name}, but takes {other}: copy it again, or write both"
            )
        return list(zip(mine, its, strict=True))

    def _read_virtual(self, region: Region) -> NDArray[Any]:
        voxels = np.empty([part.stop - part.start for part in region], self.dtype)
        for mapping in self._mappings:
            spans = [run.within(part.start, part.stop) for run, part in zip(mapping.target, region, strict=True)]
            if any(a >= b for a, b in spans):
                continue
            source = self._source(mapping)
            taken = {its: spans[mine] for mine, its in self._pairs(mapping, source)}
            wanted = [run.indices(*taken.get(axis, (0, 1))) for axis, run in enumerate(mapping.of(source.shape))]
            target = [run.indices(*span) - part.start for run, span, part in zip(mapping.target, spans, region, strict=True)]
            found = source.read(tuple(slice(int(line[0]), int(line[-1]) + 1) for line in wanted))
            found = found[np.ix_(*(line - line[0] for line in wanted))]
            voxels[np.ix_(*target)] = found.reshape([len(line) for line in target])
        return voxels


@dataclass(frozen=True, slots=True)
class _Run:
    """Places on an axis: blocks of the same length at the same distance."""

    start: int
    stride: int
    count: int
    block: int

    @property
    def length(self) -> int:
        """Number of places."""
        return self.count * self.block

    @property
    def stop(self) -> int:
        """Behind the last one."""
        return self.start + (self.count - 1) * self.stride + self.block

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """The first of the places that lies in a span, and the one behind the last that does, counted from 0."""
        return self._before(start), self._before(stop)

    def _before(self, place: int) -> int:
        blocks, rest = divmod(max(place - self.start, 0), self.stride)
        return min(blocks * self.block + min(rest, self.block), self.length)

    def indices(self, first: int, last: int) -> NDArray[np.intp]:
        """Where the places from number `first` to before `last` are."""
        numbers = np.arange(first, last)
        return self.start + numbers // self.block * self.stride + numbers % self.block

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and stop of each block, of blocks without a gap between them together."""
        if self.stride == self.block:
            yield self.start, self.stop
            return
        for number in range(self.count):
            yield self.start + number * self.stride, self.start + number * self.stride + self.block


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A part of a virtual dataset, and what it is taken from."""

    file: str
    dataset: str
    target: tuple[_Run, ...]
    within: tuple[_Run, ...] | None
    """Places in the source; None for all of them."""

    def of(self, shape: tuple[int, ...]) -> tuple[_Run, ...]:
        """Places in a source of a shape."""
        return tuple(_Run(0, length, 1, length) for length in shape) if self.within is None else self.within


def _runs(h5py: Any, space: Any, shape: tuple[int, ...] | None) -> tuple[_Run, ...] | None:
    """Places that are selected on each axis, empty for all of an unknown shape; None if they are not regular."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return tuple(_Run(0, length, 1, length) for length in shape or ())
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    runs = []
    for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True):
        run = _Run(int(start), int(block if count == 1 else stride), int(count), int(block))
        if run.block < 1 or run.count < 1 or run.stride < run.block or run.stop > LONGEST_AXIS:
            return None
        runs.append(run)
    return tuple(runs)


def _numbered(name: str) -> bool:
    """Whether a name stands for one file, or dataset, after another."""
    return "%b" in name.replace("%%", "")


def _gap(parts: Sequence[tuple[_Run, ...]], shape: tuple[int, ...], left: list[int]) -> tuple[int, ...] | None:
    """A voxel that none of the parts covers; None if there is none.

    Axis by axis: between two places where a part begins or ends, the same parts have to cover all other axes.

    Raises
    ------
    RecursionError
        After the number of steps in `left`.
    """
    if not shape:
        return None if parts else ()
    if not parts:
        return (0,) * len(shape)
    changes: dict[int, list[tuple[int, bool]]] = {0: [], shape[0]: []}
    for number, part in enumerate(parts):
        for start, stop in part[0].spans():
            changes.setdefault(start, []).append((number, True))
            changes.setdefault(stop, []).append((number, False))
            left[0] -= 1
            if left[0] < 0:
                raise RecursionError
    active: set[int] = set()
    seen: dict[frozenset[tuple[_Run, ...]], tuple[int, ...] | None] = {}
    for place in sorted(changes):
        if place >= shape[0]:
            break
        for number, begins in sorted(changes[place], key=lambda change: change[1]):  # one may end where it begins again
            (active.add if begins else active.discard)(number)
        left[0] -= len(active)
        if left[0] < 0:
            raise RecursionError
        rest = frozenset(parts[number][1:] for number in active)
        if rest not in seen:
            seen[rest] = _gap(list(rest), shape[1:], left) if rest else (0,) * (len(shape) - 1)
        if (gap := seen[rest]) is not None:
            return (place, *gap)
    return None
