"""Test levels of an output on disk: their sources, what counts as done, and what is removed together."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from fakes import in_order
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError
from emseg_core.grid.pyramid import coarsened
from emseg_core.outcome import Stopwatch
from emseg_core.specs.heads import classes_head
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.outputs.layout import OutputLayout
from emseg_core.store.outputs.level import remove_stale_units
from emseg_core.store.outputs.lifecycle import create_output, open_output
from emseg_core.store.outputs.output import Output

SHAPE: Triple = (9, 30, 41)
STEPS: tuple[Triple, ...] = ((1, 2, 2), (2, 2, 2), (2, 2, 2))


def make(path: Path, unit: Triple = (4, 8, 8), *, probabilities: bool = True) -> Output:
    """Make an empty output with three coarser levels."""
    chunk = unit if unit == (3, 15, 21) else (2, 4, 4)
    volume = VolumeSpec((12, 40, 50), "uint8", (4, 8, 8))
    region = Box((3, 4, 5), (12, 34, 46))
    create_output(path, OutputLayout(volume, region, (classes_head(("a", "b", "c")),), unit, chunk, probabilities, {}, STEPS))
    return open_output(path)


def fill(output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Store labels and probabilities of the finest level."""
    rng = np.random.default_rng(5)
    labels, probabilities = rng.integers(0, 3, SHAPE, np.uint8), rng.integers(0, 255, (3, *SHAPE), np.uint8)
    for block in output.levels[0].blocks:
        where = block.write.slices()
        box = block.write.shift(output.region.start)
        output.write(box, in_order(labels[where], probabilities[(slice(None), *where)] if output.keeps_probabilities else None))
    return labels, probabilities


def build(output: Output) -> None:
    """Build the missing units of each level whose sources exist."""
    for finer, level in itertools.pairwise(output.levels):
        for index in np.flatnonzero(level.ready(finer.done()) & ~level.done()):
            level.build(finer, level.blocks.block(int(index)), Stopwatch())


@pytest.mark.parametrize("unit", [(4, 8, 16), (3, 15, 21), (16, 64, 64)])
@pytest.mark.parametrize("probabilities", [True, False])
def test_levels_are_those_of_the_whole(tmp_path: Path, unit: Triple, probabilities: bool) -> None:
    output = make(tmp_path / "o", unit, probabilities=probabilities)
    labels, amounts = fill(output)
    build(output)
    for step, level in zip(STEPS, output.levels[1:], strict=True):
        labels, amounts = coarsened(labels, step, "mode"), coarsened(amounts, step, "mean")
        assert level.done().all()
        assert level.blocks.unit == unit
        *others, stored = level.arrays
        np.testing.assert_array_equal(stored.read(level.blocks.region), labels)
        for array in others:
            np.testing.assert_array_equal(array.read(level.blocks.region), amounts)


@settings(max_examples=6)
@given(st.data())
def test_what_stands_on_a_missing_unit_is_removed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whichever units are removed, the others are unchanged and have all their sources, and a rebuild restores the rest."""
    output = make(tmp_path_factory.mktemp("o") / "o", (4, 16, 16), probabilities=False)
    fill(output)
    build(output)
    before = [level.arrays[-1].read(level.blocks.region) for level in output.levels]
    gone = [data.draw(st.sets(st.sampled_from(range(len(level.blocks))), max_size=3)) for level in output.levels]
    for level, indices in zip(output.levels, gone, strict=True):
        for index in indices:
            level.remove(level.blocks.block(index).write)
    finest = remove_stale_units(output.levels)
    assert set(np.flatnonzero(~finest)) == gone[0]
    lost = {tuple(map(int, np.unravel_index(index, output.levels[0].blocks.grid))) for index in gone[0]}
    for number, level in enumerate(output.levels[1:], 1):
        above = {tuple(i // s for i, s in zip(place, level.step, strict=True)) for place in lost}
        lost = above | {tuple(map(int, np.unravel_index(index, level.blocks.grid))) for index in gone[number]}
        assert {tuple(map(int, place)) for place in np.argwhere(~level.done())} == lost
    fill(output)
    build(output)
    for level, stored in zip(output.levels, before, strict=True):
        np.testing.assert_array_equal(level.arrays[-1].read(level.blocks.region), stored)


def test_nothing_is_made_of_what_is_missing_or_damaged(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    fill(output)
    finer, level = output.levels[:2]
    finer.remove(finer.blocks.block(0).write)
    assert not level.ready(finer.done())[0, 0, 0]
    assert level.ready(finer.done()).sum() == len(level.blocks) - 1
    file = tmp_path / "o" / finer.arrays[0].array.path / "c/0/0/0/2"
    damaged = bytearray(file.read_bytes())
    damaged[40] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(BlockError, match=r"of a level of .* cannot be read .*: repair it with `emseg verify --repair`"):
        level.build(finer, level.blocks.block(1), Stopwatch())
    assert not level.done().any()
