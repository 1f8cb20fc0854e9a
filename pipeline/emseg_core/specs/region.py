"""Parse regions of interest from the command line."""

from __future__ import annotations

import math
import re

from emseg_core.box import AXES, Box, triple
from emseg_core.errors import PlanError
from emseg_core.specs.volume import VolumeSpec

VOXEL_RANGE = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")
"""Start and stop of an axis in voxels."""
NANOMETRE_RANGE = re.compile(r"\s*(-?\d+\.?\d*|)\s*:\s*(-?\d+\.?\d*|)\s*")
"""Start and stop of an axis in nanometres."""
NANOMETRE_SUFFIX = "nm"
"""Suffix of a region in nanometres."""
CENTRE_TOLERANCE_VOXELS = 1e-6
"""Tolerance, in voxels, with which the centre of a voxel counts as inside."""


def parse_region(text: str, volume: VolumeSpec) -> Box:
    """Parse a region such as ``z0:z1,y0:y1,x0:x1``.

    A missing end is that of the volume. An image (y, x) also accepts ``y0:y1,x0:x1``. With the suffix ``nm``, the numbers are
    nanometres in the volume's own coordinates, and the box has the voxels whose centres lie at or after each start and before
    each stop.

    Parameters
    ----------
    text
        The region as typed.
    volume
        The volume.

    Returns
    -------
    Box
        The region, in voxels of the volume.

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
    in_nm = stripped.endswith(NANOMETRE_SUFFIX)
    pattern, form = (NANOMETRE_RANGE, "nanometres") if in_nm else (VOXEL_RANGE, "whole voxels from 0")
    parts = [pattern.fullmatch(part) for part in stripped.removesuffix(NANOMETRE_SUFFIX).split(",")]
    if volume.rank == 2 and len(parts) == 2:
        parts.insert(0, pattern.fullmatch(":"))
    if len(parts) != 3 or None in parts:
        raise PlanError(f"the region {text!r} is not of the form z0:z1,y0:y1,x0:x1{NANOMETRE_SUFFIX * in_nm} ({form})")
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
    """Return the first voxel along an axis whose centre is not before a position in nanometres."""
    unit = volume.unit_sizes[axis]
    if unit is None:
        stated = volume.units[axis] or "not stated"
        raise PlanError(
            f"the region {text!r} is in nanometres, but the volume's unit along {AXES[axis]} is {stated}: "
            "give it in voxels, without nm"
        )
    return math.ceil((float(end) / unit - volume.translation[axis]) / volume.scale[axis] - CENTRE_TOLERANCE_VOXELS)
