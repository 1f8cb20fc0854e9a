"""Test that charts draw their numbers at the right positions."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg.pages.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    PALE,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    SMALL_BAR_WIDTH,
    TOP,
    WIDTH,
    Share,
    column_chart,
    learning_curve,
    round_below,
    small_bar,
    stacked_bar,
)
from emseg.pages.colours import BLUE

SVG = "{http://www.w3.org/2000/svg}"


def rectangles(drawing: str, colour: str) -> list[dict[str, float]]:
    """Return the position and size of each rectangle of a colour."""
    found = (node.attrib for node in ElementTree.fromstring(f"<p>{drawing}</p>").iter("rect"))
    return [{name: float(node[name]) for name in ("x", "y", "width", "height")} for node in found if node["fill"] == colour]


def words(drawing: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(f"<p>{drawing}</p>").iter("text")]


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """Return the points of each line, in pixels."""
    found = ElementTree.fromstring(picture).iter(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in found]  # type: ignore[misc]


def test_columns_stand_side_by_side_as_high_as_their_numbers() -> None:
    first, last = rectangles(column_chart([5.0, 0.0, 10.0], "up", "across", []), BLUE)
    bottom = HEIGHT - BOTTOM
    assert first["x"] == LEFT
    assert last["x"] == pytest.approx(LEFT + PLOT_WIDTH * 2 / 3, abs=0.01)
    assert (first["height"], last["height"]) == (PLOT_HEIGHT / 2, PLOT_HEIGHT)
    assert first["y"] + first["height"] == last["y"] + last["height"] == bottom


def test_marks_and_cuts_are_where_they_belong() -> None:
    drawing = column_chart([1.0, 2.0, 3.0, 4.0], "a < b", "time", [(2, "half")], [1])
    root = ElementTree.fromstring(drawing)
    (mark,) = (node for node in root.iter("text") if node.text == "half")
    (cut,) = (node for node in root.iter("line") if "stroke-dasharray" in node.attrib)
    assert float(mark.attrib["x"]) == LEFT + PLOT_WIDTH / 2
    assert float(cut.attrib["x1"]) == LEFT + PLOT_WIDTH / 4
    assert words(drawing)[-1] == "time"
    assert "a < b" in words(drawing)


@pytest.mark.parametrize("heights", [[], [0.0], [3.0], [0.0021] * 5, [1e9, 1]])
def test_the_scale_begins_at_0_and_ends_below_the_highest(heights: list[float]) -> None:
    scale = [float(text.replace(",", "")) for text in words(column_chart(heights, "up", "across", []))[:-2]]
    assert scale[0] == 0
    assert 2 <= len(scale) <= 8
    assert scale[-1] <= (max(heights, default=0) or 1)


def test_shares_fill_the_bar_from_the_left() -> None:
    drawing = stacked_bar([Share("one", 0.25, "#111"), Share("two", 0.75, "#222"), Share("none", 0.0, "#333")])
    (one, square), (two, _), (none,) = (rectangles(drawing, colour) for colour in ("#111", "#222", "#333"))
    assert (one["x"], one["width"], two["x"], two["width"]) == (0, WIDTH / 4, WIDTH / 4, 3 * WIDTH / 4)
    assert none == square, "what has no share is in the legend alone"
    assert "two 75.0%" in "".join(ElementTree.fromstring(f"<p>{drawing}</p>").itertext())


def test_a_bar_in_a_table() -> None:
    assert rectangles(small_bar(0.5, "#123"), "#123")[0]["width"] == SMALL_BAR_WIDTH / 2
    assert rectangles(small_bar(0.0, "#123"), "#123") == []
    assert rectangles(small_bar(0.0, "#123"), PALE)[0]["width"] == SMALL_BAR_WIDTH


@given(st.floats(1e-12, 1e15))
def test_round_numbers(most: float) -> None:
    below = round_below(most)
    assert below <= most * (1 + 1e-9)
    assert most < below * 2.5 * (1 + 1e-9)
    assert f"{below:e}"[0] in "125"


def test_each_curve_fills_its_scale() -> None:
    loss, score = lines(learning_curve([(0, 2.0), (50, 1.0), (100, 0.5)], [(50, 0.6), (100, 0.8)]))
    bottom, right = HEIGHT - BOTTOM, WIDTH - LEFT
    assert loss[0] == (LEFT, TOP)
    assert loss[1] == pytest.approx(((LEFT + right) / 2, bottom - (bottom - TOP) / 3), abs=0.1)
    assert loss[2] == (right, bottom)
    assert score == [pytest.approx(((LEFT + right) / 2, bottom)), (right, TOP)]


@pytest.mark.parametrize("curves", [([], []), ([(50, 1.0)], []), ([(50, 1.0), (100, 1.0)], [(100, 0.5)])])
def test_little_to_draw(curves: tuple[list[tuple[float, float]], list[tuple[float, float]]]) -> None:
    assert len(lines(learning_curve(*curves))) == sum(bool(curve) for curve in curves)
