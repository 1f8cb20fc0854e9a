"""Write a stack of slices as one TIFF file: BigTIFF, compressed, with the voxel size as OME-XML."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffWriter

from emseg_core.box import AXES, Triple
from emseg_core.errors import OutputError
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.atomic_write import output_path, sync_folder
from emseg_core.store.zarrs.nodes import TIFF_SUFFIXES

SYMBOLS = {"angstrom": "Å", "micrometer": "µm", "millimeter": "mm", "nanometer": "nm", "picometer": "pm"}
"""Units of length as spelled in OME-XML."""


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
    """Write slices to a TIFF file, one by one; the file appears complete, or not at all.

    Parameters
    ----------
    path
        Path of the file.
    slices
        Slices ``(y, x)``, which are requested one by one.
    shape
        Shape (z, y, x) in voxels.
    dtype
        Name of the NumPy dtype that slices are stored as.
    volume
        Gives voxel size and units; a unit that OME-XML does not know is left out, as is its size.
    description
        Name of the image.
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    Path
        Absolute path of the file.

    Raises
    ------
    OutputError
        If the file exists already, its name does not end like that of a TIFF file, or it cannot be written.
    """
    target = output_path(path)
    if target.suffix.lower() not in TIFF_SUFFIXES:
        raise OutputError(f"{target} does not have a TIFF file name: end the name with {TIFF_SUFFIXES[0]}")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} already exists: choose another name, or replace it with --overwrite")
    # OME-XML requires a unique name, which tifffile would draw at random: derive it from the content instead.
    shown = os.fsencode(target.name).decode(errors="backslashreplace")  # where the locale is not UTF-8, names may not be text
    name = uuid.uuid5(uuid.NAMESPACE_OID, f"{shown} {description} {shape} {dtype} {volume.to_json()}")
    metadata: dict[str, Any] = {"axes": "ZYX", "Name": description, "UUID": str(name)}
    for axis, size, unit in zip(AXES, volume.scale, volume.units, strict=True):
        if unit in SYMBOLS:
            metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": SYMBOLS[unit]}
    planes = (np.ascontiguousarray(plane, dtype) for plane in slices)
    with atomic_folder(target, replace=overwrite) as work:
        with TiffWriter(work, bigtiff=True, ome=True) as tif:
            tif.write(planes, shape=shape, dtype=dtype, metadata=metadata, compression="zlib", photometric="minisblack")
        sync_folder(work)
    return target
