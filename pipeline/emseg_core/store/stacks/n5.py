"""Read a stack of slices from a dataset of an N5 container, with tensorstore: https://github.com/saalfeldlab/n5.

N5 lists axes and sizes with x first. The voxel size is taken from the first of these attributes that exists:

    transform                    axes, scale, translate, units       of the dataset itself, as COSEM writes it
    pixelResolution              dimensions, unit; or only a list    of s0, as n5-viewer and BigDataViewer read it
    resolution, offset, units                                        of s0, as in Neuroglancer, Paintera and funlib

The last two may be attributes of an enclosing group. A coarser dataset is scaled by its ``downsamplingFactors``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from emseg_core.box import AXES, Box, three
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.stacks.stack import StatedVoxelSize, dataset_error
from emseg_core.store.stacks.tensor import TensorStack, open_tensor
from emseg_core.store.stacks.tiff_size import UNITS
from emseg_core.store.zarrs.nodes import read_json
from emseg_core.store.zarrs.ome import is_name, numbers

ATTRIBUTES = "attributes.json"
N5_SUFFIX = ".n5"
LAYOUT_ATTRIBUTES = ("dimensions", "blockSize", "dataType", "compression")
"""Attributes that describe how a dataset is stored."""
DEFAULT_AXES = ("x", "y", "z", "c", "t")
"""Axes of a dataset that does not name them."""


def is_n5(path: Path) -> bool:
    """Check whether a path is an N5 container, or a group or dataset in one.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    bool
        False if it is not a folder.
    """
    return path.is_dir() and (path.suffix.lower() == N5_SUFFIX or (path / ATTRIBUTES).is_file())


def open_n5(path: Path, dataset: str | None, *, allow_missing: bool = False) -> TensorStack:
    """Open the stack in a dataset of an N5 container.

    Parameters
    ----------
    path
        Path of the container, or of a group or dataset in it.
    dataset
        Path of the dataset in the container; None if it holds only one, or one with coarser levels. Of a group of levels
        ``s0``, ``s1``, ... the finest is opened.
    allow_missing
        Whether chunks may be missing; they read as 0.

    Returns
    -------
    TensorStack
        The open stack.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, there is no such stack, or emseg cannot read it.
    """
    folder = _chosen(path, dataset)
    attributes = _attributes(folder)
    layout = {key: value for key, value in attributes.items() if key in LAYOUT_ATTRIBUTES}  # tensorstore rejects other keys
    array = open_tensor("n5", folder, allow_missing=allow_missing, metadata=layout, assume_metadata=True)
    axes = attributes.get("axes")
    if not isinstance(axes, list) or len(axes) != array.ndim or not all(map(is_name, axes)):
        axes = [*DEFAULT_AXES, *(f"axis {number}" for number in range(len(DEFAULT_AXES), array.ndim))][: array.ndim]
    named = tuple(axis.lower() for axis in axes)
    try:
        stated = _stated(folder, attributes, named)
    except ValueError as error:
        raise VolumeError(f"the attributes of {folder} are wrong, {error}: repair them") from error
    edges = dict(zip(named, array.chunk_layout.read_chunk.shape, strict=True))

    def file_of(chunk: Box) -> Path:
        start = dict(zip(AXES, chunk.start, strict=True))
        return folder / "/".join(str(start.get(axis, 0) // edges[axis]) for axis in named)

    return TensorStack(folder, array, named, DTYPES, stated, file_of)


def _attributes(folder: Path) -> dict[str, Any]:
    """Read the attributes of a group or dataset; empty if it has no such file."""
    unreadable = translate_damage(f"{folder / ATTRIBUTES} cannot be read", "check its permissions")
    with unreadable, suppress(FileNotFoundError, NotADirectoryError):
        return read_json(folder / ATTRIBUTES)
    return {}


def _is_dataset(folder: Path) -> bool:
    """Check whether a folder is a dataset."""
    return "dimensions" in _attributes(folder)


def _chosen(path: Path, dataset: str | None) -> Path:
    """Return the folder of the dataset of that name, or of the only one in the container."""
    asked = path / (dataset or "").strip("/")
    if asked.resolve().is_relative_to(path.resolve()):
        for folder in (asked, asked / "s0"):
            if _is_dataset(folder):
                return folder
    there = list(_datasets(path))
    finest = [name for name in there if not re.fullmatch("s[1-9][0-9]*", name.rpartition("/")[2])]
    if dataset is None and len(finest) == 1:
        return path / finest[0]
    raise dataset_error(path, dataset, there)


def _datasets(container: Path) -> Iterator[str]:
    """Yield the path of each dataset in a container, without visiting its chunks."""
    for root, names, _ in os.walk(container):
        names.sort()
        if _is_dataset(Path(root)):
            names.clear()
            yield Path(root).relative_to(container).as_posix()


def _stated(folder: Path, attributes: Mapping[str, Any], axes: tuple[str, ...]) -> StatedVoxelSize | None:
    """Return the voxel size that the attributes of the dataset, or of an enclosing group, state."""
    if isinstance(transform := attributes.get("transform"), dict):
        return _transform(transform)
    holder = next((found for found in _with_parents(folder) if found.keys() & {"pixelResolution", "resolution"}), None)
    if holder is None:
        return None
    (size, unit), first, count = _size(holder), holder.get("offset"), len(axes)
    scale = numbers(size, count, "the resolution")
    offset = numbers(first, count, "the offset") if first is not None else (0.0,) * count
    factors = _factors(folder, attributes, count)
    coarse = [size * factor for size, factor in zip(scale, factors, strict=True)]
    centre = [place + size * (factor - 1) / 2 for place, size, factor in zip(offset, scale, factors, strict=True)]
    return _in_order(axes, coarse, centre, _units(unit, count))


def _size(attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the voxel size and the unit or units as stored, unchecked."""
    own = attributes.get("pixelResolution")
    if isinstance(own, dict):
        return own.get("dimensions"), own.get("unit")
    return (attributes.get("resolution"), attributes.get("units")) if own is None else (own, None)


def _with_parents(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the attributes of a dataset and of its enclosing groups, up to the container."""
    while True:
        attributes = _attributes(folder)
        yield attributes
        if folder.suffix.lower() == N5_SUFFIX or "n5" in attributes or not is_n5(folder.parent) or folder == folder.parent:
            return
        folder = folder.parent


def _factors(folder: Path, attributes: Mapping[str, Any], count: int) -> tuple[float, ...]:
    """Return the number of voxels of ``s0`` in one voxel of this dataset, along each axis."""
    own = attributes.get("downsamplingFactors")
    level = re.fullmatch("s([0-9]+)", folder.name)
    if own is None and level:
        group = _attributes(folder.parent)
        listed = group.get("downsamplingFactors", group.get("scales"))
        if isinstance(listed, list) and int(level[1]) < len(listed):
            own = listed[int(level[1])]
    return (1.0,) * count if own is None else numbers(own, count, "downsamplingFactors")


def _transform(transform: Mapping[str, Any]) -> StatedVoxelSize:
    """Return the voxel size that a ``transform`` states, in the order of the axes that it names."""
    axes = transform.get("axes")
    if not isinstance(axes, list) or not all(map(is_name, axes)):
        raise ValueError("the transform names no axes")
    names, count = [axis.lower() for axis in axes], len(axes)
    scale, first = (numbers(transform.get(name), count, f"the transform's {name}") for name in ("scale", "translate"))
    return _in_order(names, scale, first, _units(transform.get("units"), count))


def _units(value: Any, count: int) -> list[str | None]:
    """Return the unit of each axis as in OME-Zarr; None if there is none, or it is not a length."""
    units = value if isinstance(value, list) and len(value) == count else [value] * count
    return [UNITS.get(unit.lower()) if isinstance(unit, str) else None for unit in units]


def _in_order(
    axes: Sequence[str], scale: Sequence[float], first: Sequence[float], units: Sequence[str | None]
) -> StatedVoxelSize:
    """Return the stated voxel size in the order (z, y, x); voxels have size 1 along missing axes."""
    stated = dict(zip(axes, zip(scale, first, units, strict=True), strict=True))
    sizes, places, named = zip(*(stated.get(axis, (1.0, 0.0, None)) for axis in AXES), strict=True)
    if min(sizes) <= 0:
        raise ValueError(f"the voxels have the size {sizes}, which must be positive")
    return StatedVoxelSize(three(sizes), three(named), "the attributes of the dataset", three(places))
