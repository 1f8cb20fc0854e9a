"""Volumes that are given as arrays: stored on disk, so that workers on other hosts and later runs can read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emseg_core.box import Box
from emseg_core.errors import OutputError
from emseg_core.store.files.place import Address, Place, parse_place, sibling
from emseg_core.store.stacks.array_stack import Array, ArrayStack, path_of_array
from emseg_core.store.volumes.volume import open_volume


def volume_at(
    volume: str | Path | Address | Array, output: str | Place | None, voxel_size: tuple[float, float, float] | None
) -> Place:
    """Return the place of a volume, and store an array first.

    It is stored as ``NAME.volume.zarr`` beside its output, unless it is a Zarr array on a local disk.

    Parameters
    ----------
    output
        The output; an array needs one.
    voxel_size
        Of an array: size (z, y, x) of a voxel in nanometres.

    Returns
    -------
    Place

    Raises
    ------
    InputError
        If the array cannot be a volume, no output is named, or another volume is stored there.
    """
    if isinstance(volume, str | Path | Address):
        if voxel_size is not None:
            raise OutputError(f"voxel_size is for arrays, but {volume} is a path: state it in the volume, or ingest it")
        return parse_place(volume)
    if (place := path_of_array(volume)) is not None and voxel_size is None:
        return place
    if output is None:
        raise OutputError("an array is stored beside its output, but no output is named: name one")
    at = parse_place(output).absolute()
    path = sibling(at, f"{at.name.removesuffix('.zarr').removesuffix('.emseg')}.volume.zarr")
    if not path.exists():
        from emseg.flows.ingest import ingest  # few runs need what it imports

        ingest(volume, path, voxel_size=voxel_size)
    elif not _same(ArrayStack(volume), path):
        raise OutputError(f"{path} holds other voxels than the array: remove it, or name another output")
    return path


def _same(stack: ArrayStack, path: Path) -> bool:
    """Return whether a volume holds the voxels of an array, with a few slices in memory at a time."""
    stored = open_volume(path)
    if (stored.spec.shape, stored.spec.dtype) != (stack.shape, stack.dtype):
        return False
    box, depth = stored.spec.box, stored.spec.chunk[0]
    for start in range(0, box.stop[0], depth):
        part = Box((start, 0, 0), (min(start + depth, box.stop[0]), *box.stop[1:]))
        if not np.array_equal(stored.read(part), stack.read(part.start[0], part.stop[0]), equal_nan=stack.dtype == "float32"):
            return False
    return True
