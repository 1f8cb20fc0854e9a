"""Test runs of several models whose predictions are averaged: the mean of their single runs, in every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import save_exported, save_onnx
from numpy.typing import NDArray
from runs import (
    assert_same_labels,
    assert_same_probabilities,
    bytes_of,
    one_pass,
    run_emseg,
    save_random_model,
    save_volume,
    shards,
    texture,
)
from torch import Tensor, nn

import emseg
from emseg import segment, status, verify
from emseg.flows.records.run_log import recipe_of
from emseg.flows.repair import repair, verify_checksums
from emseg.settings.run import RunSettings
from emseg.settings.toml import to_toml
from emseg_core.errors import InputError, ModelError, OutputError
from emseg_core.specs.model import ModelSpec
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (7, 60, 52)
VALUES = texture(SHAPE)
CLASSES = ("inside", "membrane")
PLANAR = ModelSpec.unet(width=3, depth=1, classes=CLASSES)
CUBIC = ModelSpec(3, 1, CLASSES, ((3, 3, 3), (1, 1, 1)), ((2, 2, 2),))
BESIDE = 'classes = ["inside", "membrane"]\nactivation = "logits"\nmean = 100.0\ndeviation = 40.0\n'


class Foreign(nn.Module):
    """A 2-D network that gives logits of two classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 5), nn.ReLU(), nn.Conv2d(5, 2, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        logits: Tensor = self.body(tiles)
        return 4 * logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, four models, and an output of the mean of two of them."""
    folder = tmp_path_factory.mktemp("ensembles")
    save_volume(folder / "volume.zarr", VALUES)
    save_random_model(folder / "a.safetensors", PLANAR, 3)
    save_random_model(folder / "b.safetensors", CUBIC, 4, {"normalise": "slice"})
    for path in (
        save_exported(folder / "c.pt2", Foreign().eval(), (1, 1, 32, 32)),
        save_onnx(folder / "d.onnx", Foreign().eval(), (1, 1, 32, 32)),
    ):
        path.with_name(f"{path.name}.toml").write_text(BESIDE)
    run(folder, folder / "out.zarr")
    return folder


def run(folder: Path, output: Path, *names: str, **options: Any) -> dict[str, str]:
    """Run two native models, or others, and return the bytes of the output."""
    models = [folder / name for name in names or ("a.safetensors", "b.safetensors")]
    settings = {"workers": 0, "probabilities": True, "precision": "float32", **options}
    report = segment(folder / "volume.zarr", output, model=models, **settings)
    assert (report.exit_code, report.left) == (0, 0)
    return bytes_of(output)


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output."""
    return Path(shutil.copytree(folder / "out.zarr", tmp_path / "out.zarr"))


def of_member(folder: Path, name: str) -> NDArray[np.float32]:
    """Return the probabilities of a model for the whole volume as one tile, normalised as this model wants it."""
    if not name.startswith(("c", "d")):
        return one_pass(VALUES, folder / name, per_slice=name.startswith("b"))
    padded = np.pad((VALUES.astype(np.float32) - 100) / 40, [(0, 0), (3, 3), (3, 3)], mode="reflect")
    with torch.inference_mode():
        shares = Foreign().eval()(torch.from_numpy(padded)[:, None]).softmax(1).numpy()
    return np.ascontiguousarray(shares.swapaxes(0, 1))


@pytest.mark.parametrize(
    "names",
    [
        ("a.safetensors", "b.safetensors"),
        ("a.safetensors", "c.pt2"),
        ("d.onnx", "c.pt2"),
        ("c.pt2", "b.safetensors", "d.onnx"),
    ],
    ids="+".join,
)
def test_it_is_the_mean_of_one_pass_of_each_model(names: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "o.zarr", *names)
    truth = np.mean([of_member(folder, name) for name in names], axis=0)
    stored = open_output(tmp_path / "o.zarr")
    assert_same_labels(stored.read_labels(stored.region), truth)
    assert_same_probabilities(stored.read("probabilities", stored.region), truth)
    assert verify(tmp_path / "o.zarr", boxes=3).holds


def test_two_workers_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "o.zarr", workers=2) == bytes_of(folder / "out.zarr")


def test_a_model_with_itself_is_that_model(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "twice.zarr", "a.safetensors", "a.safetensors")
    run(folder, tmp_path / "once.zarr", "a.safetensors")
    twice, once = (open_output(tmp_path / name) for name in ("twice.zarr", "once.zarr"))
    np.testing.assert_array_equal(twice.read_labels(twice.region), once.read_labels(once.region))


def test_a_list_of_one_is_that_model(folder: Path, tmp_path: Path) -> None:
    one = run(folder, tmp_path / "list.zarr", "a.safetensors")
    segment(
        folder / "volume.zarr", tmp_path / "o.zarr", model=folder / "a.safetensors", workers=0, probabilities=True,
        precision="float32",
    )  # fmt: skip
    assert one == bytes_of(tmp_path / "o.zarr")
    recipe = json.dumps(recipe_of(open_output(tmp_path / "o.zarr")).to_json())
    assert "ensemble" not in recipe
    assert "others" not in recipe


def test_an_interrupted_run_goes_on(folder: Path, output: Path, tmp_path: Path) -> None:
    for shard in shards(output)[::2]:
        shard.unlink()
    assert run(folder, output) == bytes_of(folder / "out.zarr")


def test_the_order_and_the_members_are_part_of_the_recipe(folder: Path, output: Path) -> None:
    for names in (("b.safetensors", "a.safetensors"), ("a.safetensors",), ("a.safetensors", "c.pt2")):
        with pytest.raises(OutputError, match="model_digest was"):
            run(folder, output, *names)


def test_damage_is_found_and_repaired(folder: Path, output: Path) -> None:
    shards(output)[0].write_bytes(b"damaged")
    assert not verify_checksums(output).holds
    assert repair(output, workers=0).holds
    assert bytes_of(output) == bytes_of(folder / "out.zarr")


def test_moved_models_are_asked_for(folder: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    save_volume(tmp_path / "volume.zarr", VALUES)
    run(tmp_path, tmp_path / "o.zarr")
    (tmp_path / "b.safetensors").rename(tmp_path / "moved.safetensors")
    with pytest.raises(OutputError, match=r"the model of .* was .*b.safetensors, which no longer exists"):
        verify(tmp_path / "o.zarr", boxes=1)
    models = tmp_path / "a.safetensors", tmp_path / "moved.safetensors"
    assert verify(tmp_path / "o.zarr", boxes=2, model=models).holds
    for given in (models[0], models[::-1], (*models, models[0])):
        with pytest.raises(ModelError, match="give"):
            verify(tmp_path / "o.zarr", boxes=1, model=given)


def test_augmentation_is_around_the_ensemble(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "o.zarr", "a.safetensors", "b.safetensors", tta=True)
    truth = np.mean([one_pass(VALUES, folder / "a.safetensors", tta=True),
                     one_pass(VALUES, folder / "b.safetensors", tta=True, per_slice=True)], axis=0)  # fmt: skip
    stored = open_output(tmp_path / "o.zarr")
    assert_same_labels(stored.read_labels(stored.region), truth)


def test_everything_that_shows_an_output_names_all_models(folder: Path, output: Path) -> None:
    assert "a.safetensors + " in str(status(output))
    page = emseg.report(output).read_text()
    assert "ensemble of 2" in page
    assert "for each model: once per volume" in page


def test_commands_take_the_option_several_times(folder: Path, tmp_path: Path) -> None:
    models = [word for name in ("a.safetensors", "b.safetensors") for word in ("--model", str(folder / name))]
    volume, out = str(folder / "volume.zarr"), str(tmp_path / "o.zarr")
    common = ("--probabilities", *models)
    planned = json.loads(run_emseg("plan", volume, *common, "--json").stdout)
    assert len(planned["plan"]["model"]["ensemble"]) == 2
    assert not run_emseg("run", volume, "-o", out, *common, "--precision", "float32", "--workers", "0").returncode
    assert bytes_of(Path(out)) == bytes_of(folder / "out.zarr")
    settings = tmp_path / "settings.toml"
    asked = RunSettings(model=[*map(Path, models[1::2])], probabilities=True, precision="float32")
    settings.write_text(to_toml(asked.to_table()))
    assert not run_emseg(
        "run", volume, "-o", str(tmp_path / "p.zarr"), "--settings", str(settings), "--workers", "0"
    ).returncode
    assert bytes_of(tmp_path / "p.zarr") == bytes_of(folder / "out.zarr")
    settings.write_text(f'model = "{folder / "a.safetensors"}"\n')
    assert not run_emseg(
        "run", volume, "-o", str(tmp_path / "q.zarr"), "--settings", str(settings), "--workers", "0"
    ).returncode
    assert "ensemble" not in recipe_of(open_output(tmp_path / "q.zarr")).plan.model.to_json()
    assert not run_emseg("verify", out, "--boxes", "1", *models).returncode
    shown = json.loads(run_emseg("models", "show", *models[1::2], "--json").stdout)
    assert list(shown) == [*models[1::2], "ensemble"]


def test_models_that_disagree_are_refused(folder: Path, tmp_path: Path) -> None:
    other = save_random_model(tmp_path / "other.safetensors", ModelSpec.unet(width=3, depth=1, classes=("inside", "er")))
    with pytest.raises(ModelError, match=r"model 1 has .*membrane.*, but model 2 has .*er"):
        segment(folder / "volume.zarr", tmp_path / "o.zarr", model=[folder / "a.safetensors", other], workers=0)
    sizes = [save_random_model(tmp_path / f"{n}.safetensors", PLANAR, n, {"voxel_size": f"{n} 8 8 nanometer"}) for n in (8, 30)]
    with pytest.raises(ModelError, match=r"model 1 was trained on voxels of 8 8 8 .*, model 2 on voxels of 30 8 8"):
        segment(folder / "volume.zarr", tmp_path / "o.zarr", model=sizes, workers=0)
    with pytest.raises(InputError, match="predictor"):
        segment(folder / "volume.zarr", tmp_path / "o.zarr", model=sizes, predictor="detectors:Dark", workers=0)
    assert not (tmp_path / "o.zarr").exists()


class Heads(nn.Module):
    """A 2-D network whose channels mean what the file beside it says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        values: Tensor = self.body(tiles)
        return values


NEAR = """
[[heads]]
name = "near"
kind = "affinities"
channels = [{0}, {1}]
activation = "sigmoid logits"
offsets = [[0, 0, -1], [0, -1, 0]]
"""
MITO = """
[[heads]]
name = "organelles"
kind = "independent"
channels = [{0}]
names = ["mito"]
activation = "{1}"
threshold = 0.5
"""
FAR = """
[[heads]]
name = "distances"
kind = "values"
channels = [{0}]
"""


def save_heads(folder: Path, seed: int, tables: str) -> Path:
    """Save a network with the meaning of its channels beside it."""
    path = save_exported(folder / f"{seed}.pt2", Heads(seed).eval(), (1, 1, 32, 32))
    path.with_name(f"{path.name}.toml").write_text(tables)
    return path


def test_heads_of_all_kinds_are_averaged(folder: Path, tmp_path: Path) -> None:
    """Also where the members have them in another order, and other activations."""
    models = [
        save_heads(tmp_path, 1, NEAR.format(0, 1) + MITO.format(2, "sigmoid logits") + FAR.format(3)),
        save_heads(tmp_path, 2, FAR.format(0) + MITO.format(1, "sigmoid logits") + NEAR.format(2, 3)),
    ]
    assert segment(folder / "volume.zarr", tmp_path / "o.zarr", model=models, workers=0, probabilities=True).exit_code == 0
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    padded = torch.from_numpy(np.pad(normalised, [(0, 0), (1, 1), (1, 1)], mode="reflect")[:, None])
    with torch.inference_mode():
        first, second = (Heads(seed).eval()(padded).swapaxes(0, 1) for seed in (1, 2))
    stored = open_output(tmp_path / "o.zarr")
    for image, mine, theirs in (("near", [0, 1], [2, 3]), ("organelles", [2], [1])):
        truth = (first[mine].sigmoid() + second[theirs].sigmoid()).numpy() / 2
        assert_same_probabilities(stored.read(image, stored.region), truth)
    far = (first[[3]] + second[[0]]).numpy() / 2
    np.testing.assert_allclose(stored.read("distances", stored.region), far, rtol=2e-3, atol=2e-3)
    assert verify(tmp_path / "o.zarr", boxes=3).holds


def test_a_mean_does_not_hide_what_is_no_probability(folder: Path, tmp_path: Path) -> None:
    models = [save_heads(tmp_path, seed, MITO.format(2, said)) for seed, said in ((1, "sigmoid logits"), (2, "sigmoid"))]
    report = segment(folder / "volume.zarr", tmp_path / "o.zarr", model=models, workers=0)
    assert report.exit_code == 3
    assert "is said to give probabilities, but gives" in str(report.failures[0])
