"""The parts of a report that show what an output holds: slices, classes, segments."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from emseg.box import Box
from emseg.errors import EmsegError
from emseg.recipe import Recipe
from emseg.store.classes import colour
from emseg.store.ledger import Output
from emseg.store.volume import ZarrVolume
from emseg_workflows.charts import bar, columns
from emseg_workflows.flows.contents import FINE, ClassShares, SegmentSizes, bin_start
from emseg_workflows.flows.panels import Panel, overview_of, panels_of, scale_bar, slice_box
from emseg_workflows.markup import Markup, tag
from emseg_workflows.pages import Column, amount, facts, figure, paragraph, picture, product, row, table
from emseg_workflows.pictures import Pixels

MOST_PIXELS = 512
"""Edge of a picture, in pixels; a larger one is made smaller, or the page would take megabytes for each slice."""


def slices(stored: Output, recipe: Recipe, source: ZarrVolume | None, missing: str) -> Iterator[Markup]:
    """Three slices: raw, labels, both, and instances if there are any."""
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
    """The pictures of a slice; where the volume cannot be read, without it."""
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
    """A scale bar in the lower left corner, in voxels."""
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
    """Where a box of a slice lies in the whole one."""
    (_, top, left), (_, height, width) = box.relative_to(region.start).start, box.shape
    thick = max(region.shape[1:]) / 150
    return tag("rect", x=left, y=top, width=width, height=height, fill="none", stroke="#ffd54a", stroke_width=f"{thick:g}")


def _png(pixels: Pixels) -> bytes:
    """A PNG of at most `MOST_PIXELS` along an edge and, but for grey ones, of 256 colours: a third of the bytes."""
    image = Image.fromarray(pixels)
    if max(image.size) > MOST_PIXELS:
        every = max(image.size) / MOST_PIXELS
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
    """The share of each class."""
    if not counted.voxels:
        yield paragraph("No block can be counted yet.", kind="note")
        return
    shades = ["#222222", *("#{:02x}{:02x}{:02x}".format(*colour(index)) for index in range(1, len(stored.classes)))]
    yield table(
        [Column("label", number=True), Column("class"), Column("share", number=True), Column("")],
        [
            (index, name, f"{share:.2%}", bar(share, shade))
            for index, (name, share, shade) in enumerate(zip(stored.classes, counted.shares, shades, strict=True))
        ],
    )
    which = "all that are computed" if counted.everything else "in chunks drawn by lot from blocks that are computed"
    yield paragraph(f"Of {amount(counted.voxels)}, {which}.", kind="small")
    if counted.unreadable:
        yield paragraph(f"{counted.unreadable} blocks could not be read: see `emseg verify --checksums`.", kind="note")


def segments(name: str, sizes: SegmentSizes | None) -> Iterator[Markup]:
    """How many segments there are, and of which sizes."""
    if sizes is None:
        yield paragraph(f"Their table emseg/{name}.csv is not there, or cannot be read.", kind="note")
        return
    yield facts(
        [
            ("segments", f"{sizes.segments:,}, of which {sizes.at_edge:,} touch the edge of what was labelled"),
            ("made by", sizes.method or None),
            ("voxels in them", f"{sizes.voxels:,}"),
            ("largest", f"{sizes.largest:,} voxels" if sizes.segments else None),
        ]
    )
    if sizes.counts:
        marks = [
            (number - sizes.first, f"{bin_start(number):,.0f}")
            for number in range(sizes.first, sizes.first + len(sizes.counts) + 1)
            if number % FINE == 0
        ]
        yield columns(sizes.counts, "segments", "voxels of a segment, logarithmic", marks)
    if sizes.unreadable:
        yield paragraph(f"{sizes.unreadable} rows of the table could not be read.", kind="note")
