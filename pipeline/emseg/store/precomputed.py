"""Reading a stack of slices from a Neuroglancer precomputed volume, with tensorstore.

https://neuroglancer-docs.web.app/datasource/precomputed/volume.html: sizes are in nanometres, x first, and the first voxel
lies ``voxel_offset`` voxels from the origin.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emseg.box import Box
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES, TRUTH_DTYPES
from emseg.store.blame import reason
from emseg.store.nodes import read_json
from emseg.store.ome import numbers
from emseg.store.stack import Stated
from emseg.store.tensor import Tensor, open_tensor

INFO = "info"
DRIVER = "neuroglancer_precomputed"
NAMES = ("x", "y", "z", "channel")
PACKED = (".gz", ".br", ".zstd", ".xz", ".bz2")
"""How the names of files end that CloudVolume has compressed, for a server to send them as they are."""


def is_precomputed(path: Path) -> bool:
    """Whether a folder holds a precomputed volume, by its file ``info``, which is an object of JSON."""
    if not (path / INFO).is_file():
        return False
    try:
        with (path / INFO).open("rb") as file:
            return file.read(100).lstrip().startswith(b"{")
    except OSError:
        return True  # it will be said what is wrong with it


def open_precomputed(path: Path, *, allow_missing: bool = False) -> Tensor:
    """The stack of the first scale of a volume; of a segmentation, ids of any type will do.

    Parameters
    ----------
    allow_missing
        Whether chunks may be missing; they are 0. In sharded volumes they always may, as writers leave out what is 0.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, or there is no such stack, or one that emseg cannot read.
    """
    try:
        info = read_json(path / INFO)
    except OSError as error:
        raise VolumeError(f"{path / INFO} cannot be read ({reason(error)}): check its permissions") from error
    try:
        stated = _stated(info)
    except (ValueError, LookupError, TypeError) as error:
        raise VolumeError(f"{path / INFO} describes no volume ({reason(error)}): restore it from a copy") from error
    finest = info["scales"][0]
    scale = path / str(finest.get("key", ""))
    _refuse_packed(scale)
    array = open_tensor(DRIVER, path, allow_missing=allow_missing, scale_index=0)
    start, stop = array.domain.origin[:3], array.domain.exclusive_max[:3]

    def file_of(chunk: Box) -> Path:
        spans = zip(start, stop, chunk.start[::-1], chunk.stop[::-1], strict=True)
        return scale / "_".join(f"{first + a}-{min(first + b, last)}" for first, last, a, b in spans)

    dtypes = TRUTH_DTYPES if info.get("type") == "segmentation" else DTYPES
    return Tensor(path, array, NAMES, dtypes, stated, None if finest.get("sharding") else file_of)


def _stated(info: dict[str, Any]) -> Stated:
    """The voxel size, and the place of the first voxel, of the first scale."""
    finest = info["scales"][0]
    x, y, z = numbers(finest["resolution"], 3, "the resolution")
    if min(x, y, z) <= 0:
        raise ValueError(f"the resolution is {(x, y, z)}, which must be positive")
    first, second, third = numbers(finest.get("voxel_offset", [0, 0, 0]), 3, "the voxel_offset")
    return Stated((z, y, x), ("nanometer",) * 3, "the info of the volume", (z * third, y * second, x * first))


def _refuse_packed(scale: Path) -> None:
    """Refuses chunks under other names, which tensorstore would take for missing."""
    try:
        with os.scandir(scale) as entries:
            packed = next((entry.name for entry in entries if entry.name.endswith(PACKED)), None)
    except (OSError, ValueError) as error:  # a name that no folder can have
        raise VolumeError(f"the chunks in {str(scale)!r} cannot be listed ({reason(error)}): copy the volume again") from error
    if packed is not None:
        raise VolumeError(
            f"{scale / packed} is a compressed file of a chunk: decompress all of these, with `gunzip -r {scale}` say"
        )
