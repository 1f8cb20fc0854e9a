"""Test that the page of a run shows what its board knows, and that foreign text stays text."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

import numpy as np
import pytest
from bokeh.models import Div, GlyphRenderer, Rect
from observed import Observed

from emseg.dashboard.board import NO_UPDATE, Board, RunDescription, State
from emseg.dashboard.drawing import cell_colours, cell_words
from emseg.dashboard.page import Page, RunView
from emseg_core.box import Box, Triple

HOSTILE = "/a<script>alert(1)</script>&\"'"
PACE = {"speed": 2.5e6, "seconds_left": 60.0, "plus_minus": 5.0, "shares": {"read": 0.25, "predict": 0.75}, "slowest": HOSTILE}


def board_of(run: str, grid: Triple = (2, 3, 4)) -> Board:
    """Make a board whose first block is done and whose second one has failed."""
    states = np.zeros(np.prod(grid), np.uint8)
    states[:2] = State.DONE, State.FAILED
    box = Box((0, 0, 0), (grid[0] * 8, grid[1] * 8, grid[2] * 8))
    return Board(RunDescription(run, "/v", HOSTILE, box, grid, (8, 8, 8), (1, 1, 1), zlib.compress(states.tobytes())))


def seen(view: RunView) -> Observed:
    """Return the texts of the page as a browser parses them."""
    return Observed("".join(div.text for div in view.layout.select({"type": Div})))


def test_text_stays_text() -> None:
    view = RunView(board_of("run"))
    view.board.update(replace(NO_UPDATE, pace=PACE), 0.0)
    view.refresh([board_of('"><script>')])
    found = seen(view)
    assert "script" not in {name for name, _ in found.elements}
    assert found.text.count(HOSTILE) == 3, "output, other output and slowest worker"
    (link,) = (attributes for name, attributes in found.elements if name == "a")
    assert link == {"href": "?run=%22%3E%3Cscript%3E"}


def failing(*_: object) -> None:
    raise ValueError(HOSTILE)


def test_a_message_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    view = RunView(board_of("run"))
    view.board.update(replace(NO_UPDATE, newest=0), 0.0)
    monkeypatch.setattr("emseg.dashboard.page.draw_slice", failing)
    asyncio.run(view.draw_newest())
    assert f"No picture: {HOSTILE}" in seen(view).text
    assert "script" not in {name for name, _ in seen(view).elements}


def test_numbers_are_those_of_the_board() -> None:
    view = RunView(board_of("run"))
    view.board.update(replace(NO_UPDATE, running=(2, 3), seconds=88.0, pace=PACE), 0.0)
    view.refresh([])
    for said in ("1 done", "2 running", "1 failed", "20 waiting", "of 24 blocks", "4.2 %", "2.5Mvoxel/s", "1 min 28 selapsed"):
        assert said in seen(view).text
    assert "1 min 00 s ± 5.0 sleft" in seen(view).text
    assert "reading 25% network 75%" in seen(view).text


@pytest.mark.parametrize("grid", [(2, 3, 4), (50, 40, 41)])
def test_the_map_follows_the_board(grid: Triple) -> None:
    """It is drawn at first, and updated when only some cells have changed."""
    view = RunView(board_of("run", grid))
    drawn = view.layout.select({"type": GlyphRenderer})
    (cells,) = (each.data_source for each in drawn if isinstance(each.glyph, Rect))
    for running in ((), (2, 3), (3,)):
        view.board.update(replace(NO_UPDATE, running=running), 0.0)
        view.refresh([])
        assert list(cells.data["colour"]) == cell_colours(view.board)
        assert list(cells.data["words"]) == [cell_words(view.board, cell) for cell in range(len(cells.data["words"]))]


def test_the_page_shows_the_run_that_is_asked_for() -> None:
    boards: dict[str, Board] = {}
    page, asking = Page(boards, ""), Page(boards, "first")
    assert "No run has started" in page.root.children[0].text
    boards.update(first=board_of("first"), second=board_of("second"))
    for each, other in ((page, "first"), (asking, "second")):
        each._show()
        (text,) = (div.text for div in each.root.select({"type": Div}) if "emseg-done" in div.text)
        assert f'href="?run={other}"' in text
