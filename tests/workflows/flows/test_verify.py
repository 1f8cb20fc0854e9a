"""Test that verify passes correct outputs, and finds each way of spoiling one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import in_order
from runs import CUBIC, PLANAR, rewrite_description, save_random_model, save_volume, shards, texture

from emseg.flows.segment import segment
from emseg.flows.verify import verify
from emseg_core import block
from emseg_core.block import Seen
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import InputError
from emseg_core.specs.model import ModelSpec
from emseg_core.store.outputs.lifecycle import open_output

SPECS = {"planar": PLANAR, "cubic": CUBIC}
SHAPE = (9, 61, 67)


@pytest.fixture(scope="module", params=SPECS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a volume, a model, and the output of a correct run."""
    folder = tmp_path_factory.mktemp(request.param)
    save_volume(folder / "volume.zarr", texture(SHAPE))
    save_random_model(folder / "model.safetensors", SPECS[request.param])
    run(folder, folder / "honest.zarr")
    return folder


def run(folder: Path, output: Path, **more: Any) -> None:
    """Run in this process."""
    settings = {"model": folder / "model.safetensors", "probabilities": True, "workers": 0, **more}
    assert segment(folder / "volume.zarr", output, **settings).exit_code == 0


def spoilt(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the correct output, to be spoilt."""
    return Path(shutil.copytree(folder / "honest.zarr", tmp_path / "out.zarr"))


def test_an_honest_output_holds(folder: Path) -> None:
    verdict = verify(folder / "honest.zarr", boxes=6)
    assert verdict.holds
    assert (verdict.exit_code, verdict.boxes, verdict.not_computed) == (0, 6, 0)
    assert verdict.voxels > 0
    assert verdict.same_numerics
    assert str(verdict).endswith("PASS: labels are the same as from one pass over the whole volume")


@pytest.mark.parametrize(
    "more", [{"roi": "2:7,5:50,9:66"}, {"normalise": "slice"}, {"probabilities": False}, {"tta": True}], ids=str
)
def test_other_honest_outputs_hold(folder: Path, more: dict[str, Any], tmp_path: Path) -> None:
    run(folder, tmp_path / "out.zarr", **more)
    assert verify(tmp_path / "out.zarr", boxes=4, seed=1).holds


def as_averaged(text: str) -> str:
    """Return the recipe of a run with test-time augmentation."""
    return text.replace('"probabilities": true', '"probabilities": true, "tta": true')


def test_means_that_were_never_made_are_found(folder: Path, tmp_path: Path) -> None:
    """The output claims test-time augmentation, but was made without it."""
    rewrite_description(
        spoilt(folder, tmp_path), lambda text: text.replace('"probabilities": true', '"probabilities": true, "tta": true')
    )
    assert verify(tmp_path / "out.zarr", boxes=4).wrong_probabilities > 0


def test_an_image_holds(folder: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "image.zarr", texture(SHAPE)[4])
    segment(tmp_path / "image.zarr", tmp_path / "out.zarr", model=folder / "model.safetensors", workers=0)
    assert verify(tmp_path / "out.zarr").holds


def test_wrong_labels_are_found(folder: Path, tmp_path: Path) -> None:
    output = open_output(spoilt(folder, tmp_path))
    for unit in np.ndindex(output.done_units().shape):
        start = triple(int(i) * n for i, n in zip(unit, output.unit, strict=True))
        write = Box(start, triple(s + n for s, n in zip(start, output.unit, strict=True))).intersect(output.region)
        labels, probabilities = output.read_labels(write), output.read_probabilities(write)
        output.write(write, in_order(np.roll(labels, 1, axis=2), probabilities))
    verdict = verify(output.path)
    assert verdict.wrong_labels > 0
    assert verdict.wrong_probabilities == 0
    assert verdict.exit_code == 3


def test_tiles_one_voxel_beside_their_place_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels look plausible, but are wrong."""
    honest = block.predict_tiles

    def shifted(predictor: Any, seen: Seen, tiles: Any, batch: int) -> Any:
        beside = np.roll(seen.voxels, 1, axis=2) if seen.box.start[2] > 0 else seen.voxels
        return honest(predictor, replace(seen, voxels=beside), tiles, batch)

    monkeypatch.setattr(block, "predict_tiles", shifted)
    run(folder, tmp_path / "out.zarr", tile=_small_tile(folder))
    monkeypatch.undo()
    verdict = verify(tmp_path / "out.zarr", boxes=12)
    assert verdict.wrong_labels > 0
    assert not verdict.holds


def _small_tile(folder: Path) -> Triple:
    model: ModelSpec = SPECS[folder.name.rstrip("0123456789")]
    return model.tile_for((4, 16, 16))


def test_missing_blocks_are_counted_not_compared(folder: Path, tmp_path: Path) -> None:
    output = spoilt(folder, tmp_path)
    files = shards(output)
    for file in files[: len(files) // 2]:
        file.unlink()
    verdict = verify(output, boxes=12)
    assert verdict.holds
    assert verdict.not_computed > 0


def test_nothing_computed_is_refused(folder: Path, tmp_path: Path) -> None:
    output = spoilt(folder, tmp_path)
    for file in shards(output):
        file.unlink()
    with pytest.raises(InputError, match="finish the run first"):
        verify(output)


def test_a_damaged_shard_is_a_failure(folder: Path, tmp_path: Path) -> None:
    output = spoilt(folder, tmp_path)
    for file in shards(output):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    verdict = verify(output)
    assert verdict.failures
    assert verdict.exit_code == 3


def test_another_volume_or_model_is_refused(folder: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "other.zarr", texture(SHAPE, seed=1))
    with pytest.raises(InputError, match="--volume"):
        verify(folder / "honest.zarr", volume=tmp_path / "other.zarr")
    other = save_random_model(tmp_path / "other.safetensors", SPECS[folder.name.rstrip("0123456789")], seed=1)
    with pytest.raises(InputError, match="--model"):
        verify(folder / "honest.zarr", model=other)
