"""`emseg preview`: draw a slice as a PNG with raw, labels and their overlay side by side, and instances if there are any."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emseg.flows.records.run_log import recipe_of, volume_of
from emseg.flows.reporting.panels import Panel, panels_of, scale_bar, slice_box
from emseg_core.errors import OutputError
from emseg_core.store.files.place import Address, Place, sibling
from emseg_core.store.outputs.lifecycle import open_output

MIN_SLICE_PIXELS = 640
"""Slices with shorter edges are enlarged: each voxel becomes a square of pixels."""
CAPTION_PIXELS = 28
GAP_PIXELS = 8
TEXT_COLOR = (32, 32, 32)
BACKGROUND_COLOR = (255, 255, 255)


def preview(
    output: str | Place, picture: str | Path | None = None, *, z: int | None = None, volume: str | Path | Address | None = None
) -> Path:
    """Draw one slice of an output as a PNG.

    Parameters
    ----------
    output
        The output of a run.
    picture
        The PNG to write; by default ``OUTPUT.png`` beside the output.
    z
        Index of the slice in the output, from 0; by default the middle one.
    volume
        New path of the volume, if it was moved since the run.

    Returns
    -------
    Path
        The PNG.

    Raises
    ------
    InputError
        If the output or its volume does not exist, or has no such slice, or the picture cannot be written.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    source = volume_of(stored, volume).first
    box = slice_box(stored.region, stored.region.shape[0] // 2 if z is None else z)
    panels = panels_of(stored, source, box)
    zoom = max(1, MIN_SLICE_PIXELS // max(box.shape))
    where = Path(picture) if picture is not None else sibling(stored.path, f"{stored.path.name}.png")
    try:
        _sheet(panels, zoom, scale_bar(recipe.volume, box.shape[2])).save(where, format="PNG")
    except OSError as error:
        raise OutputError(
            f"the picture {where} cannot be written ({error.strerror or error}): choose another with -o"
        ) from error
    return where


def _sheet(panels: list[Panel], zoom: int, bar: tuple[float, str] | None) -> Image.Image:
    """Draw the panels in a row, each below its caption."""
    font = ImageFont.load_default(size=16)
    height, width = (length * zoom for length in panels[0].pixels.shape[:2])
    sheet = Image.new("RGB", (len(panels) * width + (len(panels) - 1) * GAP_PIXELS, height + CAPTION_PIXELS), BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        left = number * (width + GAP_PIXELS)
        sheet.paste(Image.fromarray(panel.pixels).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION_PIXELS))
        draw.text((left + 4, 4), panel.caption, fill=TEXT_COLOR, font=font)
    if bar:
        length, caption = round(bar[0] * zoom), bar[1]
        left, bottom = 12, CAPTION_PIXELS + height - 12
        draw.rectangle((left - 6, bottom - 32, left + max(length, 60) + 6, bottom + 6), fill=TEXT_COLOR)
        draw.rectangle((left, bottom - 4, left + length, bottom), fill=BACKGROUND_COLOR)
        draw.text((left, bottom - 26), caption, fill=BACKGROUND_COLOR, font=font)
    return sheet
