"""What OME-XML claims: tifffile takes memory for all of it, and opens all files that it names, before it looks further."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from xml.etree import ElementTree

from tifffile import TiffFile

from emseg.errors import VolumeError
from emseg.store.tiff_chain import chain_length

MOST_PLANES = 2**20
"""Most planes of an OME-TIFF; OME-XML that says more is damaged."""


def refuse_claims(path: Path, tif: TiffFile) -> None:
    """Refuses a file whose OME-XML speaks of too many planes, or names another file whose pages are no chain.

    Raises
    ------
    VolumeError
        If there are too many planes.
    ValueError
        If the pages of another file are no chain, or something is no number.
    """
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return  # tifffile then goes by the pages alone
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
    if planes > MOST_PLANES:
        raise VolumeError(
            f"the OME-XML of {path} speaks of {reprlib.repr(planes)} planes, but a file has at most {MOST_PLANES}: "
            "it is damaged, so copy the file again"
        )
    for other in others - {path}:
        if other.is_file():
            chain_length(other)


def _planes(pixels: ElementTree.Element, page: int) -> int:
    """Most planes that tifffile will list for an image whose pages have `page` voxels each."""
    lengths = [abs(int(pixels.get(f"Size{axis}", 1))) for axis in pixels.get("DimensionOrder", "")]
    counted = [int(data.get(name, 0)) for data in pixels for name in ("PlaneCount", "NumPlanes")]
    return max(math.prod(lengths[2:]), math.prod(lengths) // max(page, 1)) + max(counted, default=0)
