"""Test blocks with a single value: they get a declared class, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from runs import PLANAR, bytes_of, save_random_model, save_volume, shards, texture

from emseg.flows.records.run_log import recipe_of
from emseg.flows.repair import repair
from emseg.flows.segment import segment
from emseg.flows.verify import verify
from emseg_core.errors import OutputError, PlanError
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (4, 60, 140)
VALUE = 9


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Make a volume with one value in more than half of it, and one other voxel in there."""
    folder = tmp_path_factory.mktemp("inputs")
    values = texture(SHAPE)
    values[:, :, 50:] = VALUE
    values[1, 30, 120] = VALUE + 1
    model = save_random_model(folder / "m.safetensors", PLANAR)
    return {"volume": save_volume(folder / "v.zarr", values), "model": model, "probabilities": True, "tile": (1, 28, 28)}


def stored(output: Path, array: str) -> np.ndarray:
    return np.asarray(zarr.open_array(output / array / "0", mode="r")[...])


def test_only_blocks_that_see_nothing_else_are_declared(inputs: dict[str, Any], tmp_path: Path) -> None:
    declared, predicted = tmp_path / "declared.zarr", tmp_path / "predicted.zarr"
    assert segment(output=declared, workers=0, empty=(VALUE, "membrane"), **inputs).exit_code == 0
    assert segment(output=predicted, workers=0, **inputs).exit_code == 0
    plan = recipe_of(open_output(declared)).plan
    volume = np.asarray(zarr.open_array(inputs["volume"], mode="r")[...])
    classes, amounts = (
        [stored(output, array) for output in (declared, predicted)] for array in ("labels/classes", "probabilities")
    )
    count = 0
    for block in plan:
        seen, where = plan.read_box(block).intersect(plan.region), block.write.slices()
        ours, theirs = ((labels[where], shares[(slice(None), *where)]) for labels, shares in zip(classes, amounts, strict=True))
        if (volume[seen.slices()] == VALUE).all():  # mirrored voxels are in there
            count += 1
            assert (ours[0] == 1).all()
            assert (ours[1] == np.array([0, 254])[:, None, None, None]).all()
        else:
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
    assert 0 < count < len(plan)
    assert verify(declared, boxes=8).holds


def test_a_declaration_is_part_of_the_recipe(inputs: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, empty=(VALUE, "membrane"), **inputs).exit_code == 0
    sound = bytes_of(output)
    for file in (shards(output)[0], shards(output)[-1]):
        file.unlink()
    assert repair(output, workers=0).repaired == 2
    assert bytes_of(output) == sound
    with pytest.raises(OutputError, match=r"empty.label was 1, now 0"):
        segment(output=output, workers=0, empty=(VALUE, "inside"), **inputs)
    with pytest.raises(PlanError, match="--empty names the class 'glia', but the model has inside, membrane"):
        segment(output=tmp_path / "p.zarr", workers=0, empty=(0, "glia"), **inputs)
    plain = tmp_path / "plain.zarr"
    assert segment(output=plain, workers=0, **inputs).exit_code == 0
    with pytest.raises(OutputError, match=r"empty.label was not set, now 1"):
        segment(output=plain, workers=0, empty=(VALUE, "membrane"), **inputs)
