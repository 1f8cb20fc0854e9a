"""Regions of interest as users type them."""

from __future__ import annotations

import re

from emseg.box import Box, triple
from emseg.errors import PlanError
from emseg.specs.volume import VolumeSpec

RANGE = re.compile(r"\s*(\d*)\s*:\s*(\d*)\s*")


def parse_region(text: str, volume: VolumeSpec) -> Box:
    """The box that ``z0:z1,y0:y1,x0:x1`` means in a volume; an end that is left out is the volume's.

    An image (y, x) also takes ``y0:y1,x0:x1``.

    Raises
    ------
    PlanError
        If the text is not a region, or the region is empty or not inside the volume.

    Examples
    --------
    >>> volume = VolumeSpec((40, 250, 250), "uint8", (40, 250, 250))
    >>> parse_region("0:8,:,100:", volume)
    Box(start=(0, 0, 100), stop=(8, 250, 250))
    """
    parts = [RANGE.fullmatch(part) for part in text.split(",")]
    if volume.rank == 2 and len(parts) == 2:
        parts.insert(0, RANGE.fullmatch(":"))
    if len(parts) != 3 or None in parts:
        raise PlanError(f"the region {text!r} is not of the form z0:z1,y0:y1,x0:x1 (whole voxels from 0)")
    ends = [match.groups() for match in parts if match]
    start = triple(int(first or 0) for first, _ in ends)
    stop = triple(int(last or length) for (_, last), length in zip(ends, volume.shape, strict=True))
    try:
        region = Box(start, stop)
    except ValueError as error:
        raise PlanError(f"the region {text!r} is empty: each axis needs a start below its stop") from error
    if not volume.box.contains(region):
        raise PlanError(f"the region {region} is not inside the volume {volume.box}: give a region within it")
    return region
