"""Reading a stack of slices from a dataset of an N5 container, with tensorstore: https://github.com/saalfeldlab/n5.

N5 lists axes and sizes x first. What attributes say of voxel sizes, the first of these that is there:

    transform                    axes, scale, translate, units       of the dataset itself, as COSEM writes it
    pixelResolution              dimensions, unit; or a list alone   of s0, as n5-viewer and BigDataViewer read it
    resolution, offset, units                                        of s0, as Neuroglancer, Paintera and funlib have it

The last two may be those of a group further up; a coarser dataset is larger by its ``downsamplingFactors``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emseg.box import AXES, Box
from emseg.errors import VolumeError
from emseg.specs.volume import DTYPES
from emseg.store.blame import reason
from emseg.store.nodes import read_json
from emseg.store.ome import is_name, numbers
from emseg.store.stack import Stated
from emseg.store.tensor import Tensor, open_tensor
from emseg.store.tiff_size import UNITS

ATTRIBUTES = "attributes.json"
N5_SUFFIX = ".n5"
LAYOUT = ("dimensions", "blockSize", "dataType", "compression")
"""Attributes that say how a dataset is stored."""
NAMES = ("x", "y", "z", "c", "t")
"""Axes of a dataset that does not name them."""
LISTED = 8
"""Most names that an error message lists."""


def is_n5(path: Path) -> bool:
    """Whether a folder is an N5 container, or a group or dataset of one."""
    return path.is_dir() and (path.suffix.lower() == N5_SUFFIX or (path / ATTRIBUTES).is_file())


def open_n5(path: Path, dataset: str | None, *, allow_missing: bool = False) -> Tensor:
    """The stack in a dataset; a container that holds a single one, or a single one with coarser ones, need not say which.

    Parameters
    ----------
    dataset
        Path of the dataset in the container; of a group of levels ``s0``, ``s1``, ... the finest is taken.
    allow_missing
        Whether chunks may be missing; they are 0.

    Raises
    ------
    VolumeError
        If tensorstore is not installed, or there is no such stack, or one that emseg cannot read.
    """
    folder = _chosen(path, dataset)
    attributes = _attributes(folder)
    layout = {key: value for key, value in attributes.items() if key in LAYOUT}  # tensorstore is strict about others
    array = open_tensor("n5", folder, allow_missing=allow_missing, metadata=layout, assume_metadata=True)
    axes = attributes.get("axes")
    if not isinstance(axes, list) or len(axes) != array.ndim or not all(map(is_name, axes)):
        axes = [*NAMES, *(f"axis {number}" for number in range(len(NAMES), array.ndim))][: array.ndim]
    named = tuple(axis.lower() for axis in axes)
    try:
        stated = _stated(folder, attributes, named)
    except ValueError as error:
        raise VolumeError(f"the attributes of {folder} are wrong, {error}: repair them") from error
    edges = dict(zip(named, array.chunk_layout.read_chunk.shape, strict=True))

    def file_of(chunk: Box) -> Path:
        start = dict(zip(AXES, chunk.start, strict=True))
        return folder.joinpath(*(str(start.get(axis, 0) // edges[axis]) for axis in named))

    return Tensor(folder, array, named, DTYPES, stated, file_of)


def _attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a group or dataset; none if it has no file of these."""
    try:
        return read_json(folder / ATTRIBUTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise VolumeError(f"{folder / ATTRIBUTES} cannot be read ({reason(error)}): check its permissions") from error


def _is_dataset(folder: Path) -> bool:
    return "dimensions" in _attributes(folder)


def _chosen(path: Path, dataset: str | None) -> Path:
    """The folder of the dataset of that name, or of the only one there is."""
    asked = path / (dataset or "").strip("/")
    if asked.resolve().is_relative_to(path.resolve()):
        for folder in (asked, asked / "s0"):
            if _is_dataset(folder):
                return folder
    there = list(_datasets(path))
    finest = [name for name in there if not re.fullmatch("s[1-9][0-9]*", name.rpartition("/")[2])]
    if dataset is None and len(finest) == 1:
        return path / finest[0]
    listed = ", ".join(there[:LISTED]) + (", ..." if len(there) > LISTED else "") or "none"
    said = f"no dataset {dataset!r}" if dataset is not None else f"{len(there)} datasets"
    raise VolumeError(f"{path} has {said}: choose with --dataset; there are {listed}")


def _datasets(container: Path) -> Iterator[str]:
    """Path of each dataset in a container; the chunks in these are not looked at."""
    for root, names, _ in os.walk(container):
        names.sort()
        if _is_dataset(Path(root)):
            names.clear()
            yield Path(root).relative_to(container).as_posix()


def _stated(folder: Path, attributes: Mapping[str, Any], axes: tuple[str, ...]) -> Stated | None:
    """The voxel size that the attributes state, of the dataset or of a group that it is in."""
    if isinstance(transform := attributes.get("transform"), dict):
        return _transform(transform)
    holder = next((found for found in _upwards(folder) if found.keys() & {"pixelResolution", "resolution"}), None)
    if holder is None:
        return None
    size, unit = _size(holder)
    first = holder.get("offset")
    scale = dict(zip(axes, numbers(size, len(axes), "the resolution"), strict=True))
    offset = dict(zip(axes, numbers(first, len(axes), "the offset") if first is not None else [0.0] * len(axes), strict=True))
    factors = dict(zip(axes, _factors(folder, attributes, len(axes)), strict=True))
    coarse = {axis: scale[axis] * factors[axis] for axis in axes}
    centre = {axis: offset[axis] + scale[axis] * (factors[axis] - 1) / 2 for axis in axes}
    return _in_order(coarse, centre, dict(zip(axes, _units(unit, len(axes)), strict=True)))


def _size(attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    """What attributes hold as voxel size, and as its unit or units, unchecked."""
    own = attributes.get("pixelResolution")
    if isinstance(own, dict):
        return own.get("dimensions"), own.get("unit")
    return (attributes.get("resolution"), attributes.get("units")) if own is None else (own, None)


def _upwards(folder: Path) -> Iterator[dict[str, Any]]:
    """The attributes of a dataset, and of the groups that it is in, up to the container."""
    while True:
        attributes = _attributes(folder)
        yield attributes
        if folder.suffix.lower() == N5_SUFFIX or "n5" in attributes or not is_n5(folder.parent) or folder == folder.parent:
            return
        folder = folder.parent


def _factors(folder: Path, attributes: Mapping[str, Any], count: int) -> tuple[float, ...]:
    """Voxels of ``s0`` in one of this dataset, along each axis."""
    own = attributes.get("downsamplingFactors")
    level = re.fullmatch("s([0-9]+)", folder.name)
    if own is None and level:
        group = _attributes(folder.parent)
        listed = group.get("downsamplingFactors", group.get("scales"))
        if isinstance(listed, list) and int(level[1]) < len(listed):
            own = listed[int(level[1])]
    return (1.0,) * count if own is None else numbers(own, count, "downsamplingFactors")


def _transform(transform: Mapping[str, Any]) -> Stated:
    """The voxel size that a ``transform`` states, in the order of the axes that it names."""
    axes = transform.get("axes")
    if not isinstance(axes, list) or not all(map(is_name, axes)):
        raise ValueError("the transform names no axes")
    names, count = [axis.lower() for axis in axes], len(axes)
    scale, first = (numbers(transform.get(name), count, f"the transform's {name}") for name in ("scale", "translate"))
    units = _units(transform.get("units"), count)
    sizes, places = (dict(zip(names, each, strict=True)) for each in (scale, first))
    return _in_order(sizes, places, dict(zip(names, units, strict=True)))


def _units(value: Any, count: int) -> list[str | None]:
    """The unit of each axis as in OME-Zarr; None where there is none, or none of length."""
    units = value if isinstance(value, list) and len(value) == count else [value] * count
    return [UNITS.get(unit.lower()) if isinstance(unit, str) else None for unit in units]


def _in_order(scale: Mapping[str, float], first: Mapping[str, float], units: Mapping[str, str | None]) -> Stated:
    """What is stated, in the order (z, y, x); an axis that is not there has voxels of 1."""
    size_z, size_y, size_x = (scale.get(axis, 1.0) for axis in AXES)
    z, y, x = (first.get(axis, 0.0) for axis in AXES)
    unit_z, unit_y, unit_x = (units.get(axis) for axis in AXES)
    if min(size_z, size_y, size_x) <= 0:
        raise ValueError(f"the voxels have the size {(size_z, size_y, size_x)}, which must be positive")
    return Stated((size_z, size_y, size_x), (unit_z, unit_y, unit_x), "the attributes of the dataset", (z, y, x))
