"""Writing an OME-Zarr image that stands for itself, 0.4 or 0.5, with all its levels.

TARGET            the image; of labels, with their names and colours as ``image-label``
TARGET/0, 1, ...  its levels: in 0.5 sharded as an output's arrays, in 0.4 chunks of Zarr v2, compressed with Blosc
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import zarr
from numcodecs import Blosc  # type: ignore[import-untyped]
from zarr.storage import LocalStore

from emseg.store.arrays import create_array, create_group, open_shards
from emseg.store.classes import image_label, omero
from emseg.store.exported import MARK, ExportImage, ExportLevel, export_folder
from emseg.store.files import LocalFiles
from emseg.store.ledger import NOT_COMPUTED
from emseg.store.ome import multiscales
from emseg.store.staging import staged, sync_tree

Version = Literal["0.4", "0.5"]


def write_ome(path: str | Path, image: ExportImage, version: Version, *, overwrite: bool = False) -> Path:
    """The OME-Zarr image made of an image of an output, a write unit at a time; it is there whole, or not at all.

    Its voxels, and where they lie, are those of the output; what was not computed is 255, of instances 0.

    Raises
    ------
    OutputError
        If there is something already that is not to be replaced, or it cannot be written.
    BlockError
        If the output cannot be read.
    """
    target = export_folder(path, overwrite=overwrite)
    with staged(target, replace=overwrite) as work:
        if version == "0.5":
            create_group(LocalFiles(work), "", {"ome": {"version": version, **_described(image, version)}, "emseg": MARK})
        else:
            attributes = {**_described(image, version), "emseg": MARK}
            zarr.create_group(store=LocalStore(work), attributes=attributes, zarr_format=2)
        for number, level in enumerate(image.levels):
            write = _write_sharded if version == "0.5" else _write_chunks
            write(work, str(number), image, level)
        sync_tree(work)
    return target


def _described(image: ExportImage, version: Version) -> dict[str, Any]:
    """OME metadata of the group."""
    places = [(str(number), image.space.coarser(level.factor)) for number, level in enumerate(image.levels)]
    (multiscale,) = multiscales(places, image.name)
    found: dict[str, Any] = {"multiscales": [{**({"version": version} if version == "0.4" else {}), **multiscale}]}
    if image.kind == "probability":
        return {**found, "omero": omero((image.name,), NOT_COMPUTED - 1)}
    named = image_label(image.classes) if image.classes else {}
    return {**found, "image-label": {"version": version, **named}}


def _write_sharded(root: Path, name: str, image: ExportImage, level: ExportLevel) -> None:
    """Write a level as Zarr v3, one shard for each of the output's."""
    stored = level.array.array
    first = stored.ndim - len(image.space.names)
    layout: dict[str, Any] = {"shard": (stored.shards or stored.chunks)[first:], "chunk": stored.chunks[first:]}
    shape, axes = stored.shape[first:], image.space.names
    files = LocalFiles(root)
    create_array(files, name, shape=shape, dtype=image.dtype, fill_value=_fill_value(image), axes=axes, **layout)
    shards = open_shards(files, name, 0)
    for block in level.blocks:
        shards.write(block.write, level.read(block.write).astype(image.dtype, copy=False))


def _write_chunks(root: Path, name: str, image: ExportImage, level: ExportLevel) -> None:
    """Write a level as Zarr v2, one file for each chunk."""
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
    for block in level.blocks:
        voxels = level.read(block.write).astype(image.dtype, copy=False)
        array[block.write.slices()[-rank:]] = voxels.reshape(voxels.shape[-rank:])


def _fill_value(image: ExportImage) -> int:
    """What stands for voxels that were not computed."""
    return 0 if image.kind == "instances" else NOT_COMPUTED
