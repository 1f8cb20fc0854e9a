"""Test training from a configuration to a model file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from trainings import save_training

from emseg.flows.records.run_log import recipe_of
from emseg.flows.segment import segment
from emseg.flows.train import train
from emseg_core.errors import InputError, OutputError
from emseg_core.model.file import load_model
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.training.spec import Progress
from emseg_core.truth import membrane_truth

CONFIG = """
name = "tiny"
output = "tiny.safetensors"
[[data]]
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
    return save_training(CONFIG, depth=18)


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
    assert model.card["normalise"] == "volume"
    assert "6 steps of 1 tile of 24 x 24 x 24 voxels" in model.card["training"]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    left = {"ids.tif", "raw.tif", "tiny.safetensors", "tiny.toml", "tiny.log.csv", "tiny.log.svg", "tiny.pictures"}
    assert {child.name for child in config.parent.iterdir()} == left
    with Path("tiny.log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]  # where something was validated
    assert [float(row["loss"]) for row in rows] == pytest.approx([reports[step - 1].loss for step in (2, 4, 6)], rel=1e-4)
    pictures = sorted(Path("tiny.pictures").iterdir())
    assert [picture.name for picture in pictures] == ["step-000002.png", "step-000004.png", "step-000006.png"]
    with Image.open(pictures[-1]) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (20, 3 * 20, 3)
    truth = membrane_truth(tifffile.imread("ids.tif")[10:14])[2]
    assert np.array_equal(pixels[:, 20:40].any(axis=2), truth == 1)


def test_the_card_tells_the_steps_that_were_taken(config: Path) -> None:
    """Without any improvement, training ends after the second validation."""
    config.write_text(config.read_text().replace("steps = 6", "steps = 6\npatience = 1\nrate = 1e-30"))
    assert "4 steps of 1 tile" in load_model(train(config)).card["training"]


def test_stopped_and_resumed_gives_the_same_file(config: Path) -> None:
    path = train(config)
    whole, table = path.read_bytes(), Path("tiny.log.csv").read_text()
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
    columns = [[row[:4] for row in csv.reader(text.splitlines())] for text in (table, Path("tiny.log.csv").read_text())]
    assert [row[0] for row in columns[0]] == [row[0] for row in columns[1]]


def test_a_zarr_volume_gives_the_same_weights(config: Path) -> None:
    weights = load_model(train(config)).weights
    Path("tiny.safetensors").unlink()
    zarr.create_array("raw.zarr", data=tifffile.imread("raw.tif"), chunks=(8, 8, 8))
    ids = tifffile.imread("ids.tif").astype(np.uint64) + 2**40  # large stores number their instances like this
    zarr.create_array("ids.zarr", data=ids, chunks=(8, 8, 8))
    config.write_text(CONFIG.replace(".tif", ".zarr"))
    again = load_model(train(config)).weights
    assert weights.keys() == again.keys()
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


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
    with pytest.raises(InputError, match=r"other settings \(.*digest"):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("report = [14, 18]", "report = [14, 19]", "18 slices"),
        ('ids = "ids.tif"', 'ids = "flat.tif"', "have shape"),
        ('ids = "ids.tif"', 'ids = "one.tif"', "data.train has no membrane"),
        ('"tiny.safetensors"', '"nowhere/tiny.safetensors"', "is not a folder"),
        ('raw = "raw.tif"', 'raw = "none.tif"', "none.tif"),
        ('ids = "ids.tif"', 'ids = "tune.tif"', "data.tune has no membrane"),
        ('raw = "raw.tif"', 'raw = "nan.tif"', r"data.report of nan.tif, ids.tif: voxel \(3, 19, 19\) .* is nan"),
        ('ids = "ids.tif"', 'labels = "labels.tif"\nvalues = {inside = [0], membrane = [9]}', "1 voxel has the value 7"),
        ('ids = "ids.tif"', 'labels = "labels.tif"\nvalues = {inside = [0, 9], membrane = [7]}', "data.train has no membrane"),
        ("tune = [10, 14]", "", "no data.tune"),
    ],
)
def test_what_cannot_be_trained_is_refused(config: Path, old: str, new: str, message: str) -> None:
    tifffile.imwrite("flat.tif", np.ones((18, 20, 19), np.uint16))
    tifffile.imwrite("one.tif", np.ones((18, 20, 20), np.uint16))
    tifffile.imwrite("tune.tif", np.where(np.arange(18)[:, None, None] < 10, tifffile.imread("ids.tif"), 1).astype(np.uint16))
    tifffile.imwrite("nan.tif", np.where(np.indices((18, 20, 20)).sum(axis=0) == 17 + 38, np.nan, 1).astype(np.float32))
    labels = np.where(np.indices((18, 20, 20))[1] % 5, 0, 9).astype(np.uint8)
    labels[17, 3, 3] = 7
    tifffile.imwrite("labels.tif", labels)
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new))
    before = sorted(config.parent.iterdir())
    with pytest.raises(InputError, match=message) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert sorted(config.parent.iterdir()) == before


CLASSES = """
name = "classes"
output = "classes.safetensors"
normalise = "slice"
[[data]]
raw = "raw.tif"
labels = "labels.tif"
values = {inside = [10], membrane = [20, 21], vesicle = [30]}
ignore = [99]
train = [0, 4]
tune = [4, 5]
neighbours = "plane"
[[data]]
raw = "more.zarr"
labels = "more-labels.zarr"
values = {inside = [1], membrane = [0]}
train = [1, 3]
report = [0, 1]
neighbours = "plane"
weight = 0.5
[model]
classes = ["inside", "membrane", "vesicle"]
width = 2
depth = 1
kernel = [1, 3, 3]
pooling = [1, 2, 2]
[fit]
steps = 4
warmup = 1
output = [1, 24, 24]
validate_every = 4
precision = "float32"
class_weights = [1, 2, 5]
affinity_weight = 0.5
border_weight = 10
aim = "segments"
"""


def test_several_volumes_and_classes_and_a_run_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    rng = np.random.default_rng(0)
    tifffile.imwrite("raw.tif", rng.integers(0, 256, (5, 40, 40)).astype(np.uint8))
    labels = rng.choice(np.array([10, 20, 21, 30, 99], np.uint8), (5, 40, 40), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    tifffile.imwrite("labels.tif", labels)
    zarr.create_array("more.zarr", data=rng.integers(0, 60000, (3, 30, 50)).astype(np.uint16), chunks=(1, 16, 16))
    zarr.create_array("more-labels.zarr", data=rng.integers(0, 2, (3, 30, 50)).astype(np.uint8), chunks=(3, 8, 8))
    Path("classes.toml").write_text(CLASSES)
    path = train("classes.toml")
    card = load_model(path).card
    assert "trained on z 0..3, tuned on z 4..4 of raw.tif, labels.tif; trained on z 1..2, reported on z 0..0" in card["split"]
    assert "vesicle F1" in card["scores"]
    assert "V_Rand" in card["scores"]
    assert "borders weighted by 10, affinities weighted by 0.5" in card["training"]
    report = segment("more.zarr", "out.zarr", model=path, workers=0)
    assert report.exit_code == 0
    assert recipe_of(open_output("out.zarr")).normalisation.scope == "slice"  # as it was trained


def test_truth_that_was_corrected_is_not_resumed(config: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_progress=stop)
    ids = tifffile.imread("ids.tif")
    ids[3, 4, 5] = 99
    tifffile.imwrite("ids.tif", ids)
    with pytest.raises(InputError, match=r"other settings \(volumes.0.train.truth"):
        train(config, resume=True)


def test_a_log_that_cannot_be_written_ends_no_training(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(progress: Progress) -> None:
        if progress.step == 1:
            shutil.rmtree("tiny.pictures")
            Path("tiny.log.csv").write_text("step,loss\n\n1,2\n")  # as a crash may leave it

    assert train(config, on_progress=spoil).exists()
    assert capsys.readouterr().err.count("the training continues, but its log cannot be written") == 1
    with Path("tiny.log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]


def test_a_volume_for_tuning_alone(config: Path) -> None:
    whole = load_model(train(config)).weights
    Path("tiny.safetensors").unlink()
    other = '[[data]]\nraw = "raw.tif"\nids = "ids.tif"\ntune = [10, 14]\n[model]'
    config.write_text(CONFIG.replace("tune = [10, 14]\n", "").replace("[model]", other))
    again = load_model(train(config)).weights
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
