"""`emseg preview`: one slice as a PNG, raw beside labels beside both in one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from emseg.box import Box
from emseg.errors import OutputError
from emseg.grid.stitch import NOT_COMPUTED
from emseg.recipe import Recipe
from emseg.store.classes import colour
from emseg.store.output import open_output
from emseg_workflows.flows.record import recipe_of, volume_of

MOST_PIXELS = 1024
"""Edge of the part that is drawn, in voxels; of a larger slice, its middle."""
LEAST_PIXELS = 640
"""A smaller part is drawn with each voxel as a square of pixels."""
CAPTION = 28
GAP = 8
INK = (32, 32, 32)
PAPER = (255, 255, 255)
NOT_COMPUTED_COLOUR = (120, 120, 120)
OPACITY = 0.6

Pixels = NDArray[np.uint8]
"""``(y, x, 3) uint8``."""


def preview(
    output: str | Path, picture: str | Path | None = None, *, z: int | None = None, volume: str | Path | None = None
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

    grey = np.repeat(_contrast(raw)[..., None], 3, axis=2)
    colours = _coloured(labels, len(stored.classes))
    shown = (labels != 0)[..., None]
    overlay = np.where(shown, (1 - OPACITY) * grey + OPACITY * colours, grey).astype(np.uint8)
    zoom = max(1, LEAST_PIXELS // max(labels.shape))
    bar = _scale_bar(recipe, labels.shape[1])
    panels = [
        (f"raw, z = {box.start[0]}", grey),
        ("labels: " + ", ".join(stored.classes), colours),
        ("both" if (labels != NOT_COMPUTED).all() else "both; grey: not computed", overlay),
    ]
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


def _contrast(raw: NDArray[Any]) -> Pixels:
    """Intensities ``(y, x)`` as grey values; the darkest and brightest half per cent are cut off, what is NaN is black."""
    finite = np.isfinite(raw)
    low, high = np.percentile(raw[finite], (0.5, 99.5)) if finite.any() else (0, 0)
    scaled = (np.where(finite, raw, low).astype(np.float64) - low) / ((high - low) or 1)
    grey: Pixels = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return grey


def _coloured(labels: NDArray[np.uint8], classes: int) -> Pixels:
    """Labels ``(y, x) uint8`` in the colours that the output's metadata give to viewers; the first class is black."""
    table = np.zeros((256, 3), np.uint8)
    for label in range(1, classes):
        table[label] = colour(label)
    table[NOT_COMPUTED] = NOT_COMPUTED_COLOUR
    return table[labels]


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
