"""Charts as SVG, to stand in a page: columns over an axis, and a whole divided into its shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from emseg_workflows.markup import Markup, joined, tag

WIDTH, HEIGHT = 1000, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 26, 44
"""Room around the columns, in pixels."""
ACROSS, UP, FLOOR = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
BLUE, RED, INK, PALE = "#2b7bba", "#c62828", "#444", "#e3e6ea"
LINES = 4
"""Lines of the upright scale that are aimed at."""
THICK, SHORT, SQUARE = 22, 120, 12
"""Pixels: how thick a divided bar is, how long a bar in a table, and how large a square of a legend."""
LEAST = 0.002
"""A smaller share is not drawn."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole."""

    name: str
    share: float
    """Of 1."""
    colour: str


def round_below(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above a positive number.

    Examples
    --------
    >>> [round_below(number) for number in (7.3, 0.0021, 100)]
    [5.0, 0.002, 100.0]
    """
    power = 10.0 ** math.floor(math.log10(most))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= most or factor == 1)


def columns(
    heights: Sequence[float], up: str, across: str, marks: Sequence[tuple[float, str]], cuts: Sequence[float] = ()
) -> Markup:
    """Columns side by side, each as high as its number, none below 0.

    Parameters
    ----------
    up, across
        What is counted upwards, and what the columns stand along.
    marks
        Places along the axis, counted in columns, and what is written there.
    cuts
        Places where a dashed line parts them.
    """
    most, width = max(heights, default=0.0) or 1.0, ACROSS / max(1, len(heights))
    parts = [
        *_scale(most),
        *(_column(LEFT + number * width, width, UP * height / most) for number, height in enumerate(heights) if height > 0),
        *(_upright(LEFT + cut * width, TOP - 6, FLOOR, stroke_dasharray="4 3") for cut in cuts),
        *(_upright(LEFT + place * width, FLOOR, FLOOR + 5) for place, _ in marks),
        *(_words(text, LEFT + place * width, FLOOR + 18) for place, text in marks),
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=FLOOR, y2=FLOOR, stroke=INK),
        tag("text", up, x=LEFT - 6, y=TOP - 12, fill=INK),
        _words(across, LEFT + ACROSS / 2, HEIGHT - 6),
    ]
    return _drawing(WIDTH, HEIGHT, f"{up}, by {across}", parts)


def divided(shares: Sequence[Share]) -> Markup:
    """One bar divided into shares of 1, and below it what each part is."""
    left, parts = 0.0, [_rectangle(0, 0, WIDTH, THICK, PALE)]
    for part in shares:
        wide = WIDTH * part.share
        if part.share >= LEAST:
            parts.append(_rectangle(left, 0, wide, THICK, part.colour))
        left += wide
    words = [f"{part.name} {part.share:.1%}" for part in shares]
    squares = [_drawing(SQUARE, SQUARE, part.name, [_rectangle(0, 0, SQUARE, SQUARE, part.colour)]) for part in shares]
    legend = [tag("li", square, f" {word}") for square, word in zip(squares, words, strict=True)]
    return joined([_drawing(WIDTH, THICK, ", ".join(words), parts), tag("ul", *legend, class_="legend")])


def bar(share: float, colour: str) -> Markup:
    """A short bar, for a cell of a table."""
    filled = [_rectangle(0, 0, SHORT * share, SQUARE, colour)] if share >= LEAST else []
    return _drawing(SHORT, SQUARE, f"{share:.1%}", [_rectangle(0, 0, SHORT, SQUARE, PALE), *filled])


def _scale(most: float) -> list[Markup]:
    """Lines across, from 0 to below `most`, each with its number."""
    step = round_below(most / LINES * 1.5)
    parts = []
    for number in range(int(most / step + 1e-9) + 1):
        y = f"{FLOOR - UP * number * step / most:.2f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke=PALE))
        parts.append(tag("text", f"{number * step:,.6g}", x=LEFT - 6, y=y, dy="0.35em", fill=INK, text_anchor="end"))
    return parts


def _column(x: float, width: float, height: float) -> Markup:
    """A column that can be seen, however low or narrow, and a little room beside it."""
    tall = max(1.0, height)
    return _rectangle(x, FLOOR - tall, max(0.5, width * 0.92), tall, BLUE)


def _upright(x: float, top: float, bottom: float, **style: str) -> Markup:
    return tag("line", x1=f"{x:.2f}", x2=f"{x:.2f}", y1=top, y2=bottom, stroke=INK, **style)


def _words(text: str, x: float, y: float) -> Markup:
    return tag("text", text, x=f"{x:.2f}", y=y, fill=INK, text_anchor="middle")


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> Markup:
    return tag("rect", x=f"{x:.2f}", y=f"{y:.2f}", width=f"{width:.2f}", height=f"{height:.2f}", fill=colour)


def _drawing(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    place = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", tag("title", title), *parts, **place, role="img", font_size=12)
