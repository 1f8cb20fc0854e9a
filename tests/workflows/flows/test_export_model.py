"""Test networks written for other tools: taken back, they give the labels of the network that they were written from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from runs import PLANAR, save_random_model, save_volume, snapshot, texture

from emseg import segment
from emseg.cli import cli
from emseg_core.errors import InputError
from emseg_core.model.model_place import describe
from emseg_core.specs.model import ModelSpec

DEEP = ModelSpec(
    width=3, depth=1, classes=("inside", "membrane"), kernels=((1, 3, 3), (3, 3, 3)), pooling=((1, 2, 2),), dropout=0.0
)
CARD = {"name": "test: of\nexports", "voxel_size": "40 4 4 nm (z, y, x)"}
TARGETS = ["n.onnx", "n.pt2", "n.zip", "folder"]


def export(*words: object) -> Result:
    return CliRunner().invoke(cli, ["models", "export", *map(str, words)])


def refusal(*words: object) -> str:
    """Return why an export is refused."""
    result = export(*words)
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def labels(volume: Path, output: Path, model: Path) -> np.ndarray:
    assert segment(volume, output, model=model, workers=0, device="cpu").exit_code == 0
    return np.asarray(zarr.open_array(output / "labels" / "classes" / "0", mode="r")[...])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("spec", "scope"), [(PLANAR, "slice"), (DEEP, "volume"), (DEEP, "slice")])
def test_an_export_gives_the_labels_of_the_network(tmp_path: Path, target: str, spec: ModelSpec, scope: str) -> None:
    values = texture((14, 61, 77))
    values[7:] //= 3  # so that slices and the volume have other statistics
    save_volume(tmp_path / "v.zarr", values)
    native = save_random_model(tmp_path / "native.safetensors", spec, card={**CARD, "normalise": scope})
    made = export(native, tmp_path / target)
    assert made.exit_code == 0, made.output
    taken, card = describe(tmp_path / target)
    assert (taken.classes, taken.context, taken.lattice) == (spec.classes, spec.context, spec.lattice)
    assert (card.get("normalise"), card["voxel_size"]) == (scope, CARD["voxel_size"])
    wanted = labels(tmp_path / "v.zarr", tmp_path / "native.out.zarr", native)
    found = labels(tmp_path / "v.zarr", tmp_path / "taken.out.zarr", tmp_path / target)
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(found, wanted)
    if target in ("n.zip", "folder"):
        checked = CliRunner().invoke(cli, ["models", "check", str(tmp_path / target)])
        assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("target", TARGETS)
def test_an_existing_target_is_replaced_only_if_asked(tmp_path: Path, target: str) -> None:
    native = save_random_model(tmp_path / "native.safetensors", PLANAR, card={**CARD, "normalise": "slice"})
    other = save_random_model(tmp_path / "other.safetensors", PLANAR, seed=5)
    assert export(native, tmp_path / target).exit_code == 0
    before = snapshot(tmp_path)
    said = refusal(other, tmp_path / target)
    assert "exists already" in said
    assert "--overwrite" in said
    assert snapshot(tmp_path) == before
    assert export(other, tmp_path / target, "--overwrite").exit_code == 0
    beside = tmp_path / f"{target}.toml"
    assert "voxel_size" not in (tomllib.loads(beside.read_text()) if beside.exists() else {})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.endswith("unfinished")]


@pytest.mark.parametrize(
    ("target", "words"),
    [("n.pth", [".pth", ".onnx, .pt2, .zip"]), ("missing/n.onnx", ["cannot be written"]), ("missing/n", ["cannot be written"])],
)
def test_a_target_that_cannot_be_written_leaves_nothing(tmp_path: Path, target: str, words: list[str]) -> None:
    native = save_random_model(tmp_path / "native.safetensors", PLANAR)
    said = refusal(native, tmp_path / target)
    assert all(word in said for word in words), said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["native.safetensors"]


def test_a_folder_that_is_no_package_is_never_replaced(tmp_path: Path) -> None:
    native = save_random_model(tmp_path / "native.safetensors", PLANAR)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()
    assert "not that of a package" in refusal(native, tmp_path / "data", "--overwrite")
    assert (tmp_path / "data" / "kept").exists()


def test_networks_of_others_are_not_exported(tmp_path: Path) -> None:
    native = save_random_model(tmp_path / "native.safetensors", PLANAR)
    assert export(native, tmp_path / "n.onnx").exit_code == 0
    assert "not one of emseg's own networks" in refusal(tmp_path / "n.onnx", tmp_path / "n.zip")
