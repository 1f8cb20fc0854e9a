"""Read a stack of slices from a Neuroglancer precomputed volume, with tensorstore.

Format: https://neuroglancer-docs.web.app/datasource/precomputed/volume.html. Sizes are in nanometres, x first, and the first
voxel lies ``voxel_offset`` voxels from the origin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emseg_core.box import Box
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, TRUTH_DTYPES
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.stacks.stack import StatedVoxelSize
from emseg_core.store.stacks.tensor import TensorStack, open_tensor
from emseg_core.store.zarrs.nodes import read_json
from emseg_core.store.zarrs.ome import numbers

INFO = "info"
DRIVER = "neuroglancer_precomputed"
AXIS_NAMES = ("x", "y", "z", "channel")
COMPRESSED_SUFFIXES = (".gz", ".br", ".zstd", ".xz", ".bz2")
"""Suffixes of chunk files that CloudVolume has compressed for a server to send unchanged."""


def is_precomputed(path: Path) -> bool:
    """Check whether a folder is a precomputed volume, that is, has a file ``info`` with a JSON object.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    bool
        True also if the file cannot be read; opening the volume then says why.
    """
    if not (path / INFO).is_file():
        return False
    try:
        with (path / INFO).open("rb") as file:
            return file.read(100).lstrip().startswith(b"{")
    except OSError:
        return True  # opening it reports the error


def open_precomputed(path: Path, *, allow_missing: bool = False) -> TensorStack:
    """Open the stack of the first scale of a volume; a segmentation may have ids of any type.

    Parameters
    ----------
    path
        Path of the volume.
    allow_missing
        Whether chunks may be missing; they read as 0. In sharded volumes they always may, as writers omit chunks of 0.

    Returns
    -------
    TensorStack
        The open stack.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, there is no such stack, or emseg cannot read it.
    """
    with translate_damage(f"{path / INFO} cannot be read", "check its permissions"):
        info = read_json(path / INFO)
    with translate_damage(f"{path / INFO} does not describe a volume", "restore it from a copy"):
        stated = _stated(info)
    finest = info["scales"][0]
    scale = path / str(finest.get("key", ""))
    _refuse_compressed(scale)
    array = open_tensor(DRIVER, path, allow_missing=allow_missing, scale_index=0)
    start, stop = array.domain.origin[:3], array.domain.exclusive_max[:3]

    def file_of(chunk: Box) -> Path:
        spans = zip(start, stop, chunk.start[::-1], chunk.stop[::-1], strict=True)
        return scale / "_".join(f"{first + a}-{min(first + b, last)}" for first, last, a, b in spans)

    dtypes = TRUTH_DTYPES if info.get("type") == "segmentation" else DTYPES
    return TensorStack(path, array, AXIS_NAMES, dtypes, stated, None if finest.get("sharding") else file_of)


def _stated(info: dict[str, Any]) -> StatedVoxelSize:
    """Return voxel size and position of the first voxel of the first scale."""
    finest = info["scales"][0]
    x, y, z = numbers(finest["resolution"], 3, "the resolution")
    if min(x, y, z) <= 0:
        raise ValueError(f"the resolution is {(x, y, z)}, which must be positive")
    first, second, third = numbers(finest.get("voxel_offset", [0, 0, 0]), 3, "the voxel_offset")
    return StatedVoxelSize((z, y, x), ("nanometer",) * 3, "the info of the volume", (z * third, y * second, x * first))


def _refuse_compressed(scale: Path) -> None:
    """Raise a `VolumeError` for chunks with a suffix, which tensorstore would take for missing."""
    listing = translate_damage(f"the chunks in {str(scale)!r} cannot be listed", "copy the volume again")
    with listing, os.scandir(scale) as entries:
        packed = next((entry.name for entry in entries if entry.name.endswith(COMPRESSED_SUFFIXES)), None)
    if packed is not None:
        raise VolumeError(
            f"{scale / packed} is a compressed chunk file: decompress all of them, for example with `gunzip -r {scale}`"
        )
