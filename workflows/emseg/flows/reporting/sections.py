"""Sections of a report that show the contents of an output: slices, classes, segments."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from emseg.flows.reporting.contents import BINS_PER_DECADE, ClassShares, SegmentSizes, bin_start
from emseg.flows.reporting.panels import Panel, overview_of, panels_of, scale_bar, slice_box
from emseg.pages.charts import column_chart, small_bar
from emseg.pages.markup import Markup, tag
from emseg.pages.page import Column, amount, facts, figure, paragraph, picture, product, row, table
from emseg.pages.pictures import Pixels
from emseg_core.box import Box
from emseg_core.errors import EmsegError
from emseg_core.recipe import Recipe
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume
from emseg_core.store.zarrs.omero import colour

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
            yield paragraph(
                f"The middle {product(box.shape[1:])} of {product(stored.region.shape[1:])} voxels (y, x).", kind="small"
            )
        try:
            panels = _panels(stored, source, box)
            overview = overview_of(stored, z)
        except EmsegError as error:
            yield paragraph(f"Not drawn: {error}", kind="note")
            continue
        bar_length = scale_bar(recipe.volume, box.shape[2])
        drawn = [
            _drawn(panel, box.shape[1:], _bar(bar_length, box) if number == 0 else ()) for number, panel in enumerate(panels)
        ]
        if overview is not None:
            drawn.append(_drawn(overview, stored.region.shape[1:], [_outline(stored.region, box)]))
        yield row(drawn)


def _panels(stored: Output, source: ZarrVolume | None, box: Box) -> list[Panel]:
    """Draw a slice; without raw voxels if the volume cannot be read."""
    if source is not None:
        try:
            return panels_of(stored, source, box)
        except EmsegError as error:
            panels = panels_of(stored, None, box)
            return [Panel(f"{panels[0].caption}; raw: {error}", panels[0].pixels), *panels[1:]]
    return panels_of(stored, None, box)


def _drawn(panel: Panel, shape: tuple[int, ...], marks: Iterable[Markup]) -> Markup:
    return figure(picture(_png(panel.pixels), (shape[0], shape[1]), panel.caption, marks), panel.caption)


def _bar(length_and_words: tuple[float, str] | None, box: Box) -> list[Markup]:
    """Draw a scale bar in the lower left corner, in voxels."""
    if length_and_words is None:
        return []
    length, words = length_and_words
    height, edge = box.shape[1], box.shape[2] / 40
    size = 2 * edge
    style = {"fill": "#fff", "stroke": "#000", "paint_order": "stroke"}
    place = {"x": edge, "y": height - 1.6 * edge}
    return [
        tag("rect", **place, width=length, height=edge / 2, **style, stroke_width=edge / 5),
        tag("text", words, x=edge, y=height - 2.4 * edge, font_size=size, **style, stroke_width=edge / 3),
    ]


def _outline(region: Box, box: Box) -> Markup:
    """Outline a box within the whole slice."""
    (_, top, left), (_, height, width) = box.relative_to(region.start).start, box.shape
    thick = max(region.shape[1:]) / 150
    return tag("rect", x=left, y=top, width=width, height=height, fill="none", stroke="#ffd54a", stroke_width=f"{thick:g}")


def _png(pixels: Pixels) -> bytes:
    """Encode a PNG, reduced to `MAX_PICTURE_PIXELS` and, unless it is grey, to 256 colours, which saves two thirds."""
    image = Image.fromarray(pixels)
    if max(image.size) > MAX_PICTURE_PIXELS:
        every = max(image.size) / MAX_PICTURE_PIXELS
        size = (max(1, round(image.width / every)), max(1, round(image.height / every)))
        image = image.resize(size, Image.Resampling.BOX)
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
    if not counted.voxels:
        yield paragraph("No block can be counted yet.", kind="note")
        return
    shades = ["#222222", *("#{:02x}{:02x}{:02x}".format(*colour(index)) for index in range(1, len(stored.classes)))]
    yield table(
        [Column("label", number=True), Column("class"), Column("share", number=True), Column("")],
        [
            (index, name, f"{share:.2%}", small_bar(share, shade))
            for index, (name, share, shade) in enumerate(zip(stored.classes, counted.shares, shades, strict=True))
        ],
    )
    which = "all that are computed" if counted.everything else "a random sample of the computed chunks"
    yield paragraph(f"Counted in {amount(counted.voxels)}, {which}.", kind="small")
    if counted.unreadable:
        count = "1 block" if counted.unreadable == 1 else f"{counted.unreadable} blocks"
        yield paragraph(f"{count} could not be read: see `emseg verify --checksums`.", kind="note")


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
        [
            ("segments", f"{sizes.segments:,}, of which {sizes.at_edge:,} touch the edge of the labelled region"),
            ("method", sizes.method or None),
            ("voxels in them", f"{sizes.voxels:,}"),
            ("largest", f"{sizes.largest:,} voxels" if sizes.segments else None),
        ]
    )
    if sizes.counts:
        marks = [
            (number - sizes.first, f"{bin_start(number):,.0f}")
            for number in range(sizes.first, sizes.first + len(sizes.counts) + 1)
            if number % BINS_PER_DECADE == 0
        ]
        yield column_chart(sizes.counts, "segments", "voxels of a segment, logarithmic", marks)
    if sizes.unreadable:
        count = "1 row" if sizes.unreadable == 1 else f"{sizes.unreadable} rows"
        yield paragraph(f"{count} of the table could not be read.", kind="note")
