"""Test runs with a mask: what is excluded costs nothing, counts as outside everywhere, and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from runs import PLANAR, bytes_of, save_random_model, save_volume, shards, texture

from emseg import label, segment
from emseg.cli import cli
from emseg.flows.repair import repair, verify_checksums
from emseg.flows.status import status
from emseg.flows.verify import verify
from emseg_core.errors import OutputError
from emseg_core.grid import pyramid
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (6, 50, 90)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Make a volume, a network, and a mask of half the resolution that covers part of it."""
    folder = tmp_path_factory.mktemp("inputs")
    mask = np.zeros((3, 25, 45), bool)
    mask[1:, 4:18, 20:33] = True
    zarr.create_array(folder / "mask.zarr", data=mask, chunks=(2, 8, 8))
    volume = save_volume(folder / "v.zarr", texture(SHAPE))
    model = save_random_model(folder / "m.safetensors", PLANAR)
    return {"volume": volume, "model": model, "mask": folder / "mask.zarr", "probabilities": True, "tile": (1, 24, 24)}


@pytest.fixture(scope="module", autouse=True)
def _levels() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "MAX_COARSEST_LENGTH", 32)
        yield


@pytest.fixture(scope="module")
def masked(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("masked") / "o.zarr"
    report = segment(output=output, workers=0, **inputs)
    assert (report.exit_code, report.unbuilt) == (0, 0)
    assert 0 < report.outside < report.blocks
    assert report.done == report.blocks - report.outside
    return output


def labels(output: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(output / "labels" / "classes" / "0", mode="r")[...])


def test_what_is_inside_is_as_without_a_mask(inputs: dict[str, Any], masked: Path, tmp_path: Path) -> None:
    assert segment(output=tmp_path / "o.zarr", workers=0, **{**inputs, "mask": None}).exit_code == 0
    found, whole, stored = labels(masked), labels(tmp_path / "o.zarr"), open_output(masked)
    for block in stored.levels[0].blocks:
        where = block.write.slices()
        left_out = bool(stored.outside.ravel()[block.index])
        np.testing.assert_array_equal(found[where], 255 if left_out else whole[where])
    mask = np.asarray(zarr.open_array(inputs["mask"], mode="r")[...]).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert (found[mask] != 255).all()
    assert len(shards(masked)) == (~stored.outside).sum()


def test_what_is_outside_is_not_missing(inputs: dict[str, Any], masked: Path) -> None:
    """Status, checks, verification and a second run find nothing left to do."""
    found = status(masked)
    assert (found.outside, found.left, found.exit_code) == (found.blocks - found.done, 0, 0)
    assert f"{found.outside} outside" in str(found)
    sound = verify_checksums(masked)
    assert (sound.missing, sound.checked, sound.holds) == (0, found.done, True)
    assert verify(masked, boxes=6).holds
    again = segment(output=masked, workers=0, **inputs)
    assert (again.done, again.skipped, again.outside, again.exit_code) == (0, found.done, found.outside, 0)


def test_a_run_goes_on_with_its_mask_alone(inputs: dict[str, Any], masked: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=2, **inputs).exit_code == 0
    assert bytes_of(output) == bytes_of(masked)
    shards(output)[0].unlink()
    assert repair(output, workers=0).repaired == 1
    shards(output)[1].unlink()
    assert segment(output=output, workers=0, **{**inputs, "mask": None}).done == 1
    assert bytes_of(output) == bytes_of(masked)
    other = save_volume(tmp_path / "other.zarr", np.ones(SHAPE, np.uint8))
    with pytest.raises(OutputError, match="mask was "):
        segment(output=output, workers=0, **{**inputs, "mask": other})
    assert segment(output=output, workers=0, overwrite=True, **{**inputs, "mask": other}).outside == 0


def test_levels_hold_what_is_there(masked: Path) -> None:
    """Probabilities are averaged over the computed voxels. Where there are none, nothing is stored."""
    finer, level = (np.asarray(zarr.open_array(masked / "probabilities" / n, mode="r")[...], float) for n in "01")
    finer[finer == 255] = np.nan
    cells = finer.reshape(len(finer), 3, 2, 25, 2, 45, 2)
    with np.errstate(invalid="ignore"):
        count = (~np.isnan(cells)).sum(axis=(2, 4, 6))
        mean = np.nansum(cells, axis=(2, 4, 6)) / count
    np.testing.assert_array_equal(level == 255, count == 0)
    assert np.abs(level - mean)[count > 0].max() <= 0.5


def test_instances_leave_out_the_same(masked: Path) -> None:
    assert label(masked, class_name="membrane", workers=0).exit_code == 0
    ids = np.asarray(zarr.open_array(masked / "labels" / "instances" / "0", mode="r")[...])
    assert (ids[labels(masked) == 255] == 0).all()
    assert ids.any()


def test_a_plan_says_how_much_is_outside(inputs: dict[str, Any], masked: Path, tmp_path: Path) -> None:
    words = ["plan", inputs["volume"], "--model", inputs["model"], "--tile", "1,24,24", "--mask", inputs["mask"]]
    told = CliRunner().invoke(cli, list(map(str, words)))
    assert f"; {open_output(masked).outside.sum()} lie outside the mask" in told.output
    words[-1] = save_volume(tmp_path / "empty.zarr", np.zeros(SHAPE, np.uint8))
    refused = CliRunner().invoke(cli, list(map(str, words)))
    assert refused.exit_code != 0
    assert "no block of the region lies within the mask" in str(refused.exception or refused.output)
