"""Charts as SVG: columns over an axis, learning curves, and bars that show shares of a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emseg.pages.colours import BLUE, ORANGE
from emseg.pages.markup import Markup, joined, tag

WIDTH, HEIGHT = 1000, 240
"""Size of a chart in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 26, 44
"""Margins around the columns, in pixels."""
PLOT_WIDTH, PLOT_HEIGHT, BASELINE = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, HEIGHT - BOTTOM
CURVE_WIDTH = WIDTH - 2 * LEFT
"""Width of the plot of learning curves, which have a scale on either side."""
INK, PALE = "#444", "#e3e6ea"
SCALE_STEPS = 4
"""Steps of a vertical scale; of columns approximately, as their steps are round numbers."""
BAR_HEIGHT, SMALL_BAR_WIDTH, SQUARE = 22, 120, 12
"""Height of a stacked bar, width of a bar in a table, and edge of a square in a legend, in pixels."""
MIN_SHARE = 0.002
"""Smaller shares are not drawn."""

Curve = Sequence[tuple[float, float]]
"""Step and value, in the order of the steps."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole."""

    name: str
    share: float
    """Fraction of 1."""
    colour: str


def round_below(number: float) -> float:
    """Round a positive number down to 1, 2 or 5 times a power of ten.

    Parameters
    ----------
    number
        A positive number.

    Returns
    -------
    float
        The largest such number that is not above `number`.

    Examples
    --------
    >>> [round_below(number) for number in (7.3, 0.0021, 100)]
    [5.0, 0.002, 100.0]
    """
    power = 10.0 ** math.floor(math.log10(number))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= number or factor == 1)


def column_chart(
    heights: Sequence[float], y_label: str, x_label: str, ticks: Sequence[tuple[float, str]], dividers: Sequence[float] = ()
) -> Markup:
    """Draw columns side by side.

    Parameters
    ----------
    heights
        Height of each column, not below 0.
    y_label, x_label
        Labels of the axes.
    ticks
        Positions along the x axis, in columns, and their labels.
    dividers
        Positions of dashed vertical lines, in columns.

    Returns
    -------
    Markup
        An SVG element.
    """
    highest, width = max(heights, default=0.0) or 1.0, PLOT_WIDTH / max(1, len(heights))
    columns = [_column(LEFT + n * width, width, PLOT_HEIGHT * height / highest) for n, height in enumerate(heights) if height]
    parts = [
        *_scale(highest),
        *columns,
        *(_vertical(LEFT + place * width, TOP - 6, BASELINE, stroke_dasharray="4 3") for place in dividers),
        *(_vertical(LEFT + place * width, BASELINE, BASELINE + 5) for place, _ in ticks),
        *(_text(label, LEFT + place * width, BASELINE + 18) for place, label in ticks),
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=BASELINE, y2=BASELINE, stroke=INK),
        tag("text", y_label, x=LEFT - 6, y=TOP - 12, fill=INK),
        _text(x_label, LEFT + PLOT_WIDTH / 2, HEIGHT - 6),
    ]
    return _svg(WIDTH, HEIGHT, f"{y_label}, by {x_label}", parts)


def learning_curve(loss: Curve, score: Curve) -> Markup:
    """Draw loss and score of a training, each on its own scale.

    Parameters
    ----------
    loss
        Loss by step.
    score
        Score by step.

    Returns
    -------
    Markup
        An SVG document.
    """
    last = max((step for step, _ in (*loss, *score)), default=1) or 1
    parts = [
        tag("rect", width=WIDTH, height=HEIGHT, fill="white"),
        tag("rect", x=LEFT, y=TOP, width=CURVE_WIDTH, height=PLOT_HEIGHT, fill="none", stroke=PALE),
        _text(f"steps, to {last:g}", WIDTH / 2, HEIGHT - 6),
        *_curve(loss, last, "loss", BLUE, LEFT - 6, "end"),
        *_curve(score, last, "score", ORANGE, WIDTH - LEFT + 6, "start"),
    ]
    return _svg(WIDTH, HEIGHT, "loss and score, by step", parts, xmlns="http://www.w3.org/2000/svg", font_family="sans-serif")


def stacked_bar(shares: Sequence[Share]) -> Markup:
    """Draw one bar divided into shares, with a legend below it.

    Parameters
    ----------
    shares
        Name, size and colour of each share.

    Returns
    -------
    Markup
        An SVG element and a list.
    """
    return joined([bar(shares), legend([(part.colour, f"{part.name} {part.share:.1%}") for part in shares])])


def bar(shares: Sequence[Share], width: int = WIDTH, height: int = BAR_HEIGHT) -> Markup:
    """Draw one bar divided into shares.

    Parameters
    ----------
    shares
        The shares, from left to right.
    width, height
        Size of the bar in pixels.

    Returns
    -------
    Markup
        An SVG element.
    """
    left, parts = 0.0, [_rectangle(0, 0, width, height, PALE)]
    for part in shares:
        if part.share >= MIN_SHARE:
            parts.append(_rectangle(left, 0, width * part.share, height, part.colour))
        left += width * part.share
    words = ", ".join(f"{part.name} {part.share:.1%}" for part in shares)
    return _svg(width, height, words, parts, preserveAspectRatio="none")


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """Explain colours.

    Parameters
    ----------
    entries
        Colours and their meanings.

    Returns
    -------
    Markup
        A list.
    """
    size = {"viewBox": f"0 0 {SQUARE} {SQUARE}", "width": SQUARE, "height": SQUARE}
    squares = ((tag("svg", _rectangle(0, 0, SQUARE, SQUARE, colour), **size), words) for colour, words in entries)
    return tag("ul", *(tag("li", square, " ", words) for square, words in squares), class_="legend")


def small_bar(share: float, colour: str) -> Markup:
    """Draw a share of 1 as a short bar for a table cell.

    Parameters
    ----------
    share
        0 to 1.
    colour
        A colour as CSS has it.

    Returns
    -------
    Markup
        An SVG element.
    """
    return bar([Share("share", share, colour)], SMALL_BAR_WIDTH, SQUARE)


def _scale(highest: float) -> list[Markup]:
    """Draw labelled horizontal lines from 0 to below `highest`."""
    step = round_below(highest / SCALE_STEPS * 1.5)
    parts = []
    for number in range(int(highest / step + 1e-9) + 1):
        y = f"{BASELINE - PLOT_HEIGHT * number * step / highest:.2f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke=PALE))
        parts.append(tag("text", f"{number * step:,.6g}", x=LEFT - 6, y=y, dy="0.35em", fill=INK, text_anchor="end"))
    return parts


def _curve(curve: Curve, last: float, name: str, colour: str, x: int, anchor: str) -> list[Markup]:
    """Draw a curve that fills its own scale, with the scale's labels at `x`."""
    parts = [tag("text", name, x=x, y=TOP - 12, fill=colour, text_anchor=anchor)]
    if not curve:
        return parts
    low, high = min(value for _, value in curve), max(value for _, value in curve)
    span = (high - low) or 1.0
    points = [(LEFT + CURVE_WIDTH * step / last, BASELINE - PLOT_HEIGHT * (value - low) / span) for step, value in curve]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(tag("polyline", points=line, fill="none", stroke=colour, stroke_width=2))
    for number in range(SCALE_STEPS + 1):
        label, y = f"{low + span * number / SCALE_STEPS:.3g}", BASELINE - PLOT_HEIGHT * number / SCALE_STEPS
        parts.append(tag("text", label, x=x, y=f"{y:.2f}", dy="0.35em", fill=colour, text_anchor=anchor))
    return parts


def _column(x: float, width: float, height: float) -> Markup:
    """Draw a column that is visible however low or narrow it is, with a small gap next to it."""
    visible = max(1.0, height)
    return _rectangle(x, BASELINE - visible, max(0.5, width * 0.92), visible, BLUE)


def _vertical(x: float, top: float, bottom: float, **style: str) -> Markup:
    return tag("line", x1=f"{x:.2f}", x2=f"{x:.2f}", y1=top, y2=bottom, stroke=INK, **style)


def _text(text: str, x: float, y: float) -> Markup:
    return tag("text", text, x=f"{x:.2f}", y=y, fill=INK, text_anchor="middle")


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> Markup:
    return tag("rect", x=f"{x:.2f}", y=f"{y:.2f}", width=f"{width:.2f}", height=f"{height:.2f}", fill=colour)


def _svg(width: int, height: int, title: str, parts: Sequence[Markup], **attributes: str) -> Markup:
    place = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height, **attributes}
    return tag("svg", tag("title", title), *parts, **place, role="img", font_size=12)
