"""Test the tiles of ensembles, which must suit all members, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emseg_core.errors import ModelError
from emseg_core.grid.plan import network_from_json
from emseg_core.specs.contract import Contract
from emseg_core.specs.ensemble import EnsembleSpec
from emseg_core.specs.heads import Head
from emseg_core.specs.model import ModelSpec

PLANAR = ModelSpec.unet(width=2, depth=2)
CUBIC = ModelSpec(3, 1, ("inside", "membrane"), ((3, 3, 3), (1, 1, 1)), ((2, 2, 2),))
FOREIGN = Contract(
    classes=("inside", "membrane"),
    planar=True,
    context=(0, 7, 7),
    lattice=(1, 6, 6),
    least=(1, 30, 30),
    crop=(0, 7, 7),
    activation="softmax",
    local=True,
    parameters=10,
    flops_per_voxel=100,
    bytes_per_voxel=40,
)
FIXED = replace(FOREIGN, lattice=(1, 1, 1), least=(1, 40, 40), only_tile=(1, 40, 40))
GROUPS: list[tuple[Any, ...]] = [
    (PLANAR, PLANAR),
    (PLANAR, CUBIC),
    (CUBIC, FOREIGN),
    (PLANAR, CUBIC, FOREIGN),
    (FOREIGN, FIXED),
    (PLANAR, FIXED),
]


@pytest.mark.parametrize("members", GROUPS, ids=str)
def test_every_tile_suits_every_member(members: tuple[Any, ...]) -> None:
    spec = EnsembleSpec(members)
    for axis in range(3):
        assert all(spec.lattice[axis] % member.lattice[axis] == 0 for member in members)
        assert spec.context[axis] >= max(member.context[axis] for member in members)
    for target in ((1, 1, 1), (2, 30, 17), (4, 100, 64)):
        tile = spec.tile_for(target)
        if spec.only_tile is not None:
            assert tile == spec.only_tile
        output = spec.output_shape(tile)
        for member, (start, part) in zip(members, spec.parts(tile), strict=True):
            given = member.output_shape(part)
            for axis in range(3):
                assert start[axis] + member.context[axis] == spec.context[axis], "the outputs start at one voxel"
                assert start[axis] + part[axis] <= tile[axis]
                assert given[axis] >= output[axis]
        assert spec.flops(tile) >= sum(member.flops(part) for member, (_, part) in zip(members, spec.parts(tile), strict=True))
        assert spec.activation_bytes(tile) > 0


def test_context_is_the_largest_where_lengths_agree() -> None:
    spec = EnsembleSpec((PLANAR, ModelSpec.unet(width=3, depth=1)))
    assert (spec.context, spec.lattice) == (PLANAR.context, (1, 4, 4))
    assert spec.parameters == PLANAR.parameters + ModelSpec.unet(width=3, depth=1).parameters


def test_json_gives_the_same_again() -> None:
    spec = EnsembleSpec((PLANAR, FOREIGN))
    assert network_from_json(spec.to_json()) == spec
    assert hash(spec) == hash(network_from_json(spec.to_json()))


def test_members_may_differ_in_activation_and_in_the_order_of_heads() -> None:
    heads = (
        Head("near", "affinities", ("a",), "sigmoid", offsets=((0, 0, 1),)),
        Head("mito", "independent", ("m",), "sigmoid logits", thresholds=(0.5,)),
    )
    first = replace(FOREIGN, classes=(), activation="none", named_heads=heads)
    second = replace(first, named_heads=(replace(heads[1], activation="sigmoid", source=(3,)), heads[0]))
    assert EnsembleSpec((first, second)).heads == heads


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offsets": ((0, 0, 2),)}, "offsets"),
        ({"anchor": "destination"}, "at the destination voxel"),
        ({"repulsive": True}, "different objects"),
        ({"name": "far"}, "model 2 has no head 'near'"),
        ({"channels": ("b",)}, "(z y x) b"),
    ],
    ids=str,
)
def test_what_disagrees_is_named(change: dict[str, Any], said: str) -> None:
    head = Head("near", "affinities", ("a",), "sigmoid", offsets=((0, 0, 1),))
    first, second = (
        replace(FOREIGN, classes=(), activation="none", named_heads=(each,)) for each in (head, replace(head, **change))
    )
    with pytest.raises(ModelError, match=r"model 1 has .*, but model 2 has .*: give models that agree") as caught:
        EnsembleSpec((first, second))
    if said != "offsets":
        assert said in str(caught.value)


def test_other_classes_and_single_tiles_are_refused() -> None:
    with pytest.raises(ModelError, match=r"inside, membrane.*but model 2 has .*inside, other"):
        EnsembleSpec((PLANAR, ModelSpec.unet(classes=("inside", "other"))))
    with pytest.raises(ModelError, match="label 26 and 30 voxels of it along y"):
        EnsembleSpec((FIXED, replace(FIXED, only_tile=(1, 44, 44), least=(1, 44, 44))))
    with pytest.raises(ModelError, match="least common multiple"):
        EnsembleSpec((replace(FOREIGN, lattice=(1, 101, 101)), replace(FOREIGN, lattice=(1, 103, 103))))
    with pytest.raises(ModelError, match="2 to 64 models, not 1"):
        EnsembleSpec((PLANAR,))
