"""Read the voxel size that a TIFF file states: complete and in a unit of length, or not at all."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from tifffile import TiffFile

from emseg_core.box import three
from emseg_core.store.stacks.stack import StatedVoxelSize

SPELLINGS = {
    "angstrom": ("å", "a", "angstrom"),
    "centimeter": ("cm", "centimeter"),
    "meter": ("m", "meter"),
    "micrometer": ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"),
    "millimeter": ("mm", "millimeter"),
    "nanometer": ("nm", "nanometer", "nanometers"),
    "picometer": ("pm", "picometer"),
}
UNITS = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in spellings}
"""OME-Zarr unit by each spelling that microscopes write, in lower case."""

CENTIMETER = 3
"""Value of the tag ResolutionUnit for centimetres; without it, the resolution tags concern print, or nothing."""

NM_PER_CM = 1e7

PRINT_VOXEL_NM = 1e4
"""Voxel size in nm from which a resolution tag is taken to concern print: 10 micrometres, 2540 dots per inch."""


def stated_size(tif: TiffFile, depth: int) -> StatedVoxelSize | None:
    """Return the voxel size that a TIFF file states.

    It is taken from ``PhysicalSize`` of OME-XML, from ``spacing`` and ``unit`` of ImageJ with the resolution tags or, for a
    single slice, from the resolution tags in pixels per centimetre.

    Parameters
    ----------
    tif
        The open file.
    depth
        Number of slices.

    Returns
    -------
    StatedVoxelSize or None
        None if the file states no size, or only a part of it.
    """
    return _ome(tif) or _imagej(tif) or (_centimetres(tif) if depth == 1 else None)


def _ome(tif: TiffFile) -> StatedVoxelSize | None:
    """Return the voxel size that OME-XML states."""
    if not tif.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
    except ElementTree.ParseError:
        return None
    images = [element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"]
    if len(images) != 1:
        return None
    sizes = [_positive(images[0].get(f"PhysicalSize{axis}")) for axis in "ZYX"]
    units = [UNITS.get(images[0].get(f"PhysicalSize{axis}Unit", "µm").lower()) for axis in "ZYX"]
    return _stated(sizes, units, "the PhysicalSize of its OME-XML")


def _imagej(tif: TiffFile) -> StatedVoxelSize | None:
    """Return the voxel size that the header of ImageJ states."""
    header = tif.imagej_metadata
    if not header:
        return None
    unit = UNITS.get(str(header.get("unit", "")).lower())
    sizes = [_positive(header.get("spacing")), _voxel(tif, "YResolution"), _voxel(tif, "XResolution")]
    return _stated(sizes, [unit] * 3, "the spacing and unit of its ImageJ header")


def _centimetres(tif: TiffFile) -> StatedVoxelSize | None:
    """Return the voxel size that resolution tags in pixels per centimetre state."""
    unit = tif.pages.first.tags.valueof("ResolutionUnit")
    sizes = [_voxel(tif, "YResolution"), _voxel(tif, "XResolution")]
    if unit != CENTIMETER or None in sizes:
        return None
    y, x = (NM_PER_CM * size for size in sizes if size is not None)
    if max(y, x) >= PRINT_VOXEL_NM:
        return None
    return StatedVoxelSize((1.0, y, x), (None, "nanometer", "nanometer"), "its resolution tags, in pixels per centimetre")


def _stated(sizes: list[float | None], units: list[str | None], source: str) -> StatedVoxelSize | None:
    """Return a voxel size, unless it is incomplete."""
    if None in sizes or None in units:
        return None
    return StatedVoxelSize(three(size for size in sizes if size is not None), three(units), source)


def _voxel(tif: TiffFile, tag: str) -> float | None:
    """Return the length per pixel of a resolution tag, which holds pixels per length as a fraction."""
    value = tif.pages.first.tags.valueof(tag)
    if not isinstance(value, tuple) or len(value) != 2 or not value[0]:
        return None
    return _positive(value[1] / value[0])


def _positive(value: object) -> float | None:
    """Convert a value to a positive, finite number; None if it is not one."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
