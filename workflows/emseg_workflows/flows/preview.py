"""`emseg preview`: one slice as a PNG, raw beside labels beside both in one, and instances if there are any."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emseg.errors import OutputError
from emseg.store.output import open_output
from emseg.store.place import Address, Place, beside
from emseg_workflows.flows.panels import Panel, panels_of, scale_bar, slice_box
from emseg_workflows.flows.record import recipe_of, volume_of

LEAST_PIXELS = 640
"""A smaller part is drawn with each voxel as a square of pixels."""
CAPTION = 28
GAP = 8
INK = (32, 32, 32)
PAPER = (255, 255, 255)


def preview(
    output: str | Place, picture: str | Path | None = None, *, z: int | None = None, volume: str | Path | Address | None = None
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
    box = slice_box(stored.region, stored.region.shape[0] // 2 if z is None else z)
    panels = panels_of(stored, source, box)
    zoom = max(1, LEAST_PIXELS // max(box.shape))
    where = Path(picture) if picture is not None else beside(stored.path, f"{stored.path.name}.png")
    try:
        _sheet(panels, zoom, scale_bar(recipe.volume, box.shape[2])).save(where, format="PNG")
    except OSError as error:
        raise OutputError(
            f"the picture {where} cannot be written ({error.strerror or error}): choose another with -o"
        ) from error
    return where


def _sheet(panels: list[Panel], zoom: int, bar: tuple[float, str] | None) -> Image.Image:
    """The panels in a row, each under its caption."""
    font = ImageFont.load_default(size=16)
    height, width = (length * zoom for length in panels[0].pixels.shape[:2])
    sheet = Image.new("RGB", (len(panels) * width + (len(panels) - 1) * GAP, height + CAPTION), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        left = number * (width + GAP)
        sheet.paste(Image.fromarray(panel.pixels).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION))
        draw.text((left + 4, 4), panel.caption, fill=INK, font=font)
    if bar:
        length, caption = round(bar[0] * zoom), bar[1]
        left, bottom = 12, CAPTION + height - 12
        draw.rectangle((left - 6, bottom - 32, left + max(length, 60) + 6, bottom + 6), fill=INK)
        draw.rectangle((left, bottom - 4, left + length, bottom), fill=PAPER)
        draw.text((left, bottom - 26), caption, fill=PAPER, font=font)
    return sheet
