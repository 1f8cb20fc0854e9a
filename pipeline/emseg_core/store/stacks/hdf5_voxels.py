"""Read the voxels of HDF5 datasets: contiguous, chunked, or virtual ones, which are assembled from other datasets.

The HDF5 library reads the fill value where data are missing: chunks that were never written, or source files of virtual
datasets that were not copied. It decompresses chunks without a limit, and loads plugins for the filters that a file names.
Chunks and virtual datasets are therefore read here, and everything is checked before the first voxel is read.
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

from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, MAX_AXIS_LENGTH
from emseg_core.store.files.decompress import inflate, unpack_lzf
from emseg_core.store.stacks.hdf5_links import COPY_HINT, OpenFiles

if TYPE_CHECKING:
    import h5py

Region = tuple[slice, ...]
"""Start and stop of a part of a dataset, on each axis."""

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
"""Filters by number: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md."""
FILTER_OVERHEAD_BYTES = 2**16
"""Most bytes that a filter may add to a chunk, besides an eighth of it."""
MAX_VIRTUAL_DEPTH = 8
"""Most virtual datasets nested in each other."""
MAX_COVERAGE_STEPS = 2**22
"""Most steps of checking that the sources of a virtual dataset cover it: some seconds."""


class Voxels:
    """A dataset of any number of axes that can be read completely.

    Raises
    ------
    VolumeError
        If parts of it are missing or lie in files outside the folder, or its dtype or storage is not supported.
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
        """Check a dataset.

        Parameters
        ----------
        files
            Open files.
        path
            File that contains the dataset.
        stored
            The dataset.
        allow_missing
            Whether less than half of the chunks may never have been written; they read as the fill value.
        checked
            Sources of virtual datasets that are already checked; None to check sources when they are read.
        above
            Virtual datasets that this one is a source of.
        """
        self.name = f"{stored.name} of {path}"
        shape, dtype = stored.shape, stored.dtype.newbyteorder("=").name
        if shape is None or not shape or 0 in shape:
            raise VolumeError(f"{self.name} has shape {shape}, which contains no voxels: choose another dataset")
        if dtype not in DTYPES or not stored.id.get_type().equal(files.h5py.h5t.py_create(stored.dtype)):
            raise VolumeError(f"{self.name} is {dtype}, but emseg reads {', '.join(DTYPES)}: convert it first")
        if max(shape) > MAX_AXIS_LENGTH:
            raise VolumeError(f"{self.name} has shape {shape}, but an axis has 1 to {MAX_AXIS_LENGTH} voxels: it is damaged")
        self.shape: tuple[int, ...] = shape
        self.dtype = np.dtype(dtype)
        self._files, self._path, self._stored = files, path, stored
        self._allow_missing, self._checked = allow_missing, checked
        properties = stored.id.get_create_plist()
        if properties.get_external_count():
            name = os.fsdecode(properties.get_external(0)[0])
            raise VolumeError(
                f"the voxels of {self.name} are stored in another file, {name!r}, which emseg does not open: "
                "copy them into the HDF5 file, for example with `h5repack`"
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
        """Read the voxels of a region.

        Parameters
        ----------
        region
            A region within the dataset.

        Returns
        -------
        ndarray
            In native byte order, with all axes of the dataset.

        Raises
        ------
        VolumeError
            If the voxels no longer exist.
        Exception
            Of almost any type, if they are damaged.
        """
        if self._mappings:
            return self._read_virtual(region)
        if self._stored.chunks is not None:
            return self._read_chunks(region)
        return np.asarray(self._stored[region]).astype(self.dtype, copy=False)

    # -- contiguous and chunked ---------------------------------------------------------------------------------

    def _refuse_missing_bytes(self) -> None:
        """Raise a `VolumeError` for voxels never written, or behind the end of the file, where HDF5 would read zeros."""
        start, said = self._stored.id.get_offset(), math.prod(self.shape) * self._stored.dtype.itemsize
        if start is None:
            raise VolumeError(
                f"{self.name} has {math.prod(self.shape)} voxels, but none was ever written: choose another dataset"
            )
        if start + said > (held := self._path.stat().st_size):
            raise VolumeError(f"{self.name} should end at byte {start + said}, but the file ends at {held}: copy it again")

    def _refuse_missing_chunks(self) -> None:
        """Raise a `VolumeError` for chunks that were never written, as is done for missing files of N5 chunks."""
        chunk, stored = self._stored.chunks, self._stored.id
        grid = [-(-length // edge) for length, edge in zip(self.shape, chunk, strict=True)]
        said, held = math.prod(grid), stored.get_num_chunks()
        if held >= said or (self._allow_missing and 2 * held > said):
            return
        there: set[tuple[int, ...]] = set()
        if held:
            stored.chunk_iter(lambda info: there.add(info.chunk_offset))
        starts = itertools.product(*(range(0, length, edge) for length, edge in zip(self.shape, chunk, strict=True)))
        first = next((start for start in starts if start not in there), None)
        few = "write them, or read them as the fill value with --allow-missing"
        raise VolumeError(
            f"{self.name} has {said} chunks, but only {held} were written, not the one at {first}: "
            f"{few if 2 * held > said else 'choose another dataset'}"
        )

    def _known_filters(self, properties: Any) -> list[tuple[int, int]]:
        """Return the number and the first setting of each filter of the chunks."""
        found = []
        for index in range(properties.get_nfilters()):
            number, _, settings, name = properties.get_filter(index)
            if number not in (DEFLATE, SHUFFLE, FLETCHER32, LZF):
                said = name.decode(errors="replace") or f"number {number}"
                raise VolumeError(
                    f"the chunks of {self.name} use the filter {said!r}, but emseg supports only gzip, shuffle, fletcher32 "
                    "and lzf: convert the file with `h5repack -f GZIP=1`"
                )
            found.append((number, settings[0] if settings else 0))
        return found

    def _read_chunks(self, region: Region) -> NDArray[Any]:
        """Read a region of a chunked dataset."""
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
        """Read a chunk, including voxels beyond the end of the dataset."""
        stored, shape, dtype = self._stored.id, self._stored.chunks, self._stored.dtype
        info = stored.get_chunk_info_by_coord(start)
        if info.byte_offset is None:
            if not self._allow_missing:
                raise VolumeError(f"the chunk at {start} of {self.name} no longer exists: copy the file again")
            return np.full(shape, self._stored.fillvalue, self.dtype)
        length = math.prod(shape) * dtype.itemsize
        try:
            if info.size > length + length // 8 + FILTER_OVERHEAD_BYTES:
                raise ValueError(f"it should have {length} bytes, but {info.size} are stored")
            if info.byte_offset + info.size > self._path.stat().st_size:
                raise ValueError("it ends beyond the end of the file")
            mask, packed = stored.read_direct_chunk(start)
            found = self._unfiltered(packed, mask, length)
            if len(found) != length:
                raise ValueError(f"it should have {length} bytes, but has {len(found)}")
        except Exception as error:  # a damaged chunk may raise anything
            error.add_note(f"the chunk at {start}")
            raise
        return np.frombuffer(found, dtype).reshape(shape)

    def _unfiltered(self, packed: bytes, mask: int, length: int) -> Any:
        """Undo the filters of a chunk, up to `length` bytes and what filters may add."""
        used = [(number, setting) for index, (number, setting) in enumerate(self._filters) if not mask >> index & 1]
        found: Any = packed
        while used:
            number, setting = used.pop()
            before = {number for number, _ in used}
            most = length + 4 * sum(number == FLETCHER32 for number, _ in used)
            if before & {DEFLATE, LZF}:
                most += most // 8 + FILTER_OVERHEAD_BYTES
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
        """Return the mappings of a virtual dataset, after checking that they exist and cover it."""
        if len(self._above) > MAX_VIRTUAL_DEPTH or len(set(self._above)) < len(self._above):
            cause = f"is a virtual dataset of itself, or nested deeper than {MAX_VIRTUAL_DEPTH}"
            raise VolumeError(f"{self.name} {cause}: {COPY_HINT}")
        mappings = []
        for number, source in enumerate(self._stored.virtual_sources()):
            target = _hyperslabs(self._files.h5py, source.vspace, self.shape)
            within = _hyperslabs(self._files.h5py, source.src_space, None)
            if target is None or within is None or _is_printf_name(source.file_name) or _is_printf_name(source.dset_name):
                raise VolumeError(f"source {number} of {self.name} is not a regular selection of fixed size: {COPY_HINT}")
            if any(run.stop > length for run, length in zip(target, self.shape, strict=True)):
                raise VolumeError(f"source {number} of {self.name} ends beyond its shape {self.shape}: write it again")
            file, dataset = source.file_name.replace("%%", "%"), source.dset_name.replace("%%", "%")
            mappings.append(_Mapping(file, dataset, target, within or None))
        try:
            gap = _first_gap([mapping.target for mapping in mappings], self.shape, [MAX_COVERAGE_STEPS])
        except RecursionError:
            raise VolumeError(f"the virtual dataset {self.name} has too many sources to check: {COPY_HINT}") from None
        if gap is not None:
            raise VolumeError(
                f"the virtual dataset {self.name} has no source for the voxel {gap}: add sources until they cover {self.shape}"
            )
        if self._checked is not None:
            for mapping in mappings:
                key = (self._files.resolve_beside(self._path, mapping.file, self.name), mapping.dataset)
                source = self._source(mapping)
                self._checked.add(key)
                self._matching_axes(mapping, source)
        return mappings

    def _source(self, mapping: _Mapping) -> Voxels:
        """Open the source of a mapping."""
        path = self._files.resolve_beside(self._path, mapping.file, self.name)
        stored = self._files.dataset(path, mapping.dataset)
        if stored is None:
            raise VolumeError(
                f"{self.name} reads voxels from the dataset {mapping.dataset!r} of {path}, which does not exist: copy it again"
            )
        known = self._checked is None or (path, mapping.dataset) in self._checked
        found = Voxels(self._files, path, stored, self._allow_missing, None if known else self._checked, self._above)
        if found.dtype != self.dtype:
            raise VolumeError(f"{self.name} is {self.dtype}, but its source {found.name} is {found.dtype}: convert one of them")
        return found

    def _matching_axes(self, mapping: _Mapping, source: Voxels) -> list[tuple[int, int]]:
        """Return pairs of axes of this dataset and of a source that correspond; axes of length 1 are left out."""
        within = mapping.of(source.shape)
        if len(within) != len(source.shape) or any(run.stop > length for run, length in zip(within, source.shape, strict=True)):
            raise VolumeError(
                f"{self.name} reads beyond the shape {source.shape} of its source {source.name}: write both again"
            )
        mine = [axis for axis, run in enumerate(mapping.target) if run.length > 1]
        its = [axis for axis, run in enumerate(within) if run.length > 1]
        if [mapping.target[axis].length for axis in mine] != [within[axis].length for axis in its]:
            one, other = (tuple(run.length for run in runs) for runs in (mapping.target, within))
            raise VolumeError(f"{self.name} maps {other} voxels of {source.name} to {one} voxels: write both again")
        return list(zip(mine, its, strict=True))

    def _read_virtual(self, region: Region) -> NDArray[Any]:
        """Read a region of a virtual dataset."""
        voxels = np.empty([part.stop - part.start for part in region], self.dtype)
        for mapping in self._mappings:
            spans = [run.within(part.start, part.stop) for run, part in zip(mapping.target, region, strict=True)]
            if any(a >= b for a, b in spans):
                continue
            source = self._source(mapping)
            taken = {its: spans[mine] for mine, its in self._matching_axes(mapping, source)}
            wanted = [run.indices(*taken.get(axis, (0, 1))) for axis, run in enumerate(mapping.of(source.shape))]
            target = [run.indices(*span) - part.start for run, span, part in zip(mapping.target, spans, region, strict=True)]
            found = source.read(tuple(slice(int(line[0]), int(line[-1]) + 1) for line in wanted))
            inside = [line - line[0] for line in wanted]
            found = found[np.ix_(*inside)]
            voxels[np.ix_(*target)] = found.reshape([len(line) for line in target])
        return voxels


@dataclass(frozen=True, slots=True)
class _Hyperslab:
    """A regular selection on one axis: blocks of the same length at the same distance."""

    start: int
    stride: int
    count: int
    block: int

    @property
    def length(self) -> int:
        """Number of selected positions."""
        return self.count * self.block

    @property
    def stop(self) -> int:
        """End of the last block, exclusive."""
        return self.start + (self.count - 1) * self.stride + self.block

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of selected positions that lie in a span, counted from 0."""
        return self._before(start), self._before(stop)

    def _before(self, place: int) -> int:
        """Count the selected positions before a place."""
        blocks, rest = divmod(max(place - self.start, 0), self.stride)
        return min(blocks * self.block + min(rest, self.block), self.length)

    def indices(self, first: int, last: int) -> NDArray[np.intp]:
        """Return the places of the selected positions from number `first` to before `last`."""
        numbers = np.arange(first, last)
        return self.start + numbers // self.block * self.stride + numbers % self.block

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield start and stop of each block; adjacent blocks count as one."""
        if self.stride == self.block:
            yield self.start, self.stop
            return
        for number in range(self.count):
            yield self.start + number * self.stride, self.start + number * self.stride + self.block


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A part of a virtual dataset, and the selection of its source."""

    file: str
    dataset: str
    target: tuple[_Hyperslab, ...]
    within: tuple[_Hyperslab, ...] | None
    """Selection of the source; None for all of it."""

    def of(self, shape: tuple[int, ...]) -> tuple[_Hyperslab, ...]:
        """Return the selection of a source of this shape."""
        return tuple(_Hyperslab(0, length, 1, length) for length in shape) if self.within is None else self.within


def _hyperslabs(h5py: Any, space: Any, shape: tuple[int, ...] | None) -> tuple[_Hyperslab, ...] | None:
    """Return the selection on each axis, empty for all of an unknown shape; None if it is not regular."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return tuple(_Hyperslab(0, length, 1, length) for length in shape or ())
    if kind != h5py.h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return None
    runs = []
    for start, stride, count, block in zip(*space.get_regular_hyperslab(), strict=True):
        run = _Hyperslab(int(start), int(block if count == 1 else stride), int(count), int(block))
        if run.block < 1 or run.count < 1 or run.stride < run.block or run.stop > MAX_AXIS_LENGTH:
            return None
        runs.append(run)
    return tuple(runs)


def _is_printf_name(name: str) -> bool:
    """Check whether a name stands for a series of files or datasets, numbered by ``%b``."""
    return "%b" in name.replace("%%", "")


def _first_gap(parts: Sequence[tuple[_Hyperslab, ...]], shape: tuple[int, ...], left: list[int]) -> tuple[int, ...] | None:
    """Find a voxel that none of the parts covers; None if there is none.

    Axis by axis: between two places where a part begins or ends, the same parts must cover all other axes.

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
    seen: dict[frozenset[tuple[_Hyperslab, ...]], tuple[int, ...] | None] = {}
    for place in sorted(changes):
        if place >= shape[0]:
            break
        for number, begins in sorted(changes[place], key=lambda change: change[1]):  # parts may adjoin: ends come first
            (active.add if begins else active.discard)(number)
        left[0] -= len(active)
        if left[0] < 0:
            raise RecursionError
        rest = frozenset(parts[number][1:] for number in active)
        if rest not in seen:
            seen[rest] = _first_gap(list(rest), shape[1:], left) if rest else (0,) * (len(shape) - 1)
        if (gap := seen[rest]) is not None:
            return (place, *gap)
    return None
