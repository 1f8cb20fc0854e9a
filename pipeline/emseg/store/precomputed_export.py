"""Writing a Neuroglancer precomputed volume, with tensorstore: https://neuroglancer-docs.web.app/datasource/precomputed/.

TARGET/info                 sizes in nanometres and places of all scales, x first
TARGET/0, 1, ...            each level, 64 chunks in a file, without those that hold 0 alone
TARGET/segment_properties   of classes, their names
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.errors import OutputError
from emseg.grid.blocks import Blocks
from emseg.store.exported import MARK, PROPERTIES, ExportImage, ExportLevel, LevelCopy, Store, export_folder
from emseg.store.extras import load_extra
from emseg.store.making import making
from emseg.store.new_volume import brick_layout
from emseg.store.precomputed import DRIVER, INFO
from emseg.store.staging import sync_tree, write_json
from emseg.store.tensor import LIBRARY, why

CHUNK_BITS = 6
"""Binary logarithm of the number of chunks in a file."""
EXACT = 1e-6
"""Part of a voxel that is no distance."""


@contextmanager
def precomputed_export(
    path: str | Path, image: ExportImage, tell: Callable[[str], None], *, overwrite: bool = False
) -> Iterator[list[LevelCopy]]:
    """The volume made of an image of an output: its levels, to be copied within the ``with``, at whose end it is there whole.

    Labels are a segmentation of ``uint32`` or ``uint64`` ids as ``compressed_segmentation``, where Neuroglancer does not
    show 0, and a probability an image of ``uint8``; both are compressed once more with gzip. Each level is put at the nearest
    whole voxel of its own, as precomputed knows no other places.

    Parameters
    ----------
    tell
        Called with a line for each thing that precomputed cannot say.

    Raises
    ------
    OutputError
        If there is something already that is not to be replaced, it cannot be written, or the units are no lengths.
    VolumeError
        If tensorstore is not installed.
    """
    target = export_folder(path, overwrite=overwrite)
    load_extra(LIBRARY, LIBRARY, target, "written")
    size, offsets = _nanometres(target, image, tell), offsets_of(image, tell)
    with making(target, replace=overwrite) as work:
        work.mkdir()
        scales: list[LevelCopy] = []
        for number, (level, offset) in enumerate(zip(image.levels, offsets, strict=True)):
            resolution = [length * factor for length, factor in zip(size, level.factor, strict=True)]
            where = {"key": str(number), "resolution": resolution[::-1], "voxel_offset": offset[::-1]}
            scales.append(_create_scale(target, work, image, level, where))
        yield scales
        _describe(work, image)
        sync_tree(work)


def offsets_of(image: ExportImage, tell: Callable[[str], None]) -> list[Triple]:
    """Place (z, y, x) of each level, in whole voxels of its own; `tell` is told which of them lie elsewhere."""
    first = [place / size for place, size in zip(image.volume.crop(image.region), image.volume.scale, strict=True)]
    found, moved = [], []
    for number, level in enumerate(image.levels):
        exact = [place / factor for place, factor in zip(first, level.factor, strict=True)]
        found.append(triple(math.floor(place + 0.5) for place in exact))
        if any(abs(place - whole) > EXACT for place, whole in zip(exact, found[-1], strict=True)):
            moved.append(number)
    if moved:
        levels = ", ".join(map(str, moved))
        tell(f"precomputed counts whole voxels alone: level {levels} is moved, by half a voxel of its own at most")
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """A level as a scale of a precomputed volume, whose chunks lie in files of many."""

    level: ExportLevel
    dtype: str
    blocks: Blocks
    """Boxes of a file each."""
    target: Path
    """What is made, as messages name it."""
    spec: dict[str, Any]
    """As tensorstore opens it."""
    offset: Triple
    """Place (z, y, x) of its first voxel, in voxels of its own."""

    def opened(self) -> Store:
        return partial(self._store, _opened(self.target, self.spec))

    def _store(self, array: Any, box: Box, voxels: NDArray[Any]) -> None:
        part = voxels.astype(self.dtype, copy=False).transpose()[..., np.newaxis]
        z, y, x = box.shift(self.offset).start
        try:
            with load_extra(LIBRARY, LIBRARY, self.target, "written").Transaction() as whole:
                array.with_transaction(whole)[x : x + part.shape[0], y : y + part.shape[1], z : z + part.shape[2]] = part
        except Exception as error:
            raise _not_written(self.target, error) from error


def _create_scale(target: Path, work: Path, image: ExportImage, level: ExportLevel, where: dict[str, Any]) -> LevelCopy:
    shape, dtype = level.array.shape, _dtype(image)
    spec = {
        "driver": DRIVER,
        "kvstore": {"driver": "file", "path": f"{work}/"},
        "multiscale_metadata": {
            "type": "image" if image.kind == "probability" else "segmentation",
            "data_type": dtype,
            "num_channels": 1,
        },
        "scale_metadata": {**where, "size": shape[::-1], **_layout(image, shape)},
    }
    unit = triple(_opened(target, spec, create=True).chunk_layout.write_chunk.shape[2::-1])
    return _Scale(level, dtype, Blocks(Box.of_shape(shape), unit), target, spec, triple(where["voxel_offset"][::-1]))


def _opened(target: Path, spec: dict[str, Any], *, create: bool = False) -> Any:
    """A scale, as tensorstore has it."""
    try:
        return load_extra(LIBRARY, LIBRARY, target, "written").open(spec, open=not create, create=create).result()
    except Exception as error:
        raise _not_written(target, error) from error


def _dtype(image: ExportImage) -> str:
    """Name of the type that is stored; ids have no smaller ones."""
    if image.kind == "probability":
        return image.dtype
    return "uint64" if image.dtype == "uint64" else "uint32"


def _layout(image: ExportImage, shape: Triple) -> dict[str, Any]:
    """Chunks, how they are encoded, and which are in one file."""
    chunk = brick_layout(shape[0], "uint8")[1]
    codes = sum(math.ceil(math.log2(math.ceil(length / part))) for length, part in zip(shape, chunk, strict=True))
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": CHUNK_BITS,
        "hash": "identity",
        "minishard_bits": 0,
        "shard_bits": max(0, codes - CHUNK_BITS),
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }
    layout: dict[str, Any] = {"chunk_size": chunk[::-1], "sharding": sharding}
    if image.kind == "probability":
        return {**layout, "encoding": "raw"}
    return {**layout, "encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}


def _describe(work: Path, image: ExportImage) -> None:
    """Complete the volume's description with the mark of an export, and with names of classes."""
    info = json.loads((work / INFO).read_bytes()) | {"emseg": MARK}
    if image.classes:
        info[PROPERTIES] = PROPERTIES
        ids = [str(number) for number in range(len(image.classes))]
        labels = {"id": "label", "type": "label", "values": list(image.classes)}
        (work / PROPERTIES).mkdir()
        named = {"@type": "neuroglancer_segment_properties", "inline": {"ids": ids, "properties": [labels]}}
        write_json(work / PROPERTIES / INFO, named)
    write_json(work / INFO, info)


def _nanometres(target: Path, image: ExportImage, tell: Callable[[str], None]) -> tuple[float, ...]:
    """Size (z, y, x) of a voxel of the finest level, in nanometres."""
    volume = image.volume
    for unit, known in zip(volume.units, volume.unit_sizes, strict=True):
        if unit is not None and known is None:
            raise OutputError(f"{target} would be in nanometres, but the volume is in {unit!r}: export OME-Zarr")
    if None in volume.units[-volume.rank :]:
        tell("the volume states no unit of length, precomputed always does: its voxel size is written as nanometres")
    return tuple(size * (known or 1) for size, known in zip(volume.scale, volume.unit_sizes, strict=True))


def _not_written(target: Path, error: Exception) -> OutputError:
    return OutputError(f"{target} cannot be written ({why(error)}): check the disk and the folder's permissions")
