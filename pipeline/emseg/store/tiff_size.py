"""The size of a voxel as a TIFF file itself states it: all of it, in a unit of length, or not at all."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from tifffile import TiffFile

from emseg.store.stack import Stated

SPELT = {
    "angstrom": ("å", "a", "angstrom"),
    "centimeter": ("cm", "centimeter"),
    "meter": ("m", "meter"),
    "micrometer": ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"),
    "millimeter": ("mm", "millimeter"),
    "nanometer": ("nm", "nanometer", "nanometers"),
    "picometer": ("pm", "picometer"),
}
UNITS = {spelling: unit for unit, spellings in SPELT.items() for spelling in spellings}
"""Units as microscopes write them, in lower case, and as OME-Zarr does."""

CENTIMETER = 3
"""Value of the tag ResolutionUnit; without it the resolution tags are about printing, or about nothing."""

NM_PER_CM = 1e7

PRINTED = 1e4
"""Voxel size in nm from which a resolution tag is taken to be about paper: 10 micrometers, 2540 dots per inch."""


def stated_size(tif: TiffFile, depth: int) -> Stated | None:
    """The voxel size that a TIFF file of `depth` slices states; None if it does not, or only in part.

    Looked at are the ``PhysicalSize`` of OME-XML, ``spacing`` and ``unit`` of ImageJ with the resolution tags, and, where
    there is a single slice, the resolution tags in pixels per centimetre.
    """
    return _ome(tif) or _imagej(tif) or (_centimetres(tif) if depth == 1 else None)


def _ome(tif: TiffFile) -> Stated | None:
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


def _imagej(tif: TiffFile) -> Stated | None:
    header = tif.imagej_metadata
    if not header:
        return None
    unit = UNITS.get(str(header.get("unit", "")).lower())
    sizes = [_positive(header.get("spacing")), _voxel(tif, "YResolution"), _voxel(tif, "XResolution")]
    return _stated(sizes, [unit] * 3, "the spacing and unit of its ImageJ header")


def _centimetres(tif: TiffFile) -> Stated | None:
    unit = tif.pages.first.tags.valueof("ResolutionUnit")
    sizes = [_voxel(tif, "YResolution"), _voxel(tif, "XResolution")]
    if unit != CENTIMETER or None in sizes:
        return None
    y, x = (NM_PER_CM * size for size in sizes if size is not None)
    if max(y, x) >= PRINTED:
        return None
    return Stated((1.0, y, x), (None, "nanometer", "nanometer"), "its resolution tags, in pixels per centimetre")


def _stated(sizes: list[float | None], units: list[str | None], source: str) -> Stated | None:
    if None in sizes or None in units:
        return None
    z, y, x = (size for size in sizes if size is not None)
    return Stated((z, y, x), (units[0], units[1], units[2]), source)


def _voxel(tif: TiffFile, tag: str) -> float | None:
    """Length per pixel of a resolution tag, which holds pixels per length as a fraction."""
    value = tif.pages.first.tags.valueof(tag)
    if not isinstance(value, tuple) or len(value) != 2 or not value[0]:
        return None
    return _positive(value[1] / value[0])


def _positive(value: object) -> float | None:
    """A positive, finite number; None if it is not one."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None
