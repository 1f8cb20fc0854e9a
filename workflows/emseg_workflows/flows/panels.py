"""One slice of an output as pictures: raw beside labels beside both in one, and instances if there are any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emseg.box import Box
from emseg.errors import BlockError, OutputError
from emseg.grid.stitch import NOT_COMPUTED
from emseg.specs.volume import VolumeSpec
from emseg.store.blame import blamed
from emseg.store.instances import descriptions, open_instances
from emseg.store.ledger import Output
from emseg.store.level import MEND
from emseg.store.volume import ZarrVolume
from emseg_workflows.charts import round_below
from emseg_workflows.pictures import Pixels, coloured, contrast, overlay, overlay_instances

MOST_PIXELS = 1024
"""Edge of the part that is drawn, in voxels; of a larger slice, its middle."""
SYMBOLS = {"nanometer": "nm", "micrometer": "um"}
"""Units of length as they are written beside a number."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture, a pixel for each voxel."""

    caption: str
    pixels: Pixels


def slice_box(region: Box, z: int) -> Box:
    """The part of a slice of a region that is drawn, in the volume's coordinates; `z` counts from the region's first.

    Raises
    ------
    OutputError
        If there is no such slice.
    """
    depth, *plane = region.shape
    if not 0 <= z < depth:
        raise OutputError(f"the output has slices 0 to {depth - 1}, not {z}: choose one of them with --slice")
    start, stop = [region.start[0] + z], [region.start[0] + z + 1]
    for first, length in zip(region.start[1:], plane, strict=True):
        taken = min(length, MOST_PIXELS)
        start.append(first + (length - taken) // 2)
        stop.append(start[-1] + taken)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def panels_of(stored: Output, source: ZarrVolume | None, box: Box) -> list[Panel]:
    """The pictures of a box of one slice; without its volume, those of the output alone.

    Raises
    ------
    EmsegError
        If volume or output cannot be read there.
    """
    labels, classes = stored.read_labels(box)[0], len(stored.classes)
    colours = Panel("labels: " + ", ".join(stored.classes), coloured(labels, classes))
    panels, grey = [colours], np.zeros((*labels.shape, 3), np.uint8)
    if source is not None:
        grey = contrast(source.read(box)[0])
        both = "both" if (labels != NOT_COMPUTED).all() else "both; grey: not computed"
        panels = [Panel(f"raw, z = {box.start[0]}", grey), colours, Panel(both, overlay(grey, labels, classes))]
    for name in list(descriptions(stored.files))[:1]:  # more would not fit beside one another
        try:
            with blamed(f"labels/{name} cannot be read", MEND):
                ids = open_instances(stored, name).read(box.relative_to(stored.region.start))[0]
        except (BlockError, OutputError):  # what is missing is not drawn as background
            panels.append(Panel(f"{name}: not whole", grey))
        else:
            panels.append(Panel(name, overlay_instances(grey, ids)))
    return panels


def overview_of(stored: Output, z: int) -> Panel | None:
    """The labels of a whole slice that is too large to be drawn voxel by voxel, from a coarser level; None without one.

    Raises
    ------
    BlockError
        If it cannot be read.
    """
    step = 1
    for level in stored.levels:
        step *= level.step[0]
        depth, *plane = level.blocks.region.shape
        if max(plane) > MOST_PIXELS:
            continue
        if level is stored.levels[0]:
            return None
        box = Box((min(z // step, depth - 1), 0, 0), (min(z // step, depth - 1) + 1, plane[0], plane[1]))
        with blamed(f"{box} of a level of {stored.path} cannot be read", MEND):
            labels = level.arrays[-1].read(box)[0]
        return Panel("labels of the whole slice", coloured(labels, len(stored.classes)))
    return None


def scale_bar(volume: VolumeSpec, width: int) -> tuple[float, str] | None:
    """Length in voxels and caption of a scale bar of at most a quarter of the picture; None without a unit."""
    unit, size = volume.units[2], volume.scale[2]
    if unit is None:
        return None
    nice = round_below(width * size / 4)
    return nice / size, f"{nice:g} {SYMBOLS.get(unit, unit)}"
