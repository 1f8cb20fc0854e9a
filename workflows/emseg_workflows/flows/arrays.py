"""Arrays where paths are asked for: what workers on other hosts, and later runs, shall read must lie on a disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emseg.box import Box
from emseg.errors import OutputError
from emseg.store.array_stack import Array, ArrayStack, place_of_array
from emseg.store.place import Address, Place, beside, place_of
from emseg.store.volume import open_volume
from emseg_workflows.flows.ingest import ingest


def volume_at(
    volume: str | Path | Address | Array,
    output: str | Place | None,
    voxel_size: tuple[float, float, float] | None,
) -> Place:
    """Where a volume is. An array is stored as ``NAME.volume.zarr`` beside its output, unless Zarr has it on a local disk.

    Parameters
    ----------
    output
        The output, which an array needs.
    voxel_size
        Of an array: size (z, y, x) of a voxel in nanometres.

    Raises
    ------
    InputError
        If the array cannot be a volume, has no place, or another one is there.
    """
    if isinstance(volume, str | Path | Address):
        if voxel_size is not None:
            raise OutputError(f"a voxel size is told of arrays, but {volume} is a path: state it in the volume, or ingest it")
        return place_of(volume)
    if (place := place_of_array(volume)) is not None and voxel_size is None:
        return place
    if output is None:
        raise OutputError("an array is stored beside the output of its run, but no output is named: name one")
    at = place_of(output).absolute()
    path = beside(at, f"{at.name.removesuffix('.zarr').removesuffix('.emseg')}.volume.zarr")
    if not path.exists():
        ingest(volume, path, voxel_size=voxel_size)
    elif not _same(ArrayStack(volume), path):
        raise OutputError(f"{path} holds other voxels than the array: remove it, or name another output")
    return path


def _same(stack: ArrayStack, path: Path) -> bool:
    """Whether a volume holds the voxels of an array; a few slices are in memory at once."""
    stored = open_volume(path)
    if (stored.spec.shape, stored.spec.dtype) != (stack.shape, stack.dtype):
        return False
    box, depth = stored.spec.box, stored.spec.chunk[0]
    for start in range(0, box.stop[0], depth):
        part = Box((start, 0, 0), (min(start + depth, box.stop[0]), *box.stop[1:]))
        if not np.array_equal(stored.read(part), stack.read(part.start[0], part.stop[0]), equal_nan=stack.dtype == "float32"):
            return False
    return True
