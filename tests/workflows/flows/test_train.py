"""Training from a configuration to a model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr

from emseg.errors import InputError, OutputError
from emseg.model.file import load_model
from emseg.training.spec import Progress
from emseg_workflows.flows.train import train

CONFIG = """
name = "tiny"
output = "tiny.safetensors"
[data]
raw = "raw.tif"
ids = "ids.tif"
train = [0, 10]
tune = [10, 14]
report = [14, 18]
[model]
width = 2
depth = 1
kernel = [3, 3, 3]
pooling = [2, 2, 2]
[fit]
steps = 6
warmup = 2
output = [8, 8, 8]
validate_every = 2
precision = "float32"
[card]
licence = "CC0"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    ids = 1 + np.indices((18, 20, 20)).sum(axis=0) // 9
    raw = np.random.default_rng(0).integers(0, 256, ids.shape).astype(np.uint8)
    tifffile.imwrite("raw.tif", raw)
    tifffile.imwrite("ids.tif", ids.astype(np.uint16))
    Path("tiny.toml").write_text(CONFIG)
    return tmp_path / "tiny.toml"


def test_from_data_to_model(config: Path) -> None:
    reports: list[Progress] = []
    path = train(config, on_progress=reports.append)
    assert path == config.parent / "tiny.safetensors"
    model = load_model(path)
    assert model.spec.width == 2
    assert model.spec.classes == ("inside", "membrane")
    assert model.card["name"] == "tiny"
    assert model.card["licence"] == "CC0"
    assert "z 0..9" in model.card["split"]
    assert "F1" in model.card["scores"]
    assert "6 steps of 1 tile of 24 x 24 x 24 voxels" in model.card["training"]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert sorted(child.name for child in config.parent.iterdir()) == ["ids.tif", "raw.tif", "tiny.safetensors", "tiny.toml"]


def test_stopped_and_resumed_gives_the_same_file(config: Path) -> None:
    path = train(config)
    whole = path.read_bytes()
    path.unlink()

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_progress=stop)
    with pytest.raises(OutputError, match="--resume"):
        train(config)
    first: list[int] = []
    assert train(config, resume=True, on_progress=lambda progress: first.append(progress.step)).read_bytes() == whole
    assert first == [5, 6]


def test_a_zarr_volume_gives_the_same_weights(config: Path) -> None:
    weights = load_model(train(config)).weights
    Path("tiny.safetensors").unlink()
    for name in ("raw", "ids"):
        zarr.create_array(f"{name}.zarr", data=tifffile.imread(f"{name}.tif"), chunks=(8, 8, 8))
    config.write_text(CONFIG.replace(".tif", ".zarr"))
    again = load_model(train(config)).weights
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_resume_without_a_checkpoint_starts(config: Path) -> None:
    assert train(config, resume=True).exists()


def test_an_existing_model_is_kept(config: Path) -> None:
    Path("tiny.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        train(config)
    assert Path("tiny.safetensors").read_text() == "mine"


def test_other_data_are_not_resumed(config: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_progress=stop)
    tifffile.imwrite("raw.tif", np.random.default_rng(1).integers(0, 256, (18, 20, 20)).astype(np.uint8))
    with pytest.raises(InputError, match=r"other settings: .*digest"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("report = [14, 18]", "report = [14, 19]", "18 slices"),
        ('ids = "ids.tif"', 'ids = "flat.tif"', "have shape"),
        ('ids = "ids.tif"', 'ids = "one.tif"', "data.train has no membrane"),
        ('"tiny.safetensors"', '"nowhere/tiny.safetensors"', "is not a folder"),
        ('raw = "raw.tif"', 'raw = "none.tif"', "none.tif"),
    ],
)
def test_what_cannot_be_trained_is_refused(config: Path, old: str, new: str, message: str) -> None:
    tifffile.imwrite("flat.tif", np.ones((18, 20, 19), np.uint16))
    tifffile.imwrite("one.tif", np.ones((18, 20, 20), np.uint16))
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new))
    before = sorted(config.parent.iterdir())
    with pytest.raises(InputError, match=message) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert sorted(config.parent.iterdir()) == before
