"""Sections of a report that show the contents of an output: slices, classes, segments."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from emseg.flows.reporting.contents import BINS_PER_DECADE, ClassShares, SegmentSizes, bin_start
from emseg.flows.reporting.panels import Panel, overview_of, panels_of, scale_bar, slice_box
from emseg.pages.charts import column_chart, small_bar
from emseg.pages.colours import class_colours, hex_colour
from emseg.pages.markup import Markup, tag
from emseg.pages.page import amount, facts, paragraph, picture, product, table
from emseg.pages.pictures import Pixels
from emseg.runs.tally import quantity
from emseg_core.box import Box, Triple
from emseg_core.errors import EmsegError
from emseg_core.recipe import Recipe
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume

MAX_PICTURE_PIXELS = 512
"""Longest edge of a picture; larger ones are reduced, because a page would otherwise need megabytes per slice."""


def slices(stored: Output, recipe: Recipe, source: ZarrVolume | None, missing: str) -> Iterator[Markup]:
    """Show three slices: raw, labels, labels over raw, and instances if there are any.

    Parameters
    ----------
    stored
        The output.
    recipe
        Its recipe.
    source
        Its volume; None if it cannot be read.
    missing
        Why the volume cannot be read.

    Yields
    ------
    Markup
        Elements of the section.
    """
    if source is None:
        yield paragraph(f"Without raw voxels: {missing}.", kind="note")
    depth = stored.region.shape[0]
    for z in sorted({depth // 4, depth // 2, 3 * depth // 4}):
        box = slice_box(stored.region, z)
        yield tag("h3", f"Slice {z} of {depth}")
        if box.shape[1:] != stored.region.shape[1:]:
            middle = f"The middle {product(box.shape[1:])} of {product(stored.region.shape[1:])} voxels (y, x)."
            yield paragraph(middle, kind="small")
        try:
            panels = _panels(stored, source, box)
            overview = overview_of(stored, z)
        except EmsegError as error:
            yield paragraph(f"Not drawn: {error}", kind="note")
            continue
        marks = [_bar(scale_bar(recipe.volume, box.shape[2]), box), *[()] * (len(panels) - 1)]
        drawn = [_figure(panel, box.shape, over) for panel, over in zip(panels, marks, strict=True)]
        if overview is not None:
            drawn.append(_figure(overview, stored.region.shape, [_outline(stored.region, box)]))
        yield tag("div", *drawn, class_="row")


def _panels(stored: Output, source: ZarrVolume | None, box: Box) -> list[Panel]:
    """Draw a slice; without raw voxels if the volume cannot be read."""
    try:
        return panels_of(stored, source, box)
    except EmsegError as error:
        first, *others = panels_of(stored, None, box)
        return [replace(first, caption=f"{first.caption}; raw: {error}"), *others]


def _figure(panel: Panel, shape: Triple, marks: Iterable[Markup]) -> Markup:
    """Show a picture of a slice, whose shape (z, y, x) in voxels is the unit of the marks, above its caption."""
    drawing = picture(_png(panel.pixels), shape[1:], panel.caption, marks)
    return tag("figure", drawing, tag("figcaption", panel.caption))


def _bar(bar: tuple[float, str] | None, box: Box) -> list[Markup]:
    """Draw a scale bar in the lower left corner, in voxels."""
    if bar is None:
        return []
    (length, words), height, edge = bar, box.shape[1], box.shape[2] / 40
    style = {"x": edge, "fill": "#fff", "stroke": "#000", "paint_order": "stroke"}
    return [
        tag("rect", y=height - 1.6 * edge, width=length, height=edge / 2, stroke_width=edge / 5, **style),
        tag("text", words, y=height - 2.4 * edge, font_size=2 * edge, stroke_width=edge / 3, **style),
    ]


def _outline(region: Box, box: Box) -> Markup:
    """Outline a box within the whole slice."""
    (_, top, left), (_, height, width) = box.relative_to(region.start).start, box.shape
    thick = max(region.shape[1:]) / 150
    return tag("rect", x=left, y=top, width=width, height=height, fill="none", stroke="#ffd54a", stroke_width=f"{thick:g}")


def _png(pixels: Pixels) -> bytes:
    """Encode a PNG, reduced to `MAX_PICTURE_PIXELS` and, unless it is grey, to 256 colours, which saves two thirds."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_PICTURE_PIXELS, MAX_PICTURE_PIXELS), Image.Resampling.BOX, reducing_gap=None)
    shades = np.asarray(image)
    if (shades == shades[..., :1]).all():
        image = image.convert("L")
    elif image.getcolors(256) is None:
        image = image.quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def classes(stored: Output, counted: ClassShares) -> Iterator[Markup]:
    """Show the share of each class.

    Parameters
    ----------
    stored
        The open output.
    counted
        Voxels of each class.

    Yields
    ------
    Markup
        Elements of the section.
    """
    if not stored.classes:
        yield paragraph("No classes that exclude one another are stored.", kind="note")
        return
    if not counted.voxels:
        yield paragraph("No block can be counted yet.", kind="note")
        return
    colours = {**class_colours(len(stored.classes)), 0: (34, 34, 34)}
    shares = enumerate(zip(stored.classes, counted.shares, strict=True))
    rows = [(n, name, f"{share:.2%}", small_bar(share, hex_colour(colours[n]))) for n, (name, share) in shares]
    yield table(["label", "class", "share", ""], rows, numbers={"label", "share"})
    which = "all that are computed" if counted.everything else "a random sample of the computed chunks"
    yield paragraph(f"Counted in {amount(counted.voxels)}, {which}.", kind="small")
    if counted.unreadable:
        yield paragraph(
            f"{quantity(counted.unreadable, 'block')} could not be read: see `emseg verify --checksums`.", kind="note"
        )


def segments(name: str, sizes: SegmentSizes | None) -> Iterator[Markup]:
    """Show the number of segments and their sizes.

    Parameters
    ----------
    name
        Name of the instance labels.
    sizes
        Sizes of the segments; None if they cannot be read.

    Yields
    ------
    Markup
        Elements of the section.
    """
    if sizes is None:
        yield paragraph(f"Their table emseg/{name}.csv is missing or cannot be read.", kind="note")
        return
    yield facts(
        ("segments", f"{sizes.segments:,}, of which {sizes.at_edge:,} touch the edge of the labelled region"),
        ("method", sizes.method or None),
        ("voxels in them", f"{sizes.voxels:,}"),
        ("largest", f"{sizes.largest:,} voxels" if sizes.segments else None),
    )
    if sizes.counts:
        edges = range(sizes.first, sizes.first + len(sizes.counts) + 1)
        marks = [(edge - sizes.first, f"{bin_start(edge):,.0f}") for edge in edges if edge % BINS_PER_DECADE == 0]
        yield column_chart(sizes.counts, "segments", "voxels of a segment, logarithmic", marks)
    if sizes.unreadable:
        yield paragraph(f"{quantity(sizes.unreadable, 'row')} of the table could not be read.", kind="note")
