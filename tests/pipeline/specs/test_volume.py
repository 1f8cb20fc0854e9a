"""Test the properties of a volume."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import shapes

from emseg_core.box import Box, Triple
from emseg_core.errors import VolumeError
from emseg_core.specs.volume import DTYPES, Selection, VolumeSpec

FINE = VolumeSpec((2, 3, 4), "uint16", (1, 2, 3), 3, (40.0, 4.0, 8.0), (100.0, 0.0, -5.0), ("nanometer", "nanometer", None))


@given(shapes(), st.sampled_from(DTYPES))
def test_bytes_are_those_of_the_array(shape: Triple, dtype: str) -> None:
    array = np.empty(shape, dtype)
    spec = VolumeSpec(shape, dtype, (1, 1, 1))
    assert (spec.nbytes, spec.itemsize) == (array.nbytes, array.itemsize)
    assert spec.box == Box((0, 0, 0), shape)


def test_a_region_lies_where_its_first_voxel_is() -> None:
    assert FINE.crop(Box((1, 2, 3), (2, 3, 4))) == (140.0, 8.0, 19.0)
    assert FINE.crop(FINE.box) == FINE.translation


def test_json_round_trip() -> None:
    assert VolumeSpec.from_json(json.loads(json.dumps(FINE.to_json()))) == FINE
    plain = VolumeSpec((1, 3, 4), "uint8", (1, 2, 3), rank=2)
    again = VolumeSpec.from_json(json.loads(json.dumps(plain.to_json())))
    assert again == plain
    assert hash(again) == hash(plain), "plans keep arithmetic by the volume"


def test_only_an_array_of_several_volumes_says_which() -> None:
    """So the fingerprints of older outputs stay valid."""
    assert not FINE.to_json().keys() & {"channel", "timepoint", "together"}
    assert FINE.selection is None
    parts: list[dict[str, Any]] = [
        {"channel": 0, "together": 4},
        {"timepoint": 3},
        {"channel": 2, "timepoint": 0, "together": 6},
    ]
    for several in parts:
        spec = replace(FINE, **several)
        assert spec.to_json() == {**FINE.to_json(), **several}
        assert VolumeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert spec.selection == Selection(several.get("channel"), several.get("timepoint"))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, -1, 4)])
def test_an_empty_volume_is_refused(shape: Triple) -> None:
    with pytest.raises(VolumeError, match="holds no voxel: each axis needs at least one"):
        VolumeSpec(shape, "uint8", (1, 1, 1))


@pytest.mark.parametrize("dtype", ["float64", "float16", ">u2", "complex64"])
def test_other_types_are_refused(dtype: str) -> None:
    with pytest.raises(VolumeError, match=f"is {dtype}, but emseg reads uint8, uint16, float32, .*: convert it first"):
        VolumeSpec((2, 3, 4), dtype, (1, 1, 1))
