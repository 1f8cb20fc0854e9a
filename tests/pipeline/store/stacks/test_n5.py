"""Test N5 with axes in any order: each voxel, size and offset belongs to its own axis."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_core.box import AXES, Box
from emseg_core.store.stacks.n5 import is_n5, open_n5

SHAPE = {"z": 3, "y": 4, "x": 5, "c": 1}
VOXELS = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)

lengths = st.fixed_dictionaries({axis: st.floats(0.5, 500) for axis in SHAPE})
places = st.fixed_dictionaries({axis: st.floats(-5000, 5000) for axis in SHAPE})
factors = st.fixed_dictionaries({axis: st.integers(1, 8) for axis in SHAPE})


@settings(max_examples=40, deadline=None)
@given(axes=st.permutations("zyxc"), size=lengths, first=places, factor=factors, nested=st.booleans())
def test_axes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    axes: list[str],
    size: dict[str, float],
    first: dict[str, float],
    factor: dict[str, int],
    nested: bool,
) -> None:
    container = tmp_path_factory.mktemp("n5") / "s.n5"
    folder = container / "s1"
    stored = np.expand_dims(VOXELS, 3).transpose(["zyxc".index(axis) for axis in axes])
    spec = {"driver": "n5", "kvstore": f"file://{folder}/"}
    layout = {"dimensions": stored.shape, "blockSize": [2] * 4, "dataType": "uint8", "compression": {"type": "raw"}}
    tensorstore.open({**spec, "metadata": layout}, create=True).result().write(stored).result()
    stated = {
        "resolution": [size[axis] for axis in axes],
        "offset": [first[axis] for axis in axes],
        "units": ["" if axis == "c" else {"z": "nm", "y": "um", "x": "mm"}[axis] for axis in axes],
    }
    own = {**layout, "axes": axes, "downsamplingFactors": [factor[axis] for axis in axes]}
    (folder / "attributes.json").write_text(json.dumps(own if nested else {**own, **stated}))
    (container / "attributes.json").write_text(json.dumps(stated if nested else {"n5": "4.0.0"}))
    stack = open_n5(container, "s1", allow_missing=True)
    np.testing.assert_array_equal(stack.read(0, 3), VOXELS)
    np.testing.assert_array_equal(stack.read_box(Box((1, 0, 2), (2, 3, 5))), VOXELS[1:2, :3, 2:])
    assert stack.stated is not None
    assert stack.stated.units == ("nanometer", "micrometer", "millimeter")
    assert stack.stated.scale == pytest.approx([size[axis] * factor[axis] for axis in AXES])
    # the centre of the first voxel is in the middle of the finer voxels that it covers
    centres = [np.mean([first[axis] + size[axis] * i for i in range(factor[axis])]) for axis in AXES]
    assert stack.stated.translation == pytest.approx(centres, abs=1e-6)


def test_what_is_n5(tmp_path: Path) -> None:
    for name in ("a.n5", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "attributes.json").touch()
    (tmp_path / "d.n5").touch()
    assert [is_n5(tmp_path / name) for name in ("a.n5", "b", "c", "d.n5", "e.n5")] == [True, True, False, False, False]
