"""Test tiles against lists of voxels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hull, painted
from strategies import boxes, model_specs, valid_tiles

from emseg_core.box import Box, Triple
from emseg_core.errors import ModelError
from emseg_core.grid.tiles import hull_of, tiles_of
from emseg_core.specs.model import ModelSpec

PAPER = ModelSpec.unet()


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelSpec, Box, Triple, Triple]:
    """Draw a network, any box, any valid tile, and any lead below the step."""
    spec = draw(model_specs())
    tile = draw(valid_tiles(spec))
    z, y, x = (draw(st.integers(0, step - 1)) for step in spec.step(tile))
    return spec, draw(boxes(-12, 12)), tile, (z, y, x)


@given(cases())
@settings(max_examples=200)
def test_targets_partition_the_box(case: tuple[ModelSpec, Box, Triple, Triple]) -> None:
    spec, box, tile, lead = case
    targets = [part.target for part in tiles_of(box, tile, spec, lead)]
    assert (painted(box, targets) == 1).all()


@given(cases())
@settings(max_examples=200)
def test_outputs_start_on_the_lattice_of_the_volume_and_hold_their_targets(case: tuple[ModelSpec, Box, Triple, Triple]) -> None:
    spec, box, tile, lead = case
    for part in tiles_of(box, tile, spec, lead):
        assert all(start % lattice == 0 for start, lattice in zip(part.output.start, spec.lattice, strict=True))
        assert part.output.contains(part.target)
        assert part.source.shape == tile
        assert part.output.shape == spec.output_shape(tile)
        assert part.output.grow(spec.context) == part.source


@given(cases())
@settings(max_examples=200)
def test_the_read_box_is_what_the_tiles_see(case: tuple[ModelSpec, Box, Triple, Triple]) -> None:
    spec, box, tile, lead = case
    assert hull_of(box, tile, spec, lead) == hull([part.source for part in tiles_of(box, tile, spec, lead)])


@given(cases())
def test_no_tile_more_than_needed(case: tuple[ModelSpec, Box, Triple, Triple]) -> None:
    """Without a lead, there are as many tiles as the lattice cells of the box need, with one step's worth of cells each."""
    spec, box, tile, _ = case
    count = 1
    for axis in range(3):
        cells = spec.step(tile)[axis] // spec.lattice[axis]
        touched = {voxel // spec.lattice[axis] for voxel in range(box.start[axis], box.stop[axis])}
        count *= -(-len(touched) // cells)
    assert len(list(tiles_of(box, tile, spec))) == count


@given(cases())
def test_a_lead_moves_the_first_tile_by_whole_lattice_cells(case: tuple[ModelSpec, Box, Triple, Triple]) -> None:
    spec, box, tile, lead = case
    first, moved = next(tiles_of(box, tile, spec)), next(tiles_of(box, tile, spec, lead))
    cells = tuple(ahead // lattice * lattice for ahead, lattice in zip(lead, spec.lattice, strict=True))
    assert moved.output.shift(cells) == first.output  # type: ignore[arg-type]


def test_the_tiles_of_the_paper() -> None:
    parts = list(tiles_of(Box((3, 0, 0), (4, 512, 512)), (1, 572, 572), PAPER))
    assert [str(part.source) for part in parts] == [
        "3:4,-92:480,-92:480",
        "3:4,-92:480,292:864",
        "3:4,292:864,-92:480",
        "3:4,292:864,292:864",
    ]
    assert [part.target.shape for part in parts] == [(1, 384, 384), (1, 384, 128), (1, 128, 384), (1, 128, 128)]


@pytest.mark.parametrize("tile", [(1, 500, 572), PAPER.tile_for((1, 1, 1)), (0, 572, 572)])
def test_a_tile_that_cannot_be_stepped_is_refused(tile: Triple) -> None:
    box = Box.of_shape((1, 8, 8))
    with pytest.raises(ModelError):
        list(tiles_of(box, tile, PAPER))
    with pytest.raises(ModelError):
        hull_of(box, tile, PAPER)
