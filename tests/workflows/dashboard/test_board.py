"""Test that the board counts what its driver reports, for any number of blocks, and that its map is true to scale."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from time import process_time

import numpy as np
import pytest

from emseg.dashboard.board import (
    MAX_CELLS,
    MAX_LAYERS,
    MAX_SPEED_POINTS,
    NO_UPDATE,
    Board,
    RunDescription,
    State,
    blocks_per_cell,
)
from emseg.dashboard.drawing import COLOURS, MAP_HEIGHT_PIXELS, MAP_WIDTH_PIXELS, arrange, cell_colours, cell_words
from emseg.dashboard.reporter import map_address
from emseg_core.box import Box, Triple

UNIT = (4, 8, 16)


def board_of(grid: Triple, states: np.ndarray | None = None, scale: tuple[float, float, float] = (1, 1, 1)) -> Board:
    """Make a board of a region that starts at 10, 20, 30 and ends three voxels before its last block does."""
    states = np.zeros(math.prod(grid), np.uint8) if states is None else states
    stop = tuple(first + blocks * length - 3 for first, blocks, length in zip((10, 20, 30), grid, UNIT, strict=True))
    region = Box((10, 20, 30), (stop[0], stop[1], stop[2]))
    return Board(RunDescription("run", "/v", "/o", region, grid, UNIT, scale, zlib.compress(states.tobytes())))


@pytest.mark.parametrize("grid", [(3, 5, 7), (50, 40, 41), (1, 1, 1), (200, 3, 900)])
def test_cells_add_up(grid: Triple) -> None:
    """After any messages, the cells count the current states."""
    rng = np.random.default_rng(3)
    count = math.prod(grid)
    states = rng.integers(0, 4, count).astype(np.uint8)
    states[states == State.RUNNING] = State.WAITING
    board = board_of(grid, states)
    running: set[int] = set()
    for _ in range(6):
        changed = {int(block): int(rng.choice([0, 2, 3])) for block in rng.integers(0, count, min(count, 40))}
        now = {int(block) for block in rng.integers(0, count, 9)} - set(changed)
        board.update(replace(NO_UPDATE, changed=changed, running=tuple(now)), 0.0)
        states[list(running - set(changed))] = State.WAITING
        states[list(changed)] = list(changed.values())
        states[list(now)] = State.RUNNING
        running = now
        assert board.totals == {state.name.lower(): int((states == state).sum()) for state in State}
    place = np.unravel_index(np.arange(count), grid)
    cell = np.ravel_multi_index([p // s for p, s in zip(place, board.step, strict=True)], board.cells)
    for state in State:
        np.testing.assert_array_equal(board.counts[state], np.bincount(cell[states == state], minlength=math.prod(board.cells)))


@pytest.mark.parametrize(
    "grid", [(1, 1, 1), (4, 10, 20), (1, 100, 100), (1, 101, 100), (5000, 1, 1), (1000, 100, 100), (1, 1, 50_000)]
)
def test_there_are_never_too_many_cells(grid: Triple) -> None:
    layers, rows, columns = (-(-blocks // step) for blocks, step in zip(grid, blocks_per_cell(grid), strict=True))
    assert layers * rows * columns <= MAX_CELLS
    assert layers <= MAX_LAYERS
    if math.prod(grid) <= MAX_CELLS and grid[0] <= MAX_LAYERS:
        assert blocks_per_cell(grid) == (1, 1, 1)


def test_ten_million_blocks() -> None:
    """The cost of a message depends only on what it changes."""
    grid = (100, 100, 1000)
    board = board_of(grid)
    began = process_time()
    for first in range(0, 10_000, 100):
        changed = dict.fromkeys(range(first, first + 100), int(State.DONE))
        board.update(replace(NO_UPDATE, changed=changed, running=tuple(range(first + 100, first + 1100))), 0.0)
    assert process_time() - began < 2
    assert board.totals == {"waiting": 10**7 - 11_000, "running": 1000, "done": 10_000, "failed": 0}


def test_boxes_are_the_volumes() -> None:
    board = board_of((2, 3, 4))
    assert str(board.block_box(0)) == "10:14,20:28,30:46"
    assert str(board.block_box(23)) == "14:15,36:41,78:91"
    assert str(board.cell_box(23)) == "14:15,36:41,78:91"


@pytest.mark.parametrize("grid", [(1, 1, 1), (6, 14, 18), (24, 20, 20), (1, 4, 300), (3, 900, 2)])
def test_the_map_fits_and_is_true_to_shape(grid: Triple) -> None:
    board = board_of(grid, scale=(1, 2, 1))
    sheet = arrange(board)
    assert sheet.width <= MAP_WIDTH_PIXELS + 1
    assert sheet.height <= MAP_HEIGHT_PIXELS + 1
    y, x = sheet.middles(board.cells)
    assert (y > 0).all() and (y < sheet.height).all() and (x > 0).all() and (x < sheet.width).all()  # noqa: PT018
    assert len(set(zip(y.tolist(), x.tolist(), strict=True))) == math.prod(board.cells), "cells lie upon each other"
    wanted = UNIT[1] * board.step[1] * 2 / (UNIT[2] * board.step[2])
    assert min(sheet.cell) == 0.1 or sheet.cell[0] / sheet.cell[1] == pytest.approx(wanted)


def test_colours_and_words() -> None:
    board = board_of((1, 1, 4), np.array([0, 0, 2, 3], np.uint8))
    board.update(replace(NO_UPDATE, running=(1,)), 0.0)
    assert cell_colours(board) == [COLOURS[state] for state in (State.WAITING, State.RUNNING, State.DONE, State.FAILED)]
    assert [cell_words(board, cell) for cell in range(4)] == ["waiting", "running", "done", "failed"]
    many = board_of((48, 1, 1), np.array([2] * 10 + [3] + [0] * 37, np.uint8))
    assert many.step == (2, 1, 1)
    assert cell_words(many, 5) == "2 blocks: 1 waiting, 1 failed"
    assert len(Counter(cell_colours(many))) == 3


def test_the_speed_over_a_long_run_stays_small() -> None:
    board = board_of((1, 1, 4))
    for second in range(5000):
        board.update(replace(NO_UPDATE, seconds=float(second), pace={"speed": 1e6}), 0.0)
    assert MAX_SPEED_POINTS / 2 <= len(board.speeds) <= MAX_SPEED_POINTS
    assert board.speeds[0][0] == 0
    assert all(early < late for (early, _), (late, _) in pairwise(board.speeds))


def test_a_state_for_each_block() -> None:
    with pytest.raises(ValueError, match="3 states for a grid"):
        board_of((1, 1, 4), np.zeros(3, np.uint8))


@pytest.mark.parametrize(
    ("dashboard", "page"),
    [
        ("http://127.0.0.1:8787/status", "http://127.0.0.1:8787/emseg"),
        ("http://127.0.0.1:8787/status?emseg-token=x", "http://127.0.0.1:8787/emseg?emseg-token=x"),
        ("/user/me/proxy/8787/status", "/user/me/proxy/8787/emseg"),
    ],
)
def test_where_the_map_is(dashboard: str, page: str) -> None:
    assert map_address(dashboard) == page
