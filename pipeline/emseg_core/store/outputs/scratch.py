"""Intermediate files of instance labelling, kept in the output until the labels are complete.

    OUT/emseg/NAME-FINGERPRINT/pieces/BLOCK.npz    segments of each block, and contacts between them
                              /fragments/          array of the segment of each voxel, numbered block by block
                              /seams/BLOCK.npz     matches and contacts of a block with the next blocks
                              /maps/BLOCK.npz      the final id of each segment of a block
                              /segments.csv        the table of segments
                              /image               the instance labels, which become OUT/labels/NAME

Each file appears complete or not at all, so every stage of the work can be resumed.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError, OrphanError
from emseg_core.instances.block_segments import BlockSegments, Segments
from emseg_core.instances.contacts import Contacts
from emseg_core.instances.face_matches import FaceMatches
from emseg_core.store.files.atomic_write import translate_oserror
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.files.files import Files, find_metadata
from emseg_core.store.files.place import ZARR_JSON, Place
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.outputs.level import Level
from emseg_core.store.zarrs.arrays import Shards, array_metadata, create_array, describe_group, group_metadata, open_shards
from emseg_core.store.zarrs.ome import Space

Table = TypeVar("Table", Segments, Contacts)

FRAGMENTS, IMAGE = "fragments", "image"
DESCRIPTION_FILE = "labelling.json"
"""File that describes the labelling. It is written last, so all other files exist if it does."""
FILES_PER_FOLDER = 1000
"""Most files in one folder."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Folder of one labelling.

    It can be pickled. Threads and processes may write different blocks at the same time.
    """

    files: Files
    """Files of the output."""
    folder: str
    """Path of the folder, relative to the output."""

    def fragments(self) -> Shards:
        """Open the array of fragments.

        Returns
        -------
        Shards
            Segment of each voxel, ``(z, y, x) uint32``, numbered from 1 in each block.
        """
        return open_shards(self.files, f"{self.folder}/{FRAGMENTS}", 0, self.check)

    def instances(self, level: int = 0) -> Shards:
        """Open a level of the instance labels.

        Parameters
        ----------
        level
            Number of the level, 0 for the finest.

        Returns
        -------
        Shards
            Final segment of each voxel, ``(z, y, x) uint64``.
        """
        return open_shards(self.files, f"{self.folder}/{IMAGE}/{level}", 0, self.check, dense=True)

    def levels(self, steps: Sequence[Triple]) -> tuple[Level, ...]:
        """Open all levels of the instance labels.

        Parameters
        ----------
        steps
            Step (z, y, x) of each coarser level, in voxels of the next finer one.

        Returns
        -------
        tuple of Level
            The finest level first, ``(z, y, x) uint64``.
        """
        return tuple(
            Level(self.files.place, (self.instances(level),), ("mode",), step) for level, step in enumerate([(1, 1, 1), *steps])
        )

    @property
    def place(self) -> Place:
        """Path or address of the folder."""
        return self.files.place / self.folder

    def check(self) -> None:
        """Refuse to go on if the labelling no longer exists.

        Raises
        ------
        OrphanError
            If the labelling is complete or was removed.
        """
        if not self.exists and self.files.is_missing(self._description_file, ZARR_JSON):
            raise OrphanError(f"{self.place} is not an unfinished labelling: stop the workers that write to it")

    @property
    def exists(self) -> bool:
        """Whether the folder has been created completely."""
        return self.files.size(self._description_file) is not None

    @property
    def _description_file(self) -> str:
        """Path of the file that describes the labelling."""
        return f"{self.folder}/{DESCRIPTION_FILE}"

    @property
    def has_files(self) -> bool:
        """Whether anything is left of the folder."""
        return PurePosixPath(self.folder).name in self.files.entries(RECORDS_FOLDER)

    @property
    def has_image(self) -> bool:
        """Whether the instance labels, complete or not, have not yet been moved into place."""
        return self.files.size(f"{self.folder}/{IMAGE}/{ZARR_JSON}") is not None

    def write_block_segments(self, block: int, segments: BlockSegments) -> None:
        """Store the segments of a block and the contacts between them.

        Parameters
        ----------
        block
            Index of the block.
        segments
            Its segments, numbered from 1.

        Raises
        ------
        BlockError
            If the file cannot be written.
        OrphanError
            If the labelling no longer exists.
        """
        faces = {f"joint{axis}": links for axis, links in enumerate(segments.face_links)}
        totals = {f"total{axis}": total for axis, total in enumerate(segments.face_totals)}
        self._write("pieces", block, {**_rows(segments.segments), **_rows(segments.contacts), **faces, **totals})

    def read_block_segments(self, block: int) -> BlockSegments:
        """Read the segments of a block and the contacts between them.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        BlockSegments
            Empty if there is no file.

        Raises
        ------
        BlockError
            If the file is damaged.
        """
        found = self._read("pieces", block)
        if found is None:
            return BlockSegments(Segments.empty(), Contacts.empty(), (), ())
        faces = range(sum(name.startswith("joint") for name in found))
        links, totals = (tuple(found[f"{kind}{axis}"] for axis in faces) for kind in ("joint", "total"))
        return BlockSegments(_table(Segments, found), _table(Contacts, found), links, totals)

    def write_face_matches(self, block: int, matches: FaceMatches) -> None:
        """Store the matches and contacts between a block and the next blocks.

        Parameters
        ----------
        block
            Index of the block.
        matches
            What its faces have in common with the next blocks.

        Raises
        ------
        BlockError
            If the file cannot be written.
        OrphanError
            If the labelling no longer exists.
        """
        self._write("seams", block, {"same": matches.same, **_rows(matches.contacts)})

    def read_face_matches(self, block: int) -> FaceMatches:
        """Read the matches and contacts between a block and the next blocks.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        FaceMatches
            Empty if there is no file.

        Raises
        ------
        BlockError
            If the file is damaged.
        """
        found = self._read("seams", block)
        return FaceMatches.of(Contacts.empty()) if found is None else FaceMatches(found["same"], _table(Contacts, found))

    def write_map(self, block: int, numbers: NDArray[np.uint64]) -> None:
        """Store the final ids of the segments of a block.

        Parameters
        ----------
        block
            Index of the block.
        numbers
            Final id of each segment, ``(n + 1,) uint64``, at the number that it has in the block.

        Raises
        ------
        BlockError
            If the file cannot be written.
        OrphanError
            If the labelling no longer exists.
        """
        self._write("maps", block, {"numbers": numbers})

    def read_map(self, block: int) -> NDArray[np.uint64]:
        """Read the final ids of the segments of a block.

        Parameters
        ----------
        block
            Index of the block.

        Returns
        -------
        ndarray
            Final id of each segment, ``(n + 1,) uint64``, at the number that it has in the block.

        Raises
        ------
        BlockError
            If the file is missing or damaged.
        """
        found = self._read("maps", block)
        if found is None:
            raise BlockError(f"the segment ids of block {block} are missing in {self.place}: label again", "store")
        numbers: NDArray[np.uint64] = found["numbers"]
        return numbers

    def stored_blocks(self, kind: str, blocks: int) -> NDArray[np.bool_]:
        """Find the blocks that have a file of this kind.

        Parameters
        ----------
        kind
            ``pieces`` or ``seams``.
        blocks
            Number of blocks.

        Returns
        -------
        ndarray
            ``(blocks,) bool``.
        """
        found = np.zeros(blocks, bool)
        for name, _ in self.files.sizes(f"{self.folder}/{kind}"):
            file = PurePosixPath(name)
            if file.suffix == ".npz" and file.stem.isdecimal() and int(file.stem) < blocks:
                found[int(file.stem)] = True
        return found

    def write_shared(self, name: str, numbers: NDArray[Any]) -> None:
        """Store an array that all blocks share.

        Parameters
        ----------
        name
            Name of the array.
        numbers
            The array, of any shape and dtype.

        Raises
        ------
        OSError
            If the store fails.
        OrphanError
            If the labelling no longer exists.
        """
        stream = io.BytesIO()
        np.save(stream, numbers)
        self.files.put(f"{self.folder}/{name}.npy", stream.getbuffer(), self.check)

    def read_shared(self, name: str) -> NDArray[Any] | None:
        """Read an array that all blocks share.

        Parameters
        ----------
        name
            Name of the array.

        Returns
        -------
        ndarray or None
            None if it has not been stored yet.
        """
        stored = find_metadata(self.files, f"{self.folder}/{name}.npy", self._description_file)
        return None if stored is None else np.load(io.BytesIO(stored))

    def _file(self, kind: str, block: int) -> str:
        return f"{self.folder}/{kind}/{block // FILES_PER_FOLDER}/{block}.npz"

    def _write(self, kind: str, block: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store arrays of a block."""
        stream, file = io.BytesIO(), self._file(kind, block)
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        with translate_errors(f"{self.files.place / file} cannot be written", "check the disk"):
            self.files.put(file, stream.getbuffer(), self.check)

    def _read(self, kind: str, block: int) -> dict[str, NDArray[Any]] | None:
        """Read arrays of a block; None if there is no file."""
        file = self._file(kind, block)
        with translate_errors(f"{self.files.place / file} cannot be read", f"remove {self.place}, and label again"):
            document = find_metadata(self.files, file, self._description_file)
            if document is None:
                return None
            with np.load(io.BytesIO(document)) as stored:
                return dict(stored)


def create_scratch(
    scratch: Scratch,
    space: Space,
    shapes: Sequence[Triple],
    unit: Triple,
    chunk: Triple,
    attributes: dict[str, Any],
    group: dict[str, Any],
) -> None:
    """Create the folder of a labelling, removing one whose creation was interrupted.

    Parameters
    ----------
    scratch
        Folder to create.
    space
        Coordinate space of the output; its axes are those of the arrays.
    shapes
        Shape (z, y, x) in voxels of each level of the instance labels.
    unit, chunk
        Shapes (z, y, x) in voxels of the shards of the arrays, and of the chunks in these.
    attributes
        Description of the labelling, as JSON values.
    group
        Attributes of the image.

    Raises
    ------
    OutputError
        If the store fails.
    """
    files, folder = scratch.files, scratch.folder
    layout = _layout(space, unit, chunk)
    with translate_oserror(scratch.place):
        files.remove_all(folder)
        create_array(files, f"{folder}/{FRAGMENTS}", dtype="uint32", shape=shapes[0][-len(space.names) :], **layout)
        for name, document in image_documents(f"{folder}/{IMAGE}", space, shapes, unit, chunk, group):
            files.put(name, document)
        files.put(f"{folder}/{DESCRIPTION_FILE}", json.dumps(attributes).encode())


def image_documents(
    image: str, space: Space, shapes: Sequence[Triple], unit: Triple, chunk: Triple, group: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield the metadata files of an image of instance labels; parameters as for `create_scratch`.

    Yields
    ------
    tuple of str and bytes
        Path relative to the output, and content.
    """
    yield f"{image}/{ZARR_JSON}", group_metadata(group)
    for level, shape in enumerate(shapes):
        layout = _layout(space, unit, chunk)
        yield f"{image}/{level}/{ZARR_JSON}", array_metadata(dtype="uint64", shape=shape[-len(space.names) :], **layout)


def _layout(space: Space, unit: Triple, chunk: Triple) -> dict[str, Any]:
    """Return the array settings that all arrays of a labelling share."""
    rank = len(space.names)
    return {"shard": unit[-rank:], "chunk": chunk[-rank:], "axes": space.names, "fill_value": 0}


def describe_image(scratch: Scratch, group: dict[str, Any]) -> None:
    """Replace the attributes of the image.

    Parameters
    ----------
    scratch
        The labelling.
    group
        The new attributes, as JSON values.
    """
    describe_group(scratch.files, f"{scratch.folder}/{IMAGE}", group)


def remove_scratch(scratch: Scratch, name: str) -> None:
    """Remove the folders of all other labellings of this name.

    Parameters
    ----------
    scratch
        The labelling that is kept.
    name
        Name of the instance labels.
    """
    for found in scratch.files.entries(RECORDS_FOLDER):
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", found) and f"{RECORDS_FOLDER}/{found}" != scratch.folder:
            scratch.files.remove_all(f"{RECORDS_FOLDER}/{found}")


def _rows(table: Segments | Contacts) -> dict[str, NDArray[Any]]:
    """Return the columns of a table, named by table and column."""
    kind = type(table).__name__.lower()
    return {f"{kind}.{field.name}": getattr(table, field.name) for field in fields(table)}


def _table(kind: type[Table], found: Mapping[str, NDArray[Any]]) -> Table:
    """Build a table from named columns."""
    prefix = f"{kind.__name__.lower()}."
    return kind(**{name.removeprefix(prefix): column for name, column in found.items() if name.startswith(prefix)})


def read_segment_ids(fragments: Shards, offsets: NDArray[np.int64], box: Box) -> NDArray[np.int64]:
    """Read the segments of a box, numbered throughout the volume.

    Parameters
    ----------
    fragments
        Segment of each voxel, numbered in each block.
    offsets
        Offset to add to the numbers in each block, ``(z, y, x) int64`` on the grid of blocks.
    box
        Voxels to read.

    Returns
    -------
    ndarray
        ``(z, y, x) int64``, 0 for no segment.
    """
    places = (np.arange(start, stop) // unit for start, stop, unit in zip(box.start, box.stop, fragments.unit, strict=True))
    ids = fragments.read(box).astype(np.int64)
    found: NDArray[np.int64] = np.where(ids > 0, ids + offsets[np.ix_(*places)], 0)
    return found
