"""Test that a run uses the lowest precision that is accurate enough and supported, and keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import save_exported, save_onnx
from runs import CUBIC, PLANAR, bytes_of, save_random_model, save_volume, shards, texture
from torch import Tensor, nn

from emseg.flows.records.run_log import recipe_of
from emseg.flows.running import draft
from emseg.flows.segment import segment
from emseg.flows.verify import FLOAT32_TOLERANCE, verify
from emseg.runs.events import Event, Noticed
from emseg.tasks import trial
from emseg_core.errors import DeviceError, OutputError
from emseg_core.grid.cost import cost_of
from emseg_core.model import backend
from emseg_core.specs.numerics import Backend
from emseg_core.store.outputs.lifecycle import open_output

AFFINITIES = """
[[heads]]
name = "affinities"
kind = "affinities"
activation = "sigmoid logits"
offsets = [[0, 0, -1], [0, -1, 0], [0, 0, -4]]
anchor = "source"
"""
CLASSES = 'classes = ["a", "b", "c"]\nactivation = "logits"\n'
LOW = backend.low_precisions("cpu")
needs_low = pytest.mark.skipif(not LOW, reason="this CPU has no arithmetic in a low precision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume and two models."""
    folder = tmp_path_factory.mktemp("precision")
    save_volume(folder / "volume.zarr", texture((9, 61, 67)))
    save_random_model(folder / "planar", PLANAR)
    save_random_model(folder / "cubic", CUBIC)
    return folder


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try low precision for small runs, too."""
    monkeypatch.setattr(draft, "LEAST_TRIAL_FLOPS", 0)


def told(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Noticed)]


def test_small_runs_compute_in_float32(folder: Path, tmp_path: Path) -> None:
    segment(folder / "volume.zarr", tmp_path / "out", model=folder / "planar", workers=0)
    recipe = recipe_of(open_output(tmp_path / "out"))
    assert recipe.numerics.precision == "float32"
    assert recipe.accuracy is None


@needs_low
@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize("library", ["torch", "openvino"])
@pytest.mark.parametrize("model", ["planar", "cubic"])
def test_a_low_precision_that_is_good_enough(
    model: str, library: Backend, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored with its accuracy, later runs and verify use it, and tiling has no effect in it either."""
    monkeypatch.setattr(trial, "MIN_AGREEMENT", 0.9)
    events: list[Event] = []
    settings = {"model": folder / model, "backend": library, "probabilities": True}
    segment(folder / "volume.zarr", tmp_path / "out", workers=0, on_event=events.append, **settings)  # type: ignore[arg-type]
    recipe = recipe_of(open_output(tmp_path / "out"))
    assert recipe.numerics.precision == LOW[0]
    assert recipe.accuracy is not None
    assert 0.9 <= recipe.accuracy.agreement <= 1
    assert 0 < recipe.accuracy.largest_difference < 0.2
    assert f"computing in {LOW[0]}: {recipe.accuracy}" in told(events)

    verdict = verify(tmp_path / "out", boxes=4)
    assert verdict.holds
    assert verdict.tolerance == max(FLOAT32_TOLERANCE, 2 * recipe.accuracy.largest_difference)
    assert verdict.largest_difference < 0.1 * verdict.tolerance, "tiles are seen"

    whole = bytes_of(tmp_path / "out")
    shards(tmp_path / "out")[0].unlink()
    monkeypatch.setattr(trial, "MIN_AGREEMENT", 1.1)  # the first choice is kept
    report = segment(folder / "volume.zarr", tmp_path / "out", model=folder / model, probabilities=True, workers=0)
    assert report.exit_code == 0
    assert bytes_of(tmp_path / "out") == whole
    shards(tmp_path / "out")[0].unlink()
    with pytest.raises(OutputError, match=f'numerics.precision was "{LOW[0]}", now "float32"'):
        segment(folder / "volume.zarr", tmp_path / "out", precision="float32", workers=0, **settings)  # type: ignore[arg-type]


@needs_low
@pytest.mark.usefixtures("tried")
def test_a_region_is_computed_as_the_whole_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It uses the accuracy of the whole volume, even if the region is small."""
    monkeypatch.setattr(trial, "MIN_AGREEMENT", 0.9)
    volume, model, region = folder / "volume.zarr", folder / "planar", "2:5,8:40,16:60"
    segment(volume, tmp_path / "whole", model=model, workers=0)
    whole = recipe_of(open_output(tmp_path / "whole"))
    monkeypatch.setattr(draft, "LEAST_TRIAL_FLOPS", int(0.5 * cost_of(whole.plan, whole.volume, False).flops))
    segment(volume, tmp_path / "part", model=model, roi=region, workers=0)
    part = recipe_of(open_output(tmp_path / "part"))
    assert (part.numerics.precision, part.accuracy) == (LOW[0], whole.accuracy)
    labels = [open_output(tmp_path / name).read_labels(part.plan.region) for name in ("whole", "part")]
    np.testing.assert_array_equal(labels[0], labels[1])


@needs_low
@pytest.mark.usefixtures("tried")
def test_a_low_precision_that_is_not_good_enough(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used only if requested."""
    monkeypatch.setattr(trial, "MIN_AGREEMENT", 1.1)
    events: list[Event] = []
    segment(folder / "volume.zarr", tmp_path / "auto", model=folder / "planar", workers=0, on_event=events.append)
    assert recipe_of(open_output(tmp_path / "auto")).numerics.precision == "float32"
    assert any(f"to use it anyway, give --precision {LOW[0]}" in message for message in told(events))
    asked = {"model": folder / "planar", "precision": LOW[0]}
    segment(folder / "volume.zarr", tmp_path / "asked", workers=0, **asked)  # type: ignore[arg-type]
    recipe = recipe_of(open_output(tmp_path / "asked"))
    assert recipe.numerics.precision == LOW[0]
    assert recipe.accuracy is not None


class Planar(nn.Module):
    """A 2-D network with batch normalisation, which converts types by itself, as networks of others do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return three channels."""
        output: Tensor = self.inner(x).to(torch.float32) + torch.ones_like(x, dtype=torch.float32)
        return output


@needs_low
@pytest.mark.usefixtures("tried")
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "heads", ['classes = ["a", "b", "c"]\nactivation = "logits"', AFFINITIES], ids=["classes", "affinities"]
)
def test_networks_of_others_compute_in_a_low_precision(
    kind: str, heads: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If that is accurate enough for their heads, and never without a word."""
    monkeypatch.setattr(trial, "MIN_AGREEMENT", 0.9)
    model = tmp_path / f"theirs.{kind}"
    (save_onnx if kind == "onnx" else save_exported)(model, Planar(), (1, 1, 48, 48))
    model.with_name(f"{model.name}.toml").write_text(heads)
    events: list[Event] = []
    for name, precision in (("exact", "float32"), ("low", None)):
        settings = {"model": model, "precision": precision}
        report = segment(folder / "volume.zarr", tmp_path / name, workers=0, on_event=events.append, **settings)  # type: ignore[arg-type]
        assert report.exit_code == 0
    recipe = recipe_of(open_output(tmp_path / "low"))
    assert recipe.numerics.precision == LOW[0]
    assert recipe.accuracy is not None
    assert 0 < recipe.accuracy.largest_difference < 0.1
    assert f"computing in {LOW[0]}: {recipe.accuracy}" in told(events)
    assert verify(tmp_path / "low", boxes=3).holds
    exact, low = (open_output(tmp_path / name) for name in ("exact", "low"))
    image = low.images[-1].name
    first, second = (output.read(image, recipe.plan.region) for output in (exact, low))
    assert (first == second).mean() > 0.8


@needs_low
def test_workers_compute_in_the_precision_of_the_run(folder: Path, tmp_path: Path) -> None:
    asked = {"model": folder / "cubic", "precision": LOW[0]}
    for name, workers in (("here", 0), ("dask", 2)):
        assert segment(folder / "volume.zarr", tmp_path / name, workers=workers, **asked).exit_code == 0  # type: ignore[arg-type]
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "dask")


def test_a_precision_that_the_hardware_has_not(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="in float16, but the CPU here is fast only in float32"):
        segment(folder / "volume.zarr", tmp_path / "out", model=folder / "planar", precision="float16", workers=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_said_before_its_precisions_are_asked_for(folder: Path, tmp_path: Path) -> None:
    segment(folder / "volume.zarr", tmp_path / "out", model=folder / "planar", workers=0)
    with pytest.raises(DeviceError, match=r"should run on cuda, but torch .* here: install torch for CUDA"):
        verify(tmp_path / "out", device="cuda")


@needs_low
def test_an_output_in_a_low_precision_is_proved_on_hardware_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They agree in float32, within the bound."""
    asked = {"model": folder / "planar", "precision": LOW[0]}
    segment(folder / "volume.zarr", tmp_path / "out", workers=0, **asked)  # type: ignore[arg-type]
    monkeypatch.setattr("emseg.flows.verify.low_precisions", lambda device: ())
    verdict = verify(tmp_path / "out", boxes=4)
    assert verdict.holds
    assert not verdict.same_numerics
    assert np.isfinite(verdict.largest_difference)
