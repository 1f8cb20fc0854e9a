"""Making a volume of slices in other formats: `emseg ingest`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import OutputError, VolumeError
from emseg.grid.blocks import Blocks
from emseg.specs.volume import VolumeSpec
from emseg.store.array_stack import Array
from emseg.store.formats import open_stack
from emseg.store.new_volume import brick_layout, new_volume, slab_layout
from emseg.store.ome import LENGTH_UNITS
from emseg.store.stack import ChunkedStack, Stack, Stated
from emseg.store.staging import output_path

NOT_STATED = Stated((1.0, 1.0, 1.0), (None, None, None), "nowhere: it is not stated")


@dataclass(frozen=True, slots=True)
class Ingested:
    """A volume that was made of slices."""

    spec: VolumeSpec
    """What it is."""
    size_from: str
    """Where its voxel size comes from, in words."""
    missing: tuple[int, ...] = ()
    """z of each slice that was missing, and is 0."""


def ingest(
    source: str | Path | Array,
    volume_path: str | Path,
    *,
    dataset: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    unit: str = "nanometer",
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """The volume made of a stack of slices; it is there in whole, or not at all.

    One that was killed or stopped goes on where it was when it is asked for again, if its source is as it was.

    Parameters
    ----------
    source
        A TIFF file of many pages, an MRC or HDF5 file, a folder of PNG or one-page TIFF files, numbered in their names, an N5
        container or dataset, or a Neuroglancer precomputed volume; or an array ``(z, y, x)`` or ``(y, x)`` of NumPy, Dask or
        Zarr.
    volume_path
        Where to make the volume, an OME-Zarr image.
    dataset
        Path of the dataset in an HDF5 file or an N5 container; None if there is only one.
    voxel_size
        Size (z, y, x) of a voxel in `unit`; None for what the source states, else 1 with no unit.
    unit
        Unit of length of `voxel_size`, as OME-Zarr spells it.
    allow_missing
        Whether slices of a folder may be missing; they are 0, and listed in the volume's attributes. Chunks of N5 and
        precomputed may be missing, too, as their writers may leave out what is 0.
    overwrite
        Whether to replace a volume that was ingested before.
    progress
        Called with the number of slices done, and of all slices, whenever it has grown.

    Raises
    ------
    VolumeError
        If the slices cannot be read, or are not one volume.
    OutputError
        If the volume cannot be written there.
    """
    given = None if voxel_size is None else _given(voxel_size, unit)
    target = output_path(volume_path)
    with open_stack(source, dataset, allow_missing=allow_missing) as stack:
        if isinstance(source, str | Path):
            _refuse_overlap(Path(source), target)
        size = given or stack.stated or NOT_STATED
        shard, chunk, part, read = _layout(stack)
        spec = VolumeSpec(stack.shape, stack.dtype, chunk, 3, size.scale, size.translation, size.units)
        state = _state_of(Path(source), dataset) if isinstance(source, str | Path) else ""
        with new_volume(target, spec, shard, missing=stack.missing, replace=overwrite, source=state) as volume:
            for block in Blocks(spec.box, part):
                if not volume.has(block.write):
                    volume.write_box(block.write, read(block.write))
                if progress is not None and block.write.stop[1:] == spec.shape[1:]:
                    progress(block.write.stop[0], spec.shape[0])
    return Ingested(spec, size.source, stack.missing)


def _state_of(source: Path, dataset: str | None) -> str:
    """What tells a source from others, and from what it was: name, size and time of its file, or of what is in its folder."""
    entries = sorted(source.iterdir()) if source.is_dir() else [source]
    facts = [(entry.name, found.st_size, found.st_mtime_ns) for entry in entries for found in [entry.stat()]]
    return json.dumps([str(source.absolute()), dataset, facts])


def _layout(stack: Stack) -> tuple[Triple, Triple, Triple, Callable[[Box], NDArray[Any]]]:
    """Shapes (z, y, x) of shards, of chunks, and of what is in memory at once; and what reads that."""
    if isinstance(stack, ChunkedStack):
        shard, chunk = brick_layout(stack.shape[0], stack.dtype)
        return shard, chunk, shard, stack.read_box
    shard, chunk = slab_layout(stack.shape, stack.dtype)
    return shard, chunk, (shard[0], *stack.shape[1:]), lambda box: stack.read(box.start[0], box.stop[0])


def _given(voxel_size: tuple[float, float, float], unit: str) -> Stated:
    if len(voxel_size) != 3 or not all(math.isfinite(length) and length > 0 for length in voxel_size):
        raise VolumeError(f"the voxel size is {voxel_size}, but must be three positive numbers (z, y, x): correct it")
    if unit not in LENGTH_UNITS:
        raise VolumeError(f"the unit is {unit!r}, but OME-Zarr writes it in full: one of {', '.join(LENGTH_UNITS)}")
    z, y, x = map(float, voxel_size)
    return Stated((z, y, x), (unit, unit, unit), "what was given")


def _refuse_overlap(source: Path, target: Path) -> None:
    """A volume inside its source would be mixed with the slices; a source inside the volume would be overwritten."""
    here, there = source.resolve(), target.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise OutputError(
            f"the volume {target} and its source {source} lie in one another: choose another place for the volume"
        )
