"""Check the claims of OME-XML: tifffile allocates memory for all of them, and opens all files named there, unchecked."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from xml.etree import ElementTree

from tifffile import TiffFile

from emseg_core.errors import VolumeError
from emseg_core.store.stacks.tiff_chain import chain_length

MAX_PLANES = 2**20
"""Most planes of an OME-TIFF; OME-XML that claims more is damaged."""


def check_ome_claims(path: Path, tif: TiffFile) -> None:
    """Check a file whose OME-XML may claim too many planes, or name other files that are damaged.

    Parameters
    ----------
    path
        Path of the file.
    tif
        The open file.

    Raises
    ------
    VolumeError
        If there are too many planes.
    ValueError
        If the chain of pages of another file is broken, or a value is not a number.
    """
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return  # tifffile then uses only the pages
    planes = 0
    others = set()
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind == "Pixels":
            planes += _planes(element, tif.pages.first.size)
        elif kind.startswith("Modulo") and "Start" in element.attrib:
            start, stop, step = (float(element.get(name, 1)) for name in ("Start", "End", "Step"))
            planes += math.ceil(abs((stop - start) / step)) + 1
        elif kind == "UUID" and "FileName" in element.attrib:
            others.add(path.parent / element.attrib["FileName"])
    if planes > MAX_PLANES:
        raise VolumeError(
            f"the OME-XML of {path} claims {reprlib.repr(planes)} planes, but a file has at most {MAX_PLANES}: "
            "it is damaged, copy the file again"
        )
    for other in others - {path}:
        if other.is_file():
            chain_length(other)


def _planes(pixels: ElementTree.Element, page: int) -> int:
    """Return an upper bound of the planes that tifffile lists for an image whose pages have `page` pixels each."""
    lengths = [abs(int(pixels.get(f"Size{axis}", 1))) for axis in pixels.get("DimensionOrder", "")]
    counted = [int(data.get(name, 0)) for data in pixels for name in ("PlaneCount", "NumPlanes")]
    return max(math.prod(lengths[2:]), math.prod(lengths) // max(page, 1)) + max(counted, default=0)
