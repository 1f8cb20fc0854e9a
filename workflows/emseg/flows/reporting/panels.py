"""Draw one slice of an output as pictures: raw, labels, labels over raw, and instances if there are any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emseg.pages.charts import round_below
from emseg.pages.pictures import Pixels, coloured, contrast, drawn, overlay, overlay_instances
from emseg_core.box import Box
from emseg_core.errors import BlockError, OutputError
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.outputs.instances import descriptions, open_instances
from emseg_core.store.outputs.level import REPAIR_HINT
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume

MAX_SLICE_VOXELS = 1024
"""Longest edge that is drawn, in voxels; of a larger slice, the middle is drawn."""
MAX_HEAD_PANELS = 2
"""Most pictures of heads of an output without classes."""
SYMBOLS = {"nanometer": "nm", "micrometer": "um"}
"""Symbols of units of length."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Picture with one pixel per voxel."""

    caption: str
    pixels: Pixels


def slice_box(region: Box, z: int) -> Box:
    """Choose the part of a slice to draw.

    Parameters
    ----------
    region
        Region of the output, in the volume's coordinates.
    z
        Slice, counted from the first one of the region.

    Returns
    -------
    Box
        Middle of the slice, at most `MAX_SLICE_VOXELS` along each edge, in the volume's coordinates.

    Raises
    ------
    OutputError
        If there is no such slice.
    """
    depth, *plane = region.shape
    if not 0 <= z < depth:
        raise OutputError(f"the output has slices 0 to {depth - 1}, not {z}: choose one of them with --slice")
    height, width = (min(length, MAX_SLICE_VOXELS) for length in plane)
    margins = (z, (plane[0] - height) // 2, (plane[1] - width) // 2)
    return Box.of_shape((1, height, width)).shift(region.start).shift(margins)


def panels_of(stored: Output, source: ZarrVolume | None, box: Box) -> list[Panel]:
    """Draw a box of one slice.

    Parameters
    ----------
    stored
        The output.
    source
        Its volume; None to draw only the output.
    box
        Part of a slice, in the volume's coordinates.

    Returns
    -------
    list of Panel
        The pictures.

    Raises
    ------
    EmsegError
        If the volume or the output cannot be read there.
    """
    panels, grey = [], np.zeros((*box.shape[1:], 3), np.uint8)
    if source is not None:
        grey = contrast(source.read(box)[0])
        panels.append(Panel(f"raw, z = {box.start[0]}", grey))
    if stored.classes:
        labels, classes = stored.read_labels(box)[0], len(stored.classes)
        panels.append(Panel("labels: " + ", ".join(stored.classes), coloured(labels, classes)))
        if source is not None:
            both = "both" if (labels != NOT_COMPUTED).all() else "both; grey: not computed"
            panels.append(Panel(both, overlay(grey, labels, classes)))
    else:
        for image in stored.images[:MAX_HEAD_PANELS]:
            caption = image.name if image.content == "labels" else f"{image.name}: {image.names[0]}"
            panels.append(Panel(caption, drawn(image, stored.read(image.name, box)[..., 0, :, :], grey)))
    for name in list(descriptions(stored.files))[:1]:  # further pictures would not fit side by side
        try:
            with translate_errors(f"labels/{name} cannot be read", REPAIR_HINT):
                ids = open_instances(stored, name).read(box.relative_to(stored.region.start))[0]
        except (BlockError, OutputError):  # missing instances must not look like background
            panels.append(Panel(f"{name}: incomplete", grey))
        else:
            panels.append(Panel(name, overlay_instances(grey, ids)))
    return panels


def overview_of(stored: Output, z: int) -> Panel | None:
    """Draw the labels of a whole slice that is too large to draw voxel by voxel, from a coarser level.

    Parameters
    ----------
    stored
        The open output.
    z
        Index of the slice, in the volume's coordinates.

    Returns
    -------
    Panel or None
        None if the slice is small enough, or no level is coarse enough.

    Raises
    ------
    BlockError
        If the level cannot be read.
    """
    step = 1
    for level in stored.levels if stored.classes else ():
        step *= level.step[0]
        depth, *plane = level.blocks.region.shape
        if max(plane) > MAX_SLICE_VOXELS:
            continue
        if level is stored.levels[0]:
            return None
        box = Box.of_shape((1, plane[0], plane[1])).shift((min(z // step, depth - 1), 0, 0))
        with translate_errors(f"{box} of a level of {stored.path} cannot be read", REPAIR_HINT):
            labels = level.arrays[-1].read(box)[0]
        return Panel("labels of the whole slice", coloured(labels, len(stored.classes)))
    return None


def scale_bar(volume: VolumeSpec, width: int) -> tuple[float, str] | None:
    """Choose a scale bar of a round length, at most a quarter of the picture.

    Parameters
    ----------
    volume
        The volume, which gives the voxel size.
    width
        Width of the picture in voxels.

    Returns
    -------
    tuple or None
        Length in voxels, and caption; None if the volume has no unit of length.
    """
    unit, size = volume.units[2], volume.scale[2]
    if unit is None:
        return None
    nice = round_below(width * size / 4)
    return nice / size, f"{nice:g} {SYMBOLS.get(unit, unit)}"
