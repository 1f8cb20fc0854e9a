"""Charts are drawn where their numbers are."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_workflows.charts import (
    ACROSS,
    BLUE,
    BOTTOM,
    HEIGHT,
    LEFT,
    PALE,
    SHORT,
    UP,
    WIDTH,
    Share,
    bar,
    columns,
    divided,
    round_below,
)


def rectangles(drawing: str, colour: str) -> list[dict[str, float]]:
    """Place and size of each rectangle of a colour."""
    found = (node.attrib for node in ElementTree.fromstring(f"<p>{drawing}</p>").iter("rect"))
    return [{name: float(node[name]) for name in ("x", "y", "width", "height")} for node in found if node["fill"] == colour]


def words(drawing: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(f"<p>{drawing}</p>").iter("text")]


def test_columns_stand_side_by_side_as_high_as_their_numbers() -> None:
    first, last = rectangles(columns([5.0, 0.0, 10.0], "up", "across", []), BLUE)
    bottom = HEIGHT - BOTTOM
    assert (first["x"], last["x"]) == (LEFT, pytest.approx(LEFT + ACROSS * 2 / 3, abs=0.01))
    assert (first["height"], last["height"]) == (UP / 2, UP)
    assert first["y"] + first["height"] == last["y"] + last["height"] == bottom


def test_marks_and_cuts_are_where_they_belong() -> None:
    drawing = columns([1.0, 2.0, 3.0, 4.0], "a < b", "time", [(2, "half")], [1])
    root = ElementTree.fromstring(drawing)
    (mark,) = (node for node in root.iter("text") if node.text == "half")
    (cut,) = (node for node in root.iter("line") if "stroke-dasharray" in node.attrib)
    assert float(mark.attrib["x"]) == LEFT + ACROSS / 2
    assert float(cut.attrib["x1"]) == LEFT + ACROSS / 4
    assert words(drawing)[-1] == "time"
    assert "a < b" in words(drawing)


@pytest.mark.parametrize("heights", [[], [0.0], [3.0], [0.0021] * 5, [1e9, 1]])
def test_the_scale_begins_at_0_and_ends_below_the_highest(heights: list[float]) -> None:
    scale = [float(text.replace(",", "")) for text in words(columns(heights, "up", "across", []))[:-2]]
    assert scale[0] == 0
    assert 2 <= len(scale) <= 8
    assert scale[-1] <= (max(heights, default=0) or 1)


def test_shares_fill_the_bar_from_the_left() -> None:
    drawing = divided([Share("one", 0.25, "#111"), Share("two", 0.75, "#222"), Share("none", 0.0, "#333")])
    (one, square), (two, _), (none,) = (rectangles(drawing, colour) for colour in ("#111", "#222", "#333"))
    assert (one["x"], one["width"], two["x"], two["width"]) == (0, WIDTH / 4, WIDTH / 4, 3 * WIDTH / 4)
    assert none == square, "what has no share is in the legend alone"
    assert "two 75.0%" in "".join(ElementTree.fromstring(f"<p>{drawing}</p>").itertext())


def test_a_bar_in_a_table() -> None:
    assert rectangles(bar(0.5, "#123"), "#123")[0]["width"] == SHORT / 2
    assert rectangles(bar(0.0, "#123"), "#123") == []
    assert rectangles(bar(0.0, "#123"), PALE)[0]["width"] == SHORT


@given(st.floats(1e-12, 1e15))
def test_round_numbers(most: float) -> None:
    below = round_below(most)
    assert below <= most * (1 + 1e-9)
    assert most < below * 2.5 * (1 + 1e-9)
    assert f"{below:e}"[0] in "125"
