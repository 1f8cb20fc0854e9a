"""Test runs with networks from other tools: the labels of emseg's own network, and the guarantees of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zarr
from click.testing import CliRunner
from foreign import Bare, Padded, save_exported, save_onnx, save_package, state, tile_of
from onnx.external_data_helper import convert_model_to_external_data
from runs import PLANAR, assert_same_labels, bytes_of, one_pass, save_random_model, save_volume, shards, texture
from structured import Resized
from torch import nn

import emseg_core.model.model_place
import emseg_core.model.receptive_field
from emseg import segment
from emseg.cli import cli
from emseg.flows.repair import repair
from emseg.flows.verify import verify
from emseg.runs.events import Event, Noticed
from emseg_core.errors import InputError

SHAPE = (6, 61, 77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, and one network in all formats."""
    folder = tmp_path_factory.mktemp("inputs")
    save_volume(folder / "v.zarr", texture(SHAPE))
    save_random_model(folder / "native.safetensors", PLANAR)
    network = Bare(PLANAR)
    state(save_exported(folder / "exported.pt2", network, tile_of(PLANAR)))
    one = state(save_onnx(folder / "n.onnx", network, tile_of(PLANAR)))
    save_package(folder / "package.zip", {"n.onnx": one.read_bytes()}, weights={"onnx": {"source": "n.onnx"}})
    state(save_exported(folder / "padded.pt2", Padded(), (1, 1, 32, 32)))
    return folder


def labels(output: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(output / "labels" / "classes" / "0", mode="r")[...])


@pytest.mark.parametrize("name", ["exported.pt2", "n.onnx", "package.zip"])
def test_labels_are_those_of_the_native_network(folder: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "o.zarr"
    assert segment(folder / "v.zarr", output, model=folder / name, workers=0).exit_code == 0
    assert_same_labels(labels(output), one_pass(texture(SHAPE), folder / "native.safetensors"))
    assert verify(output, boxes=3).holds


def test_workers_and_repairs_do_not_experiment_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of the experiments are in the recipe. A network with padding gives the same bytes wherever its tiles are."""
    output = tmp_path / "o.zarr"
    asked: dict[str, Any] = {"model": folder / "padded.pt2", "tile": (1, 40, 40)}
    assert segment(folder / "v.zarr", output, workers=2, **asked).exit_code == 0
    monkeypatch.setattr(emseg_core.model.model_place, "contract_of", None)
    monkeypatch.setattr(emseg_core.model.receptive_field, "probe", None)
    sound = bytes_of(output)
    shards(output)[0].unlink()
    assert repair(output, workers=0).holds
    shards(output)[1].unlink()
    assert segment(folder / "v.zarr", output, workers=0, **asked).done == 1
    assert bytes_of(output) == sound
    assert verify(output, boxes=4).holds


def test_a_network_that_sees_whole_tiles_runs_and_is_told_of(folder: Path, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1))
    state(save_exported(tmp_path / "n.pt2", network, (1, 1, 32, 32)))
    told: list[Event] = []
    report = segment(folder / "v.zarr", tmp_path / "o.zarr", model=tmp_path / "n.pt2", workers=0, on_event=told.append)
    assert report.exit_code == 0
    notes = [event.message for event in told if isinstance(event, Noticed)]
    assert any("labels depend on tiles, and may have seams" in note for note in notes), notes


def test_a_network_for_tiles_of_one_size_runs_on_these(folder: Path, tmp_path: Path) -> None:
    """Labels do not depend on where these tiles are."""
    save_exported(tmp_path / "n.pt2", Resized(), (1, 1, 32, 32), fixed=True)
    tmp_path.joinpath("n.pt2.toml").write_text('activation = "logits"\n')
    assert segment(folder / "v.zarr", tmp_path / "o.zarr", model=tmp_path / "n.pt2", workers=0).exit_code == 0
    recipe = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())["attributes"]["emseg"]["recipe"]
    assert "[1, 32, 32]" in json.dumps(recipe)
    assert verify(tmp_path / "o.zarr", boxes=3).holds


def test_a_context_that_is_told_is_used_with_a_note(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "n.pt2").write_bytes((folder / "padded.pt2").read_bytes())
    (tmp_path / "n.pt2.toml").write_text('context = [0, 1, 1]\nactivation = "logits"\n')
    told: list[Event] = []
    report = segment(folder / "v.zarr", tmp_path / "o.zarr", model=tmp_path / "n.pt2", workers=0, on_event=told.append)
    assert report.exit_code == 0
    notes = [event.message for event in told if isinstance(event, Noticed)]
    assert any("because of the context, which is told; the network sees 5 voxels" in note for note in notes), notes


def test_intensities_are_taken_as_the_network_wants_them(folder: Path, tmp_path: Path) -> None:
    """A stated mean and deviation are used, unless the user gives others."""
    path = tmp_path / "n.pt2"
    path.write_bytes((folder / "padded.pt2").read_bytes())
    state(path, "mean = 10.0", "deviation = 51", 'classes = ["inside", "edge"]', 'activation = "logits"')
    for name, asked in (("told", None), ("asked", "volume")):
        assert segment(folder / "v.zarr", tmp_path / name, model=path, workers=0, normalise=asked).exit_code == 0  # type: ignore[arg-type]
    recipes = [json.loads((tmp_path / name / "zarr.json").read_text())["attributes"]["emseg"] for name in ("told", "asked")]
    assert recipes[0]["recipe"]["normalisation"] == {"scope": "volume", "mean": [10.0], "deviation": [51.0]}
    assert recipes[1]["recipe"]["normalisation"]["mean"] != [10.0]
    assert recipes[0]["output"]["classes"] == ["inside", "edge"]


def test_what_was_found_out_is_shown(folder: Path) -> None:
    def shown(*words: Any) -> str:
        result = CliRunner().invoke(cli, ["models", "show", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    padded = shown(folder / "padded.pt2")
    assert "classes class 0, class 1, logits" in padded
    assert "padding: affects 0 x 5 x 5 voxels on each side of the output, which are cropped" in padded
    assert "exact: found by arithmetic on the operations of the network, and confirmed by experiment" in padded
    assert "padding" not in shown(folder / "n.onnx")
    assert json.loads(shown(folder / "n.onnx", "--json")).popitem()[1]["spec"]["contract"]["context"] == [
        0,
        *PLANAR.context[1:],
    ]


# -- intensities, outputs and weights of others -------------------------------------------------------------------------


def recipe_of(output: Path) -> Any:
    return json.loads((output / "zarr.json").read_text())["attributes"]["emseg"]["recipe"]


def test_what_a_package_does_to_intensities_is_done(folder: Path, tmp_path: Path) -> None:
    """Percentiles of the whole volume become 0 and 1; what follows is a part of the network."""
    steps = [
        {"id": "scale_range", "kwargs": {"min_percentile": 2.0, "max_percentile": 98.0, "axes": ["y", "x"]}},
        {"id": "scale_linear", "kwargs": {"gain": 4.0, "offset": -2.0}},
        {"id": "clip", "kwargs": {"min": -1.5, "max": 1.5}},
    ]
    package = save_package(
        tmp_path / "p.zip",
        {"n.onnx": (folder / "n.onnx").read_bytes()},
        weights={"onnx": {"source": "n.onnx"}},
        inputs=[{"id": "raw", "preprocessing": steps}],
    )
    output = tmp_path / "o.zarr"
    assert segment(folder / "v.zarr", output, model=package, workers=0).exit_code == 0
    values = texture(SHAPE)
    low, high = np.percentile(values, (2, 98))
    assert recipe_of(output)["normalisation"] == {"scope": "volume", "mean": [low], "deviation": [high - low + 1e-6]}
    seen = np.clip(4 * (values - low) / (high - low + 1e-6) - 2, -1.5, 1.5).astype(np.float32)
    save_volume(tmp_path / "seen.zarr", seen)
    state(tmp_path / "same.onnx", 'activation = "logits"', "mean = 0.0", "deviation = 1.0")
    (tmp_path / "same.onnx").write_bytes((folder / "n.onnx").read_bytes())
    assert segment(tmp_path / "seen.zarr", tmp_path / "s.zarr", model=tmp_path / "same.onnx", workers=0).exit_code == 0
    assert (labels(output) != labels(tmp_path / "s.zarr")).mean() < 1e-3  # float32 rounds in another order
    assert len(np.unique(labels(output))) == 2
    assert verify(output, boxes=3).holds
    with pytest.raises(InputError, match="would feed the model other intensities than its rescale and clip is meant for"):
        segment(folder / "v.zarr", tmp_path / "x.zarr", model=package, workers=0, normalise="slice")


def test_a_run_with_stated_intensities_is_repaired_and_continued(folder: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "n.pt2", tmp_path / "o.zarr"
    path.write_bytes((folder / "padded.pt2").read_bytes())
    state(path, "mean = 100.0", "deviation = 51.0", 'activation = "logits"')
    assert segment(folder / "v.zarr", output, model=path, workers=0, tile=(1, 40, 40)).exit_code == 0
    sound = bytes_of(output)
    shards(output)[0].unlink()
    assert repair(output, workers=0).holds
    assert bytes_of(output) == sound


def test_what_an_output_is_taken_for_is_said(folder: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    segment(folder / "v.zarr", tmp_path / "o.zarr", model=folder / "padded.pt2", workers=0, on_event=told.append)
    wanted = "the output of the network is taken for: logits, stated in padded.pt2.toml"
    assert wanted in [event.message for event in told if isinstance(event, Noticed)]
    shown = CliRunner().invoke(cli, ["models", "show", str(folder / "padded.pt2")]).output
    assert "output: logits, stated in padded.pt2.toml" in shown


def test_workers_read_weights_from_beside_the_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes in other folders, where a file of the same name has other weights, give the same labels."""
    network, other = tmp_path / "models" / "n.onnx", tmp_path / "other"
    for place in (network.parent, other):
        place.mkdir()
    model = onnx.load(folder / "n.onnx")
    convert_model_to_external_data(model, location="n.onnx.data", size_threshold=0)
    onnx.save(model, state(network))
    (other / "n.onnx.data").write_bytes(bytes(network.with_name("n.onnx.data").stat().st_size))
    assert segment(folder / "v.zarr", tmp_path / "one", model=folder / "n.onnx", workers=0).exit_code == 0
    monkeypatch.chdir(other)
    asked: dict[str, Any] = {"model": Path("..") / "models" / "n.onnx", "workers": 1}
    assert segment(folder / "v.zarr", tmp_path / "two", **asked).exit_code == 0
    np.testing.assert_array_equal(labels(tmp_path / "two"), labels(tmp_path / "one"))
    data = network.with_name("n.onnx.data")
    data.write_bytes(data.read_bytes()[:-4] + bytes(4))
    with pytest.raises(InputError, match="model"):
        segment(folder / "v.zarr", tmp_path / "two", **asked)


def test_packages_are_checked_on_the_command_line(tmp_path: Path) -> None:
    def checked(*words: str) -> Any:
        return CliRunner().invoke(cli, ["models", "check", *words])

    raw = np.random.default_rng(3).integers(0, 255, (1, 1, 32, 40)).astype(np.float32)
    network, files = Padded(), {}
    with torch.inference_mode():
        wanted = torch.softmax(network(torch.from_numpy((raw - raw.mean()) / raw.std())), 1).numpy()
    one = save_onnx(tmp_path / "w.onnx", network, (1, 1, 32, 32))
    for name, array in (("in.npy", raw), ("out.npy", wanted)):
        np.save(tmp_path / name, array)
        files[name] = (tmp_path / name).read_bytes()
    inputs = [{"id": "raw", "preprocessing": [{"id": "zero_mean_unit_variance"}], "test_tensor": {"source": "in.npy"}}]
    outputs = [{"id": "out", "postprocessing": [{"id": "softmax"}], "test_tensor": {"source": "out.npy"}}]
    described: dict[str, Any] = {"weights": {"onnx": {"source": "w.onnx"}}, "inputs": inputs, "outputs": outputs}
    package = save_package(tmp_path / "p.zip", {"w.onnx": one.read_bytes(), **files}, **described)
    good = checked(str(package))
    assert (good.exit_code, good.output.count("\n")) == (0, 1)
    assert good.output.startswith("output out: the same, largest difference")
    del inputs[0]["preprocessing"]
    package = save_package(tmp_path / "p.zip", {"w.onnx": one.read_bytes(), **files}, **described)
    bad = checked(str(package), "--json")
    assert bad.exit_code == 1
    assert not json.loads(bad.output)["holds"]
