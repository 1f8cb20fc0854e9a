"""Where the voxels of a plain Zarr array lie, one without OME metadata: what its own attributes say.

funlib.persistence and daisy write ``voxel_size`` (older: ``resolution``) and ``offset`` in units of length, ``units`` and
``axis_names``. There a voxel starts at its offset, while OME-Zarr places its centre; the tools that convert between the
two take one for the other, and so does this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emseg.box import AXES
from emseg.store.ome import Space, is_name, numbers

ABBREVIATIONS = {"nm": "nanometer", "um": "micrometer", "µm": "micrometer", "μm": "micrometer", "mm": "millimeter"}
"""Units as people write them, and as OME-Zarr does; both signs for micro are in use."""


def spatial_names(names: Any) -> tuple[str, ...] | None:
    """Names of axes in lower case; None unless all are names and z, y or x is among them."""
    if not isinstance(names, list | tuple) or not all(map(is_name, names)):
        return None
    lower = tuple(name.lower() for name in names)
    return lower if set(lower) & set(AXES) else None


def plain_space(attributes: Mapping[str, Any], ndim: int, dimension_names: Any) -> Space:
    """Names, voxel size, place and units of the axes of an array; an axis without a name has the name ``""``.

    Two to five axes without names are the last of (t, c, z, y, x). Without a voxel size the scale is 1 and there is no unit.

    Raises
    ------
    ValueError
        If the attributes do not fit the array's axes.
    """
    own = (dimension_names, attributes.get("axis_names"), attributes.get("_ARRAY_DIMENSIONS"))
    named = next((names for names in map(spatial_names, own) if names and len(names) == ndim), None)
    names = named or (("t", "c", *AXES)[-ndim:] if 2 <= ndim <= 5 else ("",) * ndim)
    spatial = sum(name in AXES for name in names)
    none = Space(names, (1.0,) * ndim, (0.0,) * ndim, (None,) * ndim)
    size = attributes.get("voxel_size", attributes.get("resolution"))
    if size is None or not spatial:
        return none
    scale = numbers(size, spatial, "voxel_size")
    if min(scale) <= 0:
        raise ValueError(f"voxel_size is {scale}, which must be positive")
    offset, units = attributes.get("offset"), attributes.get("units")
    translation = (0.0,) * spatial if offset is None else numbers(offset, spatial, "offset")
    extra, spelt = ndim - spatial, none.units[:spatial]
    units = [units] * spatial if isinstance(units, str) else units
    if isinstance(units, list) and len(units) == spatial and all(map(is_name, units)):
        spelt = tuple(ABBREVIATIONS.get(unit, unit) or None for unit in units)
    return Space(names, none.scale[:extra] + scale, none.translation[:extra] + translation, none.units[:extra] + spelt)
