"""Write a Neuroglancer precomputed volume, with tensorstore: https://neuroglancer-docs.web.app/datasource/precomputed/.

TARGET/info                 sizes in nanometres and positions of all scales, x first
TARGET/0, 1, ...            each level, with 64 chunks in a file; chunks that contain only 0 are omitted
TARGET/segment_properties   names of the classes
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

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import OutputError
from emseg_core.grid.blocks import Blocks
from emseg_core.store.exports.image import EXPORT_MARK, PROPERTIES, ExportImage, ExportLevel, LevelCopy, WriteBox, export_folder
from emseg_core.store.exports.new_volume import brick_layout
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.atomic_write import sync_tree, write_json
from emseg_core.store.files.extras import load_extra
from emseg_core.store.stacks.precomputed import DRIVER, INFO
from emseg_core.store.stacks.tensor import LIBRARY, describe_tensorstore_error

CHUNK_BITS = 6
"""Binary logarithm of the number of chunks in a file."""
OFFSET_TOLERANCE_VOXELS = 1e-6
"""Distance, in voxels, below which two positions count as equal."""


@contextmanager
def precomputed_export(
    path: str | Path, image: ExportImage, warn: Callable[[str], None], *, overwrite: bool = False
) -> Iterator[list[LevelCopy]]:
    """Create a precomputed volume, whose levels are to be copied within the ``with`` block; it is complete at its end.

    Labels become a segmentation of ``uint32`` or ``uint64`` ids as ``compressed_segmentation``, of which Neuroglancer does not
    show 0. A probability becomes an image of ``uint8``. Both are also compressed with gzip. Each level is moved to its nearest
    whole voxel, as precomputed has no other positions.

    Parameters
    ----------
    path
        Path of the volume.
    image
        Image of an output.
    warn
        Called with a line for everything that precomputed cannot represent.
    overwrite
        Whether to replace an earlier export.

    Yields
    ------
    list of LevelCopy
        Levels to copy.

    Raises
    ------
    OutputError
        If something exists that is not to be replaced, the volume cannot be written, or the units are not lengths.
    VolumeError
        If tensorstore is not installed.
    """
    target = export_folder(path, overwrite=overwrite)
    load_extra(LIBRARY, LIBRARY, target, "written")
    size, offsets = _nanometres(target, image, warn), offsets_of(image, warn)
    with atomic_folder(target, replace=overwrite) as work:
        work.mkdir()
        scales: list[LevelCopy] = []
        for number, (level, offset) in enumerate(zip(image.levels, offsets, strict=True)):
            resolution = [length * factor for length, factor in zip(size, level.factor, strict=True)]
            where = {"key": str(number), "resolution": resolution[::-1], "voxel_offset": offset[::-1]}
            scales.append(_create_scale(target, work, image, level, where))
        yield scales
        _describe(work, image)
        sync_tree(work)


def offsets_of(image: ExportImage, warn: Callable[[str], None]) -> list[Triple]:
    """Return the position of each level in whole voxels.

    Parameters
    ----------
    image
        Image of an output.
    warn
        Called with a line if levels had to be moved.

    Returns
    -------
    list of tuple of int
        Position (z, y, x) of each level, in voxels of its own.
    """
    first = [place / size for place, size in zip(image.volume.crop(image.region), image.volume.scale, strict=True)]
    found, moved = [], []
    for number, level in enumerate(image.levels):
        exact = [place / factor for place, factor in zip(first, level.factor, strict=True)]
        found.append(triple(math.floor(place + 0.5) for place in exact))
        if any(abs(place - whole) > OFFSET_TOLERANCE_VOXELS for place, whole in zip(exact, found[-1], strict=True)):
            moved.append(number)
    if moved:
        levels = f"level{'' if len(moved) == 1 else 's'} {', '.join(map(str, moved))}"
        warn(f"precomputed stores offsets in whole voxels: moved {levels} by up to half a voxel")
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """A level as a scale of a precomputed volume, with many chunks in a file."""

    level: ExportLevel
    dtype: str
    blocks: Blocks
    """Grid of boxes that are a file each."""
    target: Path
    """Path of the volume, for error messages."""
    spec: dict[str, Any]
    """Spec for opening it with tensorstore."""
    offset: Triple
    """Position (z, y, x) of its first voxel, in its own voxels."""

    def open_writer(self) -> WriteBox:
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
    """Create an empty scale."""
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
    """Open a scale with tensorstore."""
    try:
        return load_extra(LIBRARY, LIBRARY, target, "written").open(spec, open=not create, create=create).result()
    except Exception as error:
        raise _not_written(target, error) from error


def _dtype(image: ExportImage) -> str:
    """Return the name of the dtype of the copy; ids have no smaller ones."""
    if image.kind == "probability":
        return image.dtype
    return "uint64" if image.dtype == "uint64" else "uint32"


def _layout(image: ExportImage, shape: Triple) -> dict[str, Any]:
    """Return the shape and encoding of chunks, and the sharding."""
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
    """Add the mark of an export and the names of classes to the description of the volume."""
    info = json.loads((work / INFO).read_bytes()) | {"emseg": EXPORT_MARK}
    if image.classes:
        info[PROPERTIES] = PROPERTIES
        ids = [str(number) for number in range(len(image.classes))]
        labels = {"id": "label", "type": "label", "values": list(image.classes)}
        (work / PROPERTIES).mkdir()
        named = {"@type": "neuroglancer_segment_properties", "inline": {"ids": ids, "properties": [labels]}}
        write_json(work / PROPERTIES / INFO, named)
    write_json(work / INFO, info)


def _nanometres(target: Path, image: ExportImage, warn: Callable[[str], None]) -> tuple[float, ...]:
    """Return the size (z, y, x) of a voxel of the finest level in nanometres."""
    volume = image.volume
    for unit, known in zip(volume.units, volume.unit_sizes, strict=True):
        if unit is not None and known is None:
            raise OutputError(f"{target} would be in nanometres, but the unit of the volume is {unit!r}: export OME-Zarr")
    if None in volume.units[-volume.rank :]:
        warn("the volume states no unit of length: its voxel size is written as nanometres, which precomputed requires")
    return tuple(size * (known or 1) for size, known in zip(volume.scale, volume.unit_sizes, strict=True))


def _not_written(target: Path, error: Exception) -> OutputError:
    """Return the error for a failed write."""
    return OutputError(
        f"{target} cannot be written ({describe_tensorstore_error(error)}): check the disk and the folder's permissions"
    )
