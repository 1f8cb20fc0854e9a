"""The learning curve is drawn where its numbers are."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from emseg_workflows.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, learning_curve

SVG = "{http://www.w3.org/2000/svg}"


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """The points of each line, in pixels."""
    found = ElementTree.fromstring(picture).iter(f"{SVG}polyline")
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in found]  # type: ignore[misc]


def test_each_curve_fills_its_scale() -> None:
    loss, score = lines(learning_curve([(0, 2.0), (50, 1.0), (100, 0.5)], [(50, 0.6), (100, 0.8)]))
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    assert loss[0] == (LEFT, TOP)
    assert loss[1] == pytest.approx(((LEFT + right) / 2, bottom - (bottom - TOP) / 3), abs=0.1)
    assert loss[2] == (right, bottom)
    assert score == [pytest.approx(((LEFT + right) / 2, bottom)), (right, TOP)]


@pytest.mark.parametrize("curves", [([], []), ([(50, 1.0)], []), ([(50, 1.0), (100, 1.0)], [(100, 0.5)])])
def test_little_to_draw(curves: tuple[list[tuple[float, float]], list[tuple[float, float]]]) -> None:
    assert len(lines(learning_curve(*curves))) == sum(bool(curve) for curve in curves)
