"""Writing a stack of slices as one TIFF file: BigTIFF, compressed, with the voxel size as OME-XML."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffWriter

from emseg.box import AXES, Triple
from emseg.errors import OutputError
from emseg.specs.volume import VolumeSpec
from emseg.store.making import making
from emseg.store.nodes import TIFF_SUFFIXES
from emseg.store.staging import output_path, sync_folder

SYMBOLS = {"angstrom": "Å", "micrometer": "µm", "millimeter": "mm", "nanometer": "nm", "picometer": "pm"}
"""Units of length as OME-XML spells them."""


def write_tiff(
    path: str | Path,
    slices: Iterable[NDArray[Any]],
    shape: Triple,
    dtype: str,
    volume: VolumeSpec,
    description: str,
    *,
    overwrite: bool = False,
) -> Path:
    """The file made of slices ``(y, x)``, which are asked for one by one; it is there whole, or not at all.

    Parameters
    ----------
    shape
        Shape (z, y, x) in voxels.
    dtype
        Name of the NumPy type that slices are stored as.
    volume
        Gives voxel size and units; a unit that OME-XML does not know, and its size, are left out.
    description
        Name of the image.

    Raises
    ------
    OutputError
        If there is such a file already, its name is not that of a TIFF, or it cannot be written.
    """
    target = output_path(path)
    if target.suffix.lower() not in TIFF_SUFFIXES:
        raise OutputError(f"{target} is named like something else than a TIFF file: end the name with {TIFF_SUFFIXES[0]}")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} already exists: choose another name, or replace it with --overwrite")
    # OME-XML wants a name that is unique, and would be another each time: this one goes with what the file holds.
    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{target.name} {description} {shape} {dtype} {volume.to_json()}")
    metadata: dict[str, Any] = {"axes": "ZYX", "Name": description, "UUID": str(name)}
    for axis, size, unit in zip(AXES, volume.scale, volume.units, strict=True):
        if unit in SYMBOLS:
            metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": SYMBOLS[unit]}
    planes = (np.ascontiguousarray(plane, dtype) for plane in slices)
    with making(target, replace=overwrite) as work:
        with TiffWriter(work, bigtiff=True, ome=True) as tif:
            tif.write(planes, shape=shape, dtype=dtype, metadata=metadata, compression="zlib", photometric="minisblack")
        sync_folder(work)
    return target
