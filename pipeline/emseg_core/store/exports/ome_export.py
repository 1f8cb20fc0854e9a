"""Write a self-contained OME-Zarr image, version 0.4 or 0.5, with all its levels.

TARGET            the image; labels with their names and colours as ``image-label``
TARGET/0, 1, ...  its levels: in 0.5 sharded like the arrays of an output, in 0.4 chunks of Zarr v2, compressed with Blosc
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import zarr
from numcodecs import Blosc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.storage import LocalStore

from emseg_core.box import Box
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.store.exports.image import EXPORT_MARK, ExportImage, ExportLevel, LevelCopy, WriteBox, export_folder
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.atomic_write import PARTIAL_SUFFIX, sync_tree
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.zarrs.arrays import create_array, create_group, open_shards
from emseg_core.store.zarrs.ome import multiscales
from emseg_core.store.zarrs.omero import image_label, omero

Version = Literal["0.4", "0.5"]


@contextmanager
def ome_export(path: str | Path, image: ExportImage, version: Version, *, overwrite: bool = False) -> Iterator[list[LevelCopy]]:
    """Create an OME-Zarr image, whose levels are to be copied within the ``with`` block.

    The image appears complete at the end of the block, or not at all. Voxels and coordinates are those of the output. Voxels
    that were not computed are 255, or 0 in instance labels.

    Parameters
    ----------
    path
        Path of the image.
    image
        Image of an output.
    version
        Version of OME-Zarr.
    overwrite
        Whether to replace an earlier export.

    Yields
    ------
    list of LevelCopy
        Levels to copy.

    Raises
    ------
    OutputError
        If something exists that is not to be replaced, or the image cannot be written.
    """
    target = export_folder(path, overwrite=overwrite)
    with atomic_folder(target, replace=overwrite) as work:
        work.mkdir()
        if version == "0.5":
            create_group(
                LocalFiles(work), "", {"ome": {"version": version, **_described(image, version)}, "emseg": EXPORT_MARK}
            )
        else:
            attributes = {**_described(image, version), "emseg": EXPORT_MARK}
            zarr.create_group(store=LocalStore(work), attributes=attributes, zarr_format=2)
        create = _create_sharded if version == "0.5" else _create_chunks
        yield [create(work, str(number), image, level) for number, level in enumerate(image.levels)]
        for left in work.rglob(f"*{PARTIAL_SUFFIX}"):  # killed workers leave partial files
            left.unlink()
        sync_tree(work)


def _described(image: ExportImage, version: Version) -> dict[str, Any]:
    """Return the OME metadata of the group."""
    places = [(str(number), image.space.coarser(level.factor)) for number, level in enumerate(image.levels)]
    (multiscale,) = multiscales(places, image.name)
    found: dict[str, Any] = {"multiscales": [{**({"version": version} if version == "0.4" else {}), **multiscale}]}
    if image.kind == "probability":
        return {**found, "omero": omero((image.name,))}
    named = image_label(image.classes) if image.classes else {}
    return {**found, "image-label": {"version": version, **named}}


@dataclass(frozen=True, slots=True)
class _Copy:
    """A level as Zarr, whose files are those of the output or parts of them."""

    level: ExportLevel
    dtype: str
    write: WriteBox

    @property
    def blocks(self) -> Blocks:
        return self.level.blocks

    def open_writer(self) -> WriteBox:
        return lambda box, voxels: self.write(box, voxels.astype(self.dtype, copy=False))


def _create_sharded(root: Path, name: str, image: ExportImage, level: ExportLevel) -> LevelCopy:
    """Create an empty level as Zarr v3, with a shard for each shard of the output."""
    stored = level.array.array
    first = stored.ndim - len(image.space.names)
    layout: dict[str, Any] = {"shard": (stored.shards or stored.chunks)[first:], "chunk": stored.chunks[first:]}
    shape, axes = stored.shape[first:], image.space.names
    files = LocalFiles(root)
    create_array(files, name, shape=shape, dtype=image.dtype, fill_value=_fill_value(image), axes=axes, **layout)
    return _Copy(level, image.dtype, open_shards(files, name, 0).write)


def _create_chunks(root: Path, name: str, image: ExportImage, level: ExportLevel) -> LevelCopy:
    """Create an empty level as Zarr v2, with a file for each chunk."""
    stored, rank = level.array.array, len(image.space.names)
    array = zarr.create_array(
        store=LocalStore(root),
        name=name,
        shape=stored.shape[-rank:],
        chunks=stored.chunks[-rank:],
        dtype=image.dtype,
        fill_value=_fill_value(image),
        compressors=Blosc("zstd", clevel=1),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        zarr_format=2,
    )
    return _Copy(level, image.dtype, partial(_write_chunks, array))


def _write_chunks(array: zarr.Array[Any], box: Box, voxels: NDArray[Any]) -> None:
    """Store the voxels of a box of whole chunks."""
    array[box.slices()[-array.ndim :]] = voxels.reshape(voxels.shape[-array.ndim :])


def _fill_value(image: ExportImage) -> int:
    """Return the value of voxels that were not computed."""
    return 0 if image.kind == "instances" else NOT_COMPUTED
