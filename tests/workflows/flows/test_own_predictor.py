"""Test runs with a user-defined class: the result of one pass for any workers, and no unrequested import."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from detectors import Dark, Mean, Padded
from numpy.typing import NDArray
from runs import bytes_of, rewrite_description, run_emseg, save_random_model, save_volume, shards, snapshot, texture

import emseg
from emseg import segment, status, verify
from emseg.flows.records.run_log import recipe_of
from emseg.flows.repair import repair, verify_checksums
from emseg_core.errors import DeviceError, InputError, ModelError, OutputError
from emseg_core.grid.stitch import classify
from emseg_core.model.python_predictor import ImportPath
from emseg_core.recipe import Recipe
from emseg_core.specs.model import ModelSpec
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (7, 60, 52)
VALUES = texture(SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, and an output of a local mean."""
    folder = tmp_path_factory.mktemp("own")
    save_volume(folder / "volume.zarr", VALUES)
    run(folder, folder / "out.zarr", "Mean", probabilities=True)
    return folder


def run(folder: Path, output: Path, name: str, **options: Any) -> dict[str, str]:
    """Run, and return the bytes of the output."""
    report = segment(folder / "volume.zarr", output, predictor=f"detectors:{name}", **{"workers": 0, **options})
    assert (report.exit_code, report.left) == (0, 0)
    return bytes_of(output)


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output."""
    return Path(shutil.copytree(folder / "out.zarr", tmp_path / "out.zarr"))


def in_one_pass(kind: type[Any], context: tuple[int, int, int], crop: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return labels of the whole mirrored volume as one tile."""
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    logits = kind().predict(np.pad(normalised, [(c, c) for c in context], mode="reflect")[None])[0]
    return classify(logits[(slice(None), *(slice(c, length - c) for c, length in zip(crop, logits.shape[1:], strict=True)))])


@pytest.mark.parametrize(
    ("kind", "context", "crop"),
    [(Dark, (0, 0, 0), (0, 0, 0)), (Mean, (1, 2, 2), (0, 0, 0)), (Padded, (0, 6, 6), (0, 6, 6))],
)
def test_what_one_pass_gives(
    kind: type[Any], context: tuple[int, int, int], crop: tuple[int, int, int], folder: Path, tmp_path: Path
) -> None:
    run(folder, tmp_path / "out.zarr", kind.__name__, tile=None)
    plan = emseg.plan(folder / "volume.zarr", predictor=f"detectors:{kind.__name__}").plan
    stored = open_output(tmp_path / "out.zarr")
    assert recipe_of(stored).plan == plan
    assert len(plan) > 4
    labels = stored.read_labels(plan.region)
    np.testing.assert_array_equal(labels, in_one_pass(kind, context, crop))
    assert len(np.unique(labels)) == len(kind.classes)
    assert verify(tmp_path / "out.zarr", predictor=f"detectors:{kind.__name__}", boxes=3).holds


def test_workers_import_it(folder: Path, output: Path, tmp_path: Path) -> None:
    """Two workers give the bytes of none, and resume a stopped run."""
    assert run(folder, tmp_path / "new.zarr", "Mean", probabilities=True, workers=2) == bytes_of(folder / "out.zarr")


def test_workers_that_cannot_import_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = ModuleType("ghost")
    ghost.Dark = Dark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    with pytest.raises(ModelError, match=r"the predictor ghost:Dark cannot be imported .*that each worker can find its module"):
        segment(folder / "volume.zarr", tmp_path / "out.zarr", predictor="ghost:Dark", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_it_is_part_of_what_an_output_is_begun_with(folder: Path, output: Path, tmp_path: Path) -> None:
    recipe = recipe_of(open_output(output))
    assert recipe.predictor == "detectors:Mean 1"
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert status(output).model == "detectors:Mean"
    assert "detectors:Mean" in emseg.report(output, tmp_path / "page.html").read_text()
    made = run(folder, tmp_path / "dark.zarr", "Dark")
    with pytest.raises(OutputError, match=r'predictor was "detectors:Dark 1", now "detectors:DarkAgain 2"'):
        run(folder, tmp_path / "dark.zarr", "DarkAgain")
    model = save_random_model(tmp_path / "m.safetensors", ModelSpec.unet(width=2, depth=1))
    with pytest.raises(OutputError, match=r"started with other settings.*model_digest"):
        segment(folder / "volume.zarr", tmp_path / "dark.zarr", model=model, workers=0)
    assert bytes_of(tmp_path / "dark.zarr") == made
    shards(tmp_path / "dark.zarr")[1].unlink()
    assert run(folder, tmp_path / "dark.zarr", "Dark") == made


def test_a_repair_names_it_again(folder: Path, output: Path) -> None:
    first, second, *_ = shards(output)
    first.write_bytes(first.read_bytes()[:-5] + b"\0" * 5)
    second.unlink()
    assert len(verify_checksums(output).damaged) == 1
    with pytest.raises(OutputError, match="another volume or model"):
        repair(output, predictor="detectors:Dark", workers=0)
    assert repair(output, predictor="detectors:Mean", workers=0).repaired == 2
    assert bytes_of(output) == bytes_of(folder / "out.zarr")


@pytest.fixture
def trap(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an output that names a module which leaves a trace when it is imported."""
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    record = output / "emseg" / "run-0001" / "00000.jsonl"
    assert all("detectors:Mean" in file.read_text() for file in (output / "zarr.json", record))
    rewrite_description(output, lambda text: text.replace("detectors:Mean", "trap:Mean"))
    record.write_text(record.read_text().replace("detectors:Mean", "trap:Mean"))
    yield output
    assert not (tmp_path / "trace").exists()
    assert "trap" not in sys.modules


def test_nothing_is_imported_because_an_output_names_it(trap: Path, tmp_path: Path) -> None:
    shards(trap)[0].unlink()  # intact parts are repaired without a predictor
    for command in (verify, repair):
        with pytest.raises(OutputError, match=r"made with the user-defined class trap:Mean 1, .* predictor='module:Class'"):
            command(trap)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for words in ([], ["--repair"]):
        done = run_emseg("verify", trap, *words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})
        assert done.returncode == 2
        assert "which is not imported automatically: from Python, pass predictor=" in done.stderr
    with pytest.raises(InputError, match="digest"):
        verify(trap, predictor="detectors:Dark")


def test_what_does_not_go_with_it(folder: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(ModelError, match="both the model membrane-fib25 and the predictor detectors:Dark are given"):
        run(folder, tmp_path / "out.zarr", "Dark", model="membrane-fib25")
    with pytest.raises(DeviceError, match="does not run with openvino in float32 on cpu"):
        run(folder, tmp_path / "out.zarr", "Dark", backend="openvino")
    with pytest.raises(DeviceError, match="does not run with torch in bfloat16 on cpu"):
        run(folder, tmp_path / "out.zarr", "Dark", precision="bfloat16")
    with pytest.raises(ModelError, match="cannot be imported"):
        segment(folder / "volume.zarr", tmp_path / "out.zarr", predictor="nowhere:Dark", workers=0)
    assert snapshot(tmp_path) == before
    assert str(ImportPath("detectors:Dark")) == "detectors:Dark"


def test_a_mean_over_symmetries(folder: Path, tmp_path: Path) -> None:
    """The result does not change with the symmetries, so the labels are the same."""
    run(folder, tmp_path / "mean.zarr", "Padded", tta=True)
    labels = open_output(tmp_path / "mean.zarr").read_labels(open_output(tmp_path / "mean.zarr").region)
    assert (labels == in_one_pass(Padded, (0, 6, 6), (0, 6, 6))).mean() > 0.999
