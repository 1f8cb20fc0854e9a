"""What is made on the way to instance labels, kept in the output until they are complete.

    OUT/emseg/NAME-FINGERPRINT/pieces/BLOCK.npz    what each block knows; with fragments/, the segments of its voxels
                              /seams/BLOCK.npz     what it knows together with the next ones
                              /maps/BLOCK.npy      the final number of each of its segments
                              /segments.csv        the table of segments
                              /image               the instance labels, which become OUT/labels/NAME

A file is in its place whole or not at all, so each stage of the work goes on where it was.
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

from emseg.box import Box, Triple
from emseg.errors import BlockError, OrphanError
from emseg.instances.contacts import Contacts
from emseg.instances.piece import Piece, Seam, Segments
from emseg.store.arrays import Shards, array_metadata, create_array, describe_group, group_metadata, open_shards
from emseg.store.blame import blamed
from emseg.store.files import Files, find
from emseg.store.level import Level
from emseg.store.ome import Space
from emseg.store.place import Place
from emseg.store.records import FOLDER
from emseg.store.remote import NODE
from emseg.store.staging import output_error

Table = TypeVar("Table", Segments, Contacts)

FRAGMENTS, IMAGE = "fragments", "image"
DESCRIBED = "labelling.json"
"""What the labelling is; written last, so that all else is there."""
MANY = 1000
"""Files in one folder."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The folder of one labelling; it can be pickled, and threads and processes may write different blocks."""

    files: Files
    """Of the output."""
    folder: str
    """Where it is, in the output."""

    def fragments(self) -> Shards:
        """Segments of each block's voxels, uint32, numbered from 1 in each block."""
        return open_shards(self.files, f"{self.folder}/{FRAGMENTS}", 0, self.check)

    def instances(self, level: int = 0) -> Shards:
        """The final segments, uint64."""
        return open_shards(self.files, f"{self.folder}/{IMAGE}/{level}", 0, self.check, dense=True)

    def levels(self, steps: Sequence[Triple]) -> tuple[Level, ...]:
        """The final segments, uint64, and their coarser levels with these steps in voxels of the next finer one."""
        return tuple(
            Level(self.files.place, (self.instances(level),), ("mode",), step) for level, step in enumerate([(1, 1, 1), *steps])
        )

    @property
    def place(self) -> Place:
        """The folder."""
        return self.files.place / self.folder

    def check(self) -> None:
        """Nothing, if there is still something to be written here.

        Raises
        ------
        OrphanError
            If the labelling is complete.
        """
        if not self.begun and self.files.lacks(self._described, NODE):
            raise OrphanError(f"{self.place} is no labelling that goes on: stop it")

    @property
    def begun(self) -> bool:
        """Whether it has been made."""
        return self.files.size(self._described) is not None

    @property
    def _described(self) -> str:
        return f"{self.folder}/{DESCRIBED}"

    @property
    def left(self) -> bool:
        """Whether anything of it is there."""
        return PurePosixPath(self.folder).name in self.files.entries(FOLDER)

    @property
    def image(self) -> bool:
        """Whether the instance labels are still in it, complete or not."""
        return self.files.size(f"{self.folder}/{IMAGE}/{NODE}") is not None

    def keep_piece(self, block: int, piece: Piece) -> None:
        """Keep what a block knows."""
        faces = {f"joint{axis}": joint for axis, joint in enumerate(piece.joints)}
        totals = {f"total{axis}": total for axis, total in enumerate(piece.totals)}
        self._keep("pieces", block, {**_rows(piece.segments), **_rows(piece.contacts), **faces, **totals})

    def piece(self, block: int) -> Piece:
        """What a block knows; nothing if there is none."""
        found = self._get("pieces", block)
        if found is None:
            return Piece(Segments.none(), Contacts.none(), (), ())
        faces = range(sum(name.startswith("joint") for name in found))
        joints, totals = (tuple(found[f"{kind}{axis}"] for axis in faces) for kind in ("joint", "total"))
        return Piece(_table(Segments, found), _table(Contacts, found), joints, totals)

    def keep_seam(self, block: int, seam: Seam) -> None:
        """Keep what a block knows together with the next ones."""
        self._keep("seams", block, {"same": seam.same, **_rows(seam.contacts)})

    def seam(self, block: int) -> Seam:
        """What a block knows together with the next ones; nothing if there is none."""
        found = self._get("seams", block)
        return (
            Seam(np.zeros((0, 2), np.int64), Contacts.none()) if found is None else Seam(found["same"], _table(Contacts, found))
        )

    def keep_map(self, block: int, numbers: NDArray[np.uint64]) -> None:
        """Keep the final number of each segment of a block, ``(n + 1,) uint64``."""
        self._keep("maps", block, {"numbers": numbers})

    def map(self, block: int) -> NDArray[np.uint64]:
        """The final number of each segment of a block, ``(n + 1,) uint64``."""
        found = self._get("maps", block)
        if found is None:
            raise BlockError(f"the numbers of block {block} are missing in {self.place}: label again", "store")
        numbers: NDArray[np.uint64] = found["numbers"]
        return numbers

    def kept(self, kind: str, blocks: int) -> NDArray[np.bool_]:
        """Of which blocks there are ``pieces`` or ``seams``, ``(blocks,) bool``."""
        found = np.zeros(blocks, bool)
        for name, _ in self.files.sizes(f"{self.folder}/{kind}"):
            file = PurePosixPath(name)
            if file.suffix == ".npz" and file.stem.isdecimal() and int(file.stem) < blocks:
                found[int(file.stem)] = True
        return found

    def keep_numbers(self, name: str, numbers: NDArray[Any]) -> None:
        """Keep an array that all blocks share."""
        stream = io.BytesIO()
        np.save(stream, numbers)
        self.files.put(f"{self.folder}/{name}.npy", stream.getbuffer(), self.check)

    def numbers(self, name: str) -> NDArray[Any] | None:
        """An array that all blocks share, if it is there."""
        stored = find(self.files, f"{self.folder}/{name}.npy", self._described)
        return None if stored is None else np.load(io.BytesIO(stored))

    def _file(self, kind: str, block: int) -> str:
        return f"{self.folder}/{kind}/{block // MANY}/{block}.npz"

    def _keep(self, kind: str, block: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        stream, file = io.BytesIO(), self._file(kind, block)
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        with blamed(f"{self.files.place / file} cannot be written", "check the disk"):
            self.files.put(file, stream.getbuffer(), self.check)

    def _get(self, kind: str, block: int) -> dict[str, NDArray[Any]] | None:
        file = self._file(kind, block)
        with blamed(f"{self.files.place / file} cannot be read", f"remove {self.place}, and label again"):
            document = find(self.files, file, self._described)
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
    """Makes the folder of a labelling; one that was begun no further is made anew.

    Parameters
    ----------
    scratch
        Where to.
    space
        Where the output's voxels lie; its axes are those of the arrays.
    shapes
        Shape (z, y, x) in voxels of each level of the instance labels.
    unit, chunk
        Shapes (z, y, x) in voxels of the arrays' shards, and of the chunks in these.
    attributes
        What the labelling is, as JSON values.
    group
        Attributes of the image.
    """
    files, folder = scratch.files, scratch.folder
    layout = _layout(space, unit, chunk)
    try:
        files.remove_all(folder)
        create_array(files, f"{folder}/{FRAGMENTS}", dtype="uint32", shape=shapes[0][-len(space.names) :], **layout)
        for name, document in image_documents(f"{folder}/{IMAGE}", space, shapes, unit, chunk, group):
            files.put(name, document)
        files.put(f"{folder}/{DESCRIBED}", json.dumps(attributes).encode())
    except OSError as error:
        raise output_error(scratch.place, error) from error


def image_documents(
    image: str, space: Space, shapes: Sequence[Triple], unit: Triple, chunk: Triple, group: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file of an image of instance labels but its shards; parameters as for `create_scratch`."""
    yield f"{image}/{NODE}", group_metadata(group)
    for level, shape in enumerate(shapes):
        layout = _layout(space, unit, chunk)
        yield f"{image}/{level}/{NODE}", array_metadata(dtype="uint64", shape=shape[-len(space.names) :], **layout)


def _layout(space: Space, unit: Triple, chunk: Triple) -> dict[str, Any]:
    """What is the same for all arrays of a labelling."""
    rank = len(space.names)
    return {"shard": unit[-rank:], "chunk": chunk[-rank:], "axes": space.names, "fill_value": 0}


def describe(scratch: Scratch, group: dict[str, Any]) -> None:
    """Gives the image other attributes."""
    describe_group(scratch.files, f"{scratch.folder}/{IMAGE}", group)


def remove_scratch(scratch: Scratch, name: str) -> None:
    """Removes the folders of all other labellings of this name."""
    for found in scratch.files.entries(FOLDER):
        if re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", found) and f"{FOLDER}/{found}" != scratch.folder:
            scratch.files.remove_all(f"{FOLDER}/{found}")


def _rows(table: Segments | Contacts) -> dict[str, NDArray[Any]]:
    kind = type(table).__name__.lower()
    return {f"{kind}.{field.name}": getattr(table, field.name) for field in fields(table)}


def _table(kind: type[Table], found: Mapping[str, NDArray[Any]]) -> Table:
    prefix = f"{kind.__name__.lower()}."
    return kind(**{name.removeprefix(prefix): column for name, column in found.items() if name.startswith(prefix)})


def numbered(fragments: Shards, offsets: NDArray[np.int64], box: Box) -> NDArray[np.int64]:
    """The segments of a box ``(z, y, x) int64``, numbered throughout the volume, 0 for none.

    Parameters
    ----------
    offsets
        What to add to the numbers in each block, ``(z, y, x)`` on the grid of blocks.
    """
    places = (np.arange(start, stop) // unit for start, stop, unit in zip(box.start, box.stop, fragments.unit, strict=True))
    ids = fragments.read(box).astype(np.int64)
    found: NDArray[np.int64] = np.where(ids > 0, ids + offsets[np.ix_(*places)], 0)
    return found
