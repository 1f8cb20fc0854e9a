"""Test runs with networks from other tools: the labels of emseg's own network, and the guarantees of each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from foreign import Bare, Padded, save_exported, save_onnx, save_package, tile_of
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

SHAPE = (6, 61, 77)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, and one network in all formats."""
    folder = tmp_path_factory.mktemp("inputs")
    save_volume(folder / "v.zarr", texture(SHAPE))
    save_random_model(folder / "native.safetensors", PLANAR)
    network = Bare(PLANAR)
    save_exported(folder / "exported.pt2", network, tile_of(PLANAR))
    one = save_onnx(folder / "n.onnx", network, tile_of(PLANAR))
    save_package(folder / "package.zip", {"n.onnx": one.read_bytes()}, weights={"onnx": {"source": "n.onnx"}})
    save_exported(folder / "padded.pt2", Padded(), (1, 1, 32, 32))
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
    save_exported(tmp_path / "n.pt2", network, (1, 1, 32, 32))
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
    (tmp_path / "n.pt2.toml").write_text("context = [0, 1, 1]\n")
    told: list[Event] = []
    report = segment(folder / "v.zarr", tmp_path / "o.zarr", model=tmp_path / "n.pt2", workers=0, on_event=told.append)
    assert report.exit_code == 0
    notes = [event.message for event in told if isinstance(event, Noticed)]
    assert any("because of the context, which is told; the network sees 5 voxels" in note for note in notes), notes


def test_intensities_are_taken_as_the_network_wants_them(folder: Path, tmp_path: Path) -> None:
    """A stated mean and deviation are used, unless the user gives others."""
    path = tmp_path / "n.pt2"
    path.write_bytes((folder / "padded.pt2").read_bytes())
    path.with_name("n.pt2.toml").write_text('mean = 10.0\ndeviation = 51\nclasses = ["inside", "edge"]\n')
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
