"""Position of the voxels of a plain Zarr array, one without OME metadata, from its own attributes.

funlib.persistence and daisy write ``voxel_size`` (formerly ``resolution``) and ``offset`` in units of length, ``units`` and
``axis_names``. Their offset is that of a voxel's corner, while OME-Zarr's translation is that of its centre. Tools that convert
between the two ignore the difference, and so does this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emseg_core.box import AXES
from emseg_core.store.zarrs.ome import Space, is_name, numbers

UNIT_NAMES = {"nm": "nanometer", "um": "micrometer", "µm": "micrometer", "μm": "micrometer", "mm": "millimeter"}
"""Common abbreviations of units and their names in OME-Zarr; both micro signs are in use."""


def spatial_names(names: Any) -> tuple[str, ...] | None:
    """Return names of axes in lower case.

    Parameters
    ----------
    names
        Any value of a JSON document.

    Returns
    -------
    tuple of str or None
        The names; None unless all are valid names and z, y or x is among them.
    """
    if not isinstance(names, list | tuple) or not all(map(is_name, names)):
        return None
    lower = tuple(name.lower() for name in names)
    return lower if set(lower) & set(AXES) else None


def plain_space(attributes: Mapping[str, Any], ndim: int, dimension_names: Any) -> Space:
    """Return the axes of an array, as its attributes describe them.

    Parameters
    ----------
    attributes
        Attributes of the array.
    ndim
        Number of its axes.
    dimension_names
        Names of the axes in the metadata of Zarr v3, unchecked.

    Returns
    -------
    Space
        Names, voxel size, position and units. Two to five axes without names are the last of (t, c, z, y, x); otherwise such an
        axis has the name ``""``. Without a voxel size the scale is 1 and there is no unit.

    Raises
    ------
    ValueError
        If the attributes do not match the array's axes.
    """
    candidates = (dimension_names, attributes.get("axis_names"), attributes.get("_ARRAY_DIMENSIONS"))
    named = next((names for names in map(spatial_names, candidates) if names and len(names) == ndim), None)
    names = named or (("t", "c", *AXES)[-ndim:] if 2 <= ndim <= 5 else ("",) * ndim)
    spatial = sum(name in AXES for name in names)
    default = Space(names, (1.0,) * ndim, (0.0,) * ndim, (None,) * ndim)
    size = attributes.get("voxel_size", attributes.get("resolution"))
    if size is None or not spatial:
        return default
    scale = numbers(size, spatial, "voxel_size")
    if min(scale) <= 0:
        raise ValueError(f"voxel_size is {scale}, which must be positive")
    offset, units = attributes.get("offset"), attributes.get("units")
    translation = (0.0,) * spatial if offset is None else numbers(offset, spatial, "offset")
    extra, full_names = ndim - spatial, default.units[:spatial]
    units = [units] * spatial if isinstance(units, str) else units
    if isinstance(units, list) and len(units) == spatial and all(map(is_name, units)):
        full_names = tuple(UNIT_NAMES.get(unit, unit) or None for unit in units)
    return Space(
        names, default.scale[:extra] + scale, default.translation[:extra] + translation, default.units[:extra] + full_names
    )
