"""Regions of interest as users type them."""

from __future__ import annotations

import math
import re

from emseg.box import AXES, Box, triple
from emseg.errors import PlanError
from emseg.specs.volume import VolumeSpec

RANGE = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")
LENGTHS = re.compile(r"\s*(-?\d+\.?\d*|)\s*:\s*(-?\d+\.?\d*|)\s*")
UNIT = "nm"
ROUNDING = 1e-6
"""Part of a voxel by which an end may miss the centre of one."""


def parse_region(text: str, volume: VolumeSpec) -> Box:
    """The box that ``z0:z1,y0:y1,x0:x1`` means in a volume; an end that is left out is the volume's.

    An image (y, x) also takes ``y0:y1,x0:x1``. With ``nm`` at its end the numbers are nanometres, in the volume's own
    coordinates, and the box has the voxels whose centres lie from each start to before each stop.

    Raises
    ------
    PlanError
        If the text is not a region, the region is empty or not inside the volume, or the volume has no unit of length.

    Examples
    --------
    >>> volume = VolumeSpec((40, 250, 250), "uint8", (40, 250, 250), 3, (10, 10, 10), units=("nanometer",) * 3)
    >>> parse_region("0:8,:,100:", volume)
    Box(start=(0, 0, 100), stop=(8, 250, 250))
    >>> parse_region("0:80,:,1000:nm", volume)
    Box(start=(0, 0, 100), stop=(8, 250, 250))
    """
    stripped = text.strip()
    in_nm = stripped.endswith(UNIT)
    pattern, form = (LENGTHS, "nanometres") if in_nm else (RANGE, "whole voxels from 0")
    parts = [pattern.fullmatch(part) for part in stripped.removesuffix(UNIT).split(",")]
    if volume.rank == 2 and len(parts) == 2:
        parts.insert(0, pattern.fullmatch(":"))
    if len(parts) != 3 or None in parts:
        raise PlanError(f"the region {text!r} is not of the form z0:z1,y0:y1,x0:x1{UNIT * in_nm} ({form})")
    ends = [match.groups() for match in parts if match]

    def place(end: str, axis: int, default: int) -> int:
        return _voxel(end, axis, volume, text) if in_nm and end else int(end or default)

    pairs = zip(ends, volume.shape, strict=True)
    places = [(place(first, axis, 0), place(last, axis, length)) for axis, ((first, last), length) in enumerate(pairs)]
    try:
        region = Box(triple(first for first, _ in places), triple(stop for _, stop in places))
    except ValueError as error:
        raise PlanError(f"the region {text!r} is empty: each axis needs a start below its stop") from error
    if not volume.box.contains(region):
        raise PlanError(f"the region {region} is not inside the volume {volume.box}: give a region within it")
    return region


def _voxel(end: str, axis: int, volume: VolumeSpec, text: str) -> int:
    """The first voxel along an axis whose centre does not lie before a place in nanometres."""
    unit = volume.unit_sizes[axis]
    if unit is None:
        said = volume.units[axis] or "not stated"
        raise PlanError(
            f"the region {text!r} is in nanometres, but the volume's unit along {AXES[axis]} is {said}: "
            "give it in voxels, without nm"
        )
    return math.ceil((float(end) / unit - volume.translation[axis]) / volume.scale[axis] - ROUNDING)
