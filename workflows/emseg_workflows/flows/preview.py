"""`emseg preview`: one slice as a PNG, raw beside labels beside both in one, and instances if there are any."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emseg.box import Box
from emseg.errors import OutputError
from emseg.grid.stitch import NOT_COMPUTED
from emseg.recipe import Recipe
from emseg.store.instances import INSTANCES, open_instances, stored_instances
from emseg.store.output import open_output
from emseg.store.place import Address
from emseg_workflows.flows.record import recipe_of, volume_of
from emseg_workflows.pictures import Pixels, coloured, contrast, overlay, overlay_instances

MOST_PIXELS = 1024
"""Edge of the part that is drawn, in voxels; of a larger slice, its middle."""
LEAST_PIXELS = 640
"""A smaller part is drawn with each voxel as a square of pixels."""
CAPTION = 28
GAP = 8
INK = (32, 32, 32)
PAPER = (255, 255, 255)


def preview(
    output: str | Path, picture: str | Path | None = None, *, z: int | None = None, volume: str | Path | Address | None = None
) -> Path:
    """The PNG that was drawn of one slice of an output.

    Parameters
    ----------
    output
        What a run has written.
    picture
        The PNG to write; by default ``OUTPUT.png`` beside the output.
    z
        Slice of the output, counted from 0; by default the middle one.
    volume
        Where the volume is, if not where the run found it.

    Raises
    ------
    InputError
        If the output or its volume is not there, or has no such slice.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    source = volume_of(stored, volume)
    box = _slice_box(stored.region, z)
    raw, labels = source.read(box)[0], stored.read_labels(box)[0]

    grey, classes = contrast(raw), len(stored.classes)
    zoom = max(1, LEAST_PIXELS // max(labels.shape))
    bar = _scale_bar(recipe, labels.shape[1])
    panels = [
        (f"raw, z = {box.start[0]}", grey),
        ("labels: " + ", ".join(stored.classes), coloured(labels, classes)),
        ("both" if (labels != NOT_COMPUTED).all() else "both; grey: not computed", overlay(grey, labels, classes)),
    ]
    if stored_instances(stored.path, INSTANCES) is not None:
        ids = open_instances(stored.path, INSTANCES).read(box.relative_to(stored.region.start))[0]
        panels.append(("instances", overlay_instances(grey, ids)))
    where = Path(picture) if picture is not None else stored.path.with_name(f"{stored.path.name}.png")
    try:
        _sheet(panels, zoom, bar).save(where, format="PNG")
    except OSError as error:
        raise OutputError(
            f"the picture {where} cannot be written ({error.strerror or error}): choose another with -o"
        ) from error
    return where


def _slice_box(region: Box, z: int | None) -> Box:
    """The part of one slice that is drawn, in the volume's coordinates."""
    depth, *plane = region.shape
    z = depth // 2 if z is None else z
    if not 0 <= z < depth:
        raise OutputError(f"the output has slices 0 to {depth - 1}, not {z}: choose one of them with --slice")
    start, stop = [region.start[0] + z], [region.start[0] + z + 1]
    for first, length in zip(region.start[1:], plane, strict=True):
        taken = min(length, MOST_PIXELS)
        start.append(first + (length - taken) // 2)
        stop.append(start[-1] + taken)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _scale_bar(recipe: Recipe, width: int) -> tuple[float, str] | None:
    """Length in voxels and caption of a scale bar of at most a quarter of the picture; None without a unit."""
    unit, size = recipe.volume.units[2], recipe.volume.scale[2]
    if unit is None:
        return None
    most = width * size / 4
    power = 10.0 ** math.floor(math.log10(most))
    nice = max(f * power for f in (1, 2, 5) if f * power <= most)
    short = {"nanometer": "nm", "micrometer": "um"}.get(unit, unit)
    return nice / size, f"{nice:g} {short}"


def _sheet(panels: list[tuple[str, Pixels]], zoom: int, bar: tuple[float, str] | None) -> Image.Image:
    """The panels in a row, each under its caption."""
    font = ImageFont.load_default(size=16)
    height, width = (length * zoom for length in panels[0][1].shape[:2])
    sheet = Image.new("RGB", (len(panels) * width + (len(panels) - 1) * GAP, height + CAPTION), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (caption, pixels) in enumerate(panels):
        left = number * (width + GAP)
        sheet.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION))
        draw.text((left + 4, 4), caption, fill=INK, font=font)
    if bar:
        length, caption = round(bar[0] * zoom), bar[1]
        left, bottom = 12, CAPTION + height - 12
        draw.rectangle((left - 6, bottom - 32, left + max(length, 60) + 6, bottom + 6), fill=INK)
        draw.rectangle((left, bottom - 4, left + length, bottom), fill=PAPER)
        draw.text((left, bottom - 26), caption, fill=PAPER, font=font)
    return sheet
