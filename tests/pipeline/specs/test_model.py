"""Test the arithmetic of a U-Net. `tests/pipeline/model/test_unet.py` compares it with the real network."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import model_specs, valid_tiles

from emseg_core.box import Triple
from emseg_core.errors import ModelError
from emseg_core.specs.model import ModelSpec

PAPER = ModelSpec.unet()
SMALL = ModelSpec.unet(width=2, depth=1)


def fits(spec: ModelSpec, tile: Triple) -> bool:
    try:
        spec.output_shape(tile)
    except ModelError:
        return False
    return True


def test_the_sizes_of_the_paper() -> None:
    assert (PAPER.width, PAPER.depth, PAPER.classes, PAPER.planar) == (64, 4, ("inside", "membrane"), True)
    assert PAPER.context == (0, 92, 92)
    assert PAPER.lattice == (1, 16, 16)
    assert PAPER.output_shape((1, 572, 572)) == (1, 388, 388)
    assert PAPER.step((1, 572, 572)) == (1, 384, 384), "388 is not a multiple of 16"
    assert PAPER.parameters == 31_030_658


@pytest.mark.parametrize(
    ("spec", "context", "lattice", "planar"),
    [
        (ModelSpec.unet(width=1, depth=0), (0, 2, 2), (1, 1, 1), True),
        (SMALL, (0, 8, 8), (1, 2, 2), True),
        (ModelSpec.unet(width=1, depth=1, pooling=(1, 3, 3)), (0, 10, 10), (1, 3, 3), True),
        (ModelSpec.unet(width=1, depth=2, kernel=(3, 3, 3), pooling=(2, 2, 2)), (20, 20, 20), (4, 4, 4), False),
        (ModelSpec(1, 2, ("a",), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2))), (8, 20, 20), (2, 4, 4), False),
        (ModelSpec(1, 1, ("a",), ((1, 3, 3), (1, 3, 3)), ((2, 1, 1),)), (0, 6, 6), (2, 1, 1), False),
    ],
)
def test_context_and_lattice_by_hand(spec: ModelSpec, context: Triple, lattice: Triple, planar: bool) -> None:
    assert (spec.context, spec.lattice, spec.planar) == (context, lattice, planar)


@given(st.data(), model_specs(), st.integers(0, 2), st.integers(-3, 60))
def test_next_valid_is_the_first_that_fits(data: st.DataObject, spec: ModelSpec, axis: int, more: int) -> None:
    tile = list(data.draw(valid_tiles(spec)))
    wanted = 2 * spec.context[axis] + more
    found = spec.next_valid(axis, wanted)
    assert found >= wanted
    for length in range(max(wanted, found - 2 * spec.lattice[axis]), found + 1):
        tile[axis] = length
        assert fits(spec, (tile[0], tile[1], tile[2])) == (length == found)


@given(st.data(), model_specs())
def test_tile_for_holds_the_target_and_no_smaller_tile_does(data: st.DataObject, spec: ModelSpec) -> None:
    target = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    tile = spec.tile_for(target)
    output = spec.output_shape(tile)
    for axis in range(3):
        assert output[axis] >= target[axis]
        for shorter in range(target[axis] + 2 * spec.context[axis], tile[axis]):
            assert not fits(spec, tuple(shorter if i == axis else n for i, n in enumerate(tile)))  # type: ignore[arg-type]


@given(st.data(), model_specs())
def test_step_is_the_most_of_the_output_on_the_lattice(data: st.DataObject, spec: ModelSpec) -> None:
    tile = data.draw(valid_tiles(spec))
    for step, output, lattice in zip(spec.step(tile), spec.output_shape(tile), spec.lattice, strict=True):
        assert step % lattice == 0
        assert 0 <= output - step < lattice


def test_an_output_smaller_than_the_lattice_cannot_be_tiled() -> None:
    tile = PAPER.tile_for((1, 1, 1))
    assert PAPER.output_shape(tile) == (1, 4, 4)
    with pytest.raises(ModelError, match=r"gives \(1, 4, 4\), less than the lattice \(1, 16, 16\): use a larger tile"):
        PAPER.step(tile)


def test_a_tile_that_does_not_fit_is_told_the_next_that_does() -> None:
    with pytest.raises(ModelError, match=r"\(1, 572, 570\) does not fit the network on axis x: 570 .* size is 572$"):
        PAPER.output_shape((1, 572, 570))
    for tile in ((0, 572, 572), (1, -4, 572), (1, 0, 572)):
        for ask in (PAPER.output_shape, PAPER.step, PAPER.flops, PAPER.activation_bytes):
            with pytest.raises(ModelError, match="the next valid size is"):
                ask(tile)


@given(st.data(), model_specs())
def test_costs_grow_with_the_tile(data: st.DataObject, spec: ModelSpec) -> None:
    tile = data.draw(valid_tiles(spec))
    z, y, x = (length + lattice for length, lattice in zip(tile, spec.lattice, strict=True))
    assert spec.flops((z, y, x)) > spec.flops(tile) > 0
    assert spec.activation_bytes((z, y, x)) > spec.activation_bytes(tile) > 0


# -- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "not width 0"),
        ({"depth": -1}, "depth -1"),
        ({"channels": 0}, "channels 0"),
        ({"classes": ()}, "not 0"),
        ({"classes": ("x",) * 255}, "not 255"),
        ({"kernels": ((1, 3, 3),)}, "depth 1 needs 2 kernels and 1 poolings, not 1 and 1"),
        ({"pooling": ()}, "not 2 and 0"),
        ({"kernels": ((1, 3, 3), (1, 2, 3))}, "odd and positive"),
        ({"kernels": ((1, 3, 3), (1, -1, 3))}, "odd and positive"),
        ({"pooling": ((1, 0, 2),)}, "positive on each axis"),
        ({"dropout": 1.0}, "not 1.0"),
        ({"dropout": float("nan")}, "not nan"),
        ({"output": "sigmoid"}, "not 'sigmoid'"),
    ],
)
def test_impossible_networks_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        replace(SMALL, **change)
    assert "\n" not in str(caught.value)


@given(model_specs(), st.sampled_from([0.0, 0.25]))
def test_json_round_trip(spec: ModelSpec, dropout: float) -> None:
    spec = replace(spec, dropout=dropout)
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert hash(again) == hash(spec)


def described(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(SMALL.to_json())), **changes}


@pytest.mark.parametrize(
    "data",
    [
        described(width="wide"),
        described(width=None),
        described(width=float("inf")),
        described(width=2.5),
        described(classes=3),
        described(classes="ab"),
        described(classes=[1, 2]),
        described(kernels=[[3, 3], [3, 3]]),
        described(kernels=3),
        described(kernels=[[1, 3, 2.5], [1, 3, 3]]),
        described(pooling=[[1, 2, 2, 2]]),
        described(dropout="much"),
        described(output=["softmax"]),
        described(output=None),
        described(colour="red"),
        {name: value for name, value in described().items() if name != "kernels"},
    ],
)
def test_a_broken_description_is_a_model_error_in_one_line(data: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        ModelSpec.from_json(data)
    assert "\n" not in str(caught.value)
