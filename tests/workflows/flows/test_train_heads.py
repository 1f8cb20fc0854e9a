"""Test trainings of independent classes and affinities, from a configuration to what a run stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from runs import save_volume
from trainings import TOGETHER, save_training

from emseg.flows.segment import segment
from emseg.flows.train import train
from emseg_core.errors import InputError
from emseg_core.grid.stitch import quantise
from emseg_core.model.file import load_model
from emseg_core.specs.numerics import Backend
from emseg_core.training.spec import Progress
from emseg_core.training.validate import predict

LABELS = TOGETHER.replace(
    'ids = "ids.tif"', 'labels = "ids.tif"\nvalues = { low = [1, 2], even = [2, 4, 6], background = [3, 5] }'
)
INDEPENDENT = LABELS.replace(
    "[fit]", '[model.head]\nname = "parts"\nkind = "independent"\nclasses = ["low", "even"]\nthreshold = 0.4\n[fit]'
)
AFFINITIES = TOGETHER.replace(
    "[fit]", '[model.head]\nname = "edges"\nkind = "affinities"\noffsets = [[0, 0, -1], [-1, 2, 0]]\n[fit]'
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EMSEG_DATA", raising=False)


def configured(text: str) -> Path:
    """Save a configuration, with ids from 1 to 7."""
    path = save_training(text, depth=14)
    assert {*np.unique(tifffile.imread("ids.tif"))} <= set(range(1, 8))
    return path


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("text", [INDEPENDENT, AFFINITIES], ids=["independent", "affinities"])
def test_a_run_stores_the_heads_of_a_training(text: str, backend: Backend) -> None:
    model = load_model(train(configured(text.replace("even = [2, 4, 6]", "even = [2, 4, 6, 7]"))))
    raw = tifffile.imread("raw.tif")
    volume = save_volume(Path("raw.zarr"), raw)
    report = segment(volume, "out.zarr", model="tiny.safetensors", workers=0, backend=backend, precision="float32")
    assert (report.exit_code, report.left) == (0, 0)
    network = model.network()
    normalised = (raw.astype(np.float32) - np.float32(raw.mean())) / np.float32(raw.std())
    expected = 1 / (1 + np.exp(-predict(network, normalised, (16, 32, 32)).astype(np.float64)))
    assert expected.std() > 0.001
    if "parts" in text:
        for name, channel in zip(("low", "even"), expected, strict=True):
            stored = np.asarray(zarr.open_array(f"out.zarr/labels/{name}/0", mode="r")[:])
            clear = abs(channel - 0.4) > 1e-4
            assert np.array_equal(stored[clear], (channel >= 0.4)[clear])
        assert "each class at its threshold (0.4, 0.4)" in model.card["scores"]
        assert "low F1" in model.card["scores"]
    else:
        stored = np.asarray(zarr.open_array("out.zarr/edges/0", mode="r")[:])
        assert np.abs(stored.astype(int) - quantise(expected.astype(np.float32)).astype(int)).max() <= 1
        assert "-1 2 0 F1" in model.card["scores"]
        assert "accuracy" in model.card["scores"]
    assert "binary cross-entropy" in model.card["training"]
    assert "class weights" not in model.card["training"]


@pytest.mark.parametrize("text", [INDEPENDENT, AFFINITIES], ids=["independent", "affinities"])
def test_stopped_and_resumed_gives_the_same_file(text: str) -> None:
    config = configured(text.replace("even = [2, 4, 6]", "even = [2, 4, 6, 7]"))
    path = train(config)
    whole = path.read_bytes()
    path.unlink()

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, on_progress=stop)
    assert train(config, resume=True).read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (INDEPENDENT, "background = [3, 5]", "background = [3]", "values without a meaning, such as 5"),
        (INDEPENDENT, "low = [1, 2]", "low = [99]", "values without a meaning, such as 1"),
        (INDEPENDENT, "[1, 2], even", "[1, 2], rest = [1], even", "name rest"),
        (INDEPENDENT, "[1, 2], even = [2, 4, 6], background = [", "[99], even = [2, 4, 6], background = [1, ", "has no low"),
        (INDEPENDENT, "even = [2, 4, 6], ", "", "lack even"),
        (INDEPENDENT, "background", "beckground", "name beckground, but the classes are low, even"),
        (INDEPENDENT, "background = [3, 5]", "background = [2]", "the value 2 stands for background"),
        (INDEPENDENT, "[model]", "ignore = [2]\n[model]", "the value 2 stands for low"),
        (INDEPENDENT, "[model]", "background = [1]\n[model]", "has background"),
        (INDEPENDENT, "[fit]", "[fit]\nclass_weights = [1.0, 3.0]", "fit.class_weights is for classes that exclude"),
        (INDEPENDENT, "[fit]", '[fit]\naim = "segments"', "fit.aim is for classes that exclude"),
        (INDEPENDENT, "width = 2", 'width = 2\nclasses = ["a", "b"]', "both model.classes and model.head"),
        (INDEPENDENT, "threshold = 0.4", "threshold = 1.5", "give one between 0 and 1"),
        (INDEPENDENT, '"independent"', '"values"', "model.head.kind is 'values'"),
        (AFFINITIES, "[fit]", "[fit]\naffinity_weight = 1.0", "fit.affinity_weight is for classes that exclude"),
        (AFFINITIES, "[[0, 0, -1], [-1, 2, 0]]", "[]", "0 channels"),
        (AFFINITIES, "[-1, 2, 0]", "[0, 0, 0]", "other than 0 0 0"),
        (AFFINITIES, "offsets", 'classes = ["a"]\noffsets', "has classes, which only independent classes have"),
        (AFFINITIES, "offsets", "threshold = 0.5\noffsets", "has threshold, which only independent classes have"),
        (AFFINITIES, 'ids = "ids.tif"', 'labels = "ids.tif"\nvalues = { a = [1] }', "learnt from instance ids"),
        (AFFINITIES, "[model]", "background = [1]\nignore = [1]\n[model]", "the id 1 of ids.tif is both"),
        (AFFINITIES, "[model]", 'neighbours = "plane"\n[model]', "neighbours of ids.tif is for membrane"),
        (AFFINITIES, "[model]", "ignore = [1, 2, 3, 4, 5, 6, 7]\n[model]", "data.train has no edge in an object"),
        (AFFINITIES, "kernel = [3, 3, 3]\npooling = [2, 2, 2]", "kernel = [1, 3, 3]\npooling = [1, 2, 2]", "offsets along z"),
        (TOGETHER, "[model]", "background = [1]\n[model]", "is for affinities"),
    ],
)
def test_mistakes(text: str, old: str, new: str, message: str) -> None:
    assert text.count(old) == 1
    with pytest.raises(InputError) as caught:
        train(configured(text.replace(old, new)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("tiny.safetensors").exists()
