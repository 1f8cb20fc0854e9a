"""Test `emseg label` on outputs of several blocks: the result in memory, for any workers, kills and settings."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from labelled import by_blocks
from numpy.typing import NDArray
from ome_zarr_models.v05.image_label import ImageLabel
from PIL import Image
from runs import PLANAR, run_emseg, save_random_model, save_volume, shape_of_many_blocks, texture

from emseg.flows.ingest import ingest
from emseg.flows.label import label
from emseg.flows.preview import preview
from emseg.flows.scoring.instances import evaluate_instances
from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event, RunStarted
from emseg.runs.stop import Stop
from emseg_core.box import triple
from emseg_core.errors import InputError, OutputError
from emseg_core.specs.labelling import Labelling
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = shape_of_many_blocks(PLANAR)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with outputs: with probabilities, without, and of a part with a block missing."""
    folder = tmp_path_factory.mktemp("labelled")
    model = save_random_model(folder / "model.safetensors", PLANAR)
    volume = save_volume(folder / "volume.zarr", texture(SHAPE))
    segment(volume, folder / "whole.zarr", model=model, probabilities=True, workers=0)
    segment(volume, folder / "bare.zarr", model=model, workers=0)
    part = segment(volume, folder / "part.zarr", model=model, probabilities=True, workers=0, roi="1:,5:,3:")
    assert part.exit_code == 0
    stored = open_output(folder / "part.zarr")
    file = next((folder / "part.zarr" / "labels" / "classes" / "0" / "c").rglob("*"))
    while file.is_dir():
        file = next(file.iterdir())
    file.unlink()
    assert not stored.done_units().all()
    return folder


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    """Make a copy of the output with probabilities."""
    return Path(shutil.copytree(made / "whole.zarr", tmp_path / "whole.zarr"))


def instances(output: Path, name: str = "instances") -> NDArray[np.uint64]:
    """Return the stored instance labels."""
    array = zarr.open_array(output / "labels" / name / "0", mode="r")
    assert array.dtype == np.uint64
    return np.asarray(array)


def pixels(picture: Path) -> NDArray[np.uint8]:
    """Return a picture, ``(y, x, 3)``."""
    with Image.open(picture) as opened:
        return np.asarray(opened)


def files(output: Path) -> dict[str, bytes]:
    """Return all files that a labelling leaves."""
    places = [*(output / "labels").rglob("*"), output / "emseg" / "instances.csv"]
    return {str(place.relative_to(output)): place.read_bytes() for place in places if place.is_file()}


@pytest.mark.parametrize(
    "settings",
    [
        {"planar": False},
        {"planar": True, "smoothing": 2, "threshold": 0.6},
        {"method": "components", "connectivity": 26, "smallest": 4},
        {"method": "components", "class_name": "membrane"},
    ],
)
def test_the_whole_volume_at_once(whole: Path, settings: dict[str, Any]) -> None:
    stored = open_output(whole)
    done = label(whole, workers=0, **settings)
    channel = stored.classes.index(settings.get("class_name", "membrane" if "method" not in settings else "inside"))
    rest = {key: value for key, value in settings.items() if key not in ("method", "class_name")}
    labelling = Labelling(settings.get("method", "watershed"), channel, **rest)
    voxels = stored.read_labels(stored.region) if "method" in settings else stored.read_probabilities(stored.region)[channel]
    expected, table = by_blocks(voxels, triple(voxels.shape), labelling)
    found = instances(whole)
    np.testing.assert_array_equal(found, expected)
    assert done.exit_code == 0
    assert done.segments == len(table) == found.max()
    assert isinstance(done.table, Path)
    with done.table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["id"]) for row in rows] == list(range(1, len(table) + 1))
    assert [int(row["voxels"]) for row in rows] == table.voxels.tolist()


def test_workers_and_kills_change_nothing(whole: Path, tmp_path: Path) -> None:
    """Labels are computed in this process, on two workers, and with repeated kills by SIGKILL."""
    copies = [Path(shutil.copytree(whole, tmp_path / f"{name}.zarr")) for name in ("dask", "killed")]
    label(whole, workers=0)
    label(copies[0], workers=2)
    assert files(copies[0]) == files(whole)
    command = [sys.executable, "-m", "emseg", "label", str(copies[1]), "--workers", "0"]
    kills, made = -1, 0
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:  # some files later each time
        kills, made = kills + 1, made + 30
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and files_below(copies[1] / "emseg") < made:
            time.sleep(0.005)
        process.kill()
        code = process.wait()
    assert kills >= 3
    assert code == 0
    assert files(copies[1]) == files(whole)
    assert not list((copies[1] / "emseg").glob("instances-*"))


def files_below(folder: Path) -> int:
    """Return the number of files, even while folders are being removed."""
    return sum(len(names) for _, _, names in os.walk(folder))


def test_descriptions_that_a_killed_one_left_half_written_are_gone(whole: Path, tmp_path: Path) -> None:
    """It may have been about to describe the labels, or to list them."""
    copy = Path(shutil.copytree(whole, tmp_path / "stopped.zarr"))
    stop = Stop()

    def see(event: Event) -> None:
        if isinstance(event, BlockEnded):
            stop.ask(signal.SIGTERM)

    assert label(copy, workers=0, stop=stop, on_event=see).exit_code != 0
    (scratch,) = copy.glob("emseg/instances-*/image")
    for folder in (scratch, copy / "labels", copy / "emseg"):
        (folder / ".zarr.json.0123456789ab.partial").write_text("{")
    assert label(copy, workers=0).exit_code == 0
    label(whole, workers=0)
    assert files(copy) == files(whole)


def test_a_labelling_that_was_killed_while_it_was_made_is_made_anew(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "killed.zarr"))
    label(whole, workers=0)
    stop = Stop()
    stop.ask(signal.SIGTERM)
    label(copy, workers=0, stop=stop)
    (scratch,) = copy.glob("emseg/instances-*")
    (scratch / "labelling.json").unlink()
    (scratch / "image" / "0" / ".zarr.json.0123456789ab.partial").write_text("{")
    assert label(copy, workers=0).exit_code == 0
    assert files(copy) == files(whole)


@pytest.mark.parametrize("stage", ["cut", "sew", "paint"])
def test_a_signal_stops_it_and_it_goes_on(whole: Path, tmp_path: Path, stage: str) -> None:
    """It stops after the first block of each stage. Finished work is not repeated."""
    copy = Path(shutil.copytree(whole, tmp_path / "stopped.zarr"))
    stop, stages, ended = Stop(), ["cut", "sew", "paint"], [0, 0]

    def see(event: Event) -> None:
        if isinstance(event, RunStarted):
            stages.pop(0)
        if isinstance(event, BlockEnded):
            ended[0] += 1
            if len(stages) == 2 - ["cut", "sew", "paint"].index(stage) and not stop.asked:
                stop.ask(signal.SIGTERM)

    stopped = label(copy, workers=0, stop=stop, on_event=see)
    assert (stopped.exit_code, stopped.segments) == (128 + signal.SIGTERM, None)
    assert isinstance(stopped.instances, Path)
    assert not stopped.instances.exists()

    def count(event: Event) -> None:
        ended[1] += isinstance(event, BlockEnded)

    assert label(copy, workers=0, on_event=count).exit_code == 0
    assert sum(ended) == 3 * len(open_output(whole).done_units().ravel())
    label(whole, workers=0)
    assert files(copy) == files(whole)


def test_it_is_an_image_of_labels(whole: Path) -> None:
    label(whole, workers=0)
    ImageLabel.from_zarr(zarr.open_group(whole / "labels" / "instances", mode="r"))
    assert json.loads((whole / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"] == ["classes", "instances"]


def test_again_does_nothing_and_other_settings_are_refused(whole: Path) -> None:
    first = label(whole, workers=0)
    before = {path: path.stat().st_mtime_ns for path in (whole / "labels").rglob("*")}
    assert label(whole, workers=0) == first
    assert {path: path.stat().st_mtime_ns for path in (whole / "labels").rglob("*")} == before
    with pytest.raises(OutputError, match=r"threshold was 0.56, now 0.7.*--overwrite"):
        label(whole, workers=0, threshold=0.7)
    other = label(whole, workers=0, threshold=0.7, name="coarse")
    replaced = label(whole, workers=0, threshold=0.7, overwrite=True)
    assert replaced.segments == other.segments
    np.testing.assert_array_equal(instances(whole), instances(whole, "coarse"))


def test_beginning_an_output_anew_removes_its_instances(whole: Path, made: Path) -> None:
    label(whole, workers=0)
    segment(made / "volume.zarr", whole, model=made / "model.safetensors", workers=0, overwrite=True)
    assert [path.name for path in (whole / "labels").iterdir() if path.is_dir()] == ["classes-2"]
    assert not (whole / "emseg" / "instances.csv").exists()


def test_what_is_missing_stays_so(made: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(made / "part.zarr", tmp_path / "part.zarr"))
    with pytest.raises(OutputError, match=r"lacks 1 of \d+ blocks.*--allow-incomplete"):
        label(part, workers=0)
    assert label(part, workers=0, allow_incomplete=True).exit_code == 0
    found, classes = instances(part), open_output(part)
    np.testing.assert_array_equal(found == 0, classes.read_labels(classes.region) == 255)


def test_an_image(made: Path, tmp_path: Path) -> None:
    """Segments of a plane touch an edge only at its sides. Sizes are in cubic micrometres if units are known."""
    tifffile.imwrite(tmp_path / "image.tif", texture((1, 90, 110))[0])
    ingest(tmp_path / "image.tif", tmp_path / "image.zarr", voxel_size=(30, 8, 8))
    segment(tmp_path / "image.zarr", tmp_path / "out.zarr", model=made / "model.safetensors", probabilities=True, workers=0)
    table = label(tmp_path / "out.zarr", workers=0).table
    assert isinstance(table, Path)
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    found = instances(tmp_path / "out.zarr").reshape(90, 110)
    sides = {int(i) for side in (found[0], found[-1], found[:, 0], found[:, -1]) for i in side}
    assert {int(row["id"]) for row in rows if row["touches_edge"] == "1"} == sides != set(range(1, len(rows) + 1))
    assert float(rows[0]["volume_um3"]) == pytest.approx(int(rows[0]["voxels"]) * 0.03 * 0.008 * 0.008, rel=1e-5)


def test_refusals(made: Path, whole: Path) -> None:
    with pytest.raises(OutputError, match=r"stores no probabilities.*--probabilities"):
        label(made / "bare.zarr", workers=0)
    for settings, message in (
        ({"class_name": "vesicle"}, "no class 'vesicle', but inside, membrane"),
        ({"threshold": 0.0}, "threshold"),
        ({"smoothing": 5}, "must be 0 to 4 passes"),
        ({"name": "classes"}, "cannot be a name of instance labels"),
        ({"name": "../x"}, "cannot be a name of instance labels"),
    ):
        with pytest.raises(InputError, match=message):
            label(whole, workers=0, **settings)
    assert not (whole / "labels" / "instances").exists()


def test_the_command(whole: Path) -> None:
    done = run_emseg("label", whole, "--workers", 0, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["segments"] == instances(whole).max()
    refused = run_emseg("label", whole, "--workers", 0, "--threshold", 0.9)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")


def test_how_good_they_are(made: Path, tmp_path: Path) -> None:
    """Compared with themselves, nothing is wrong, for truth of the output or of the whole volume. Slices may be chosen."""
    part = Path(shutil.copytree(made / "part.zarr", tmp_path / "part.zarr"))
    label(part, workers=0, allow_incomplete=True)
    found = instances(part).astype(np.uint16)
    tifffile.imwrite(tmp_path / "part.tif", found)
    whole = np.zeros(SHAPE, np.uint16)
    whole[1:, 5:, 3:] = found
    tifffile.imwrite(tmp_path / "whole.tif", whole)
    for truth in ("part.tif", "whole.tif"):
        matching = evaluate_instances(part, tmp_path / truth, slices=(1, 3))
        assert matching.comparison.scores.adapted_rand_error == pytest.approx(0, abs=1e-12)
        assert matching.comparison.true == len(np.unique(found[1:3][found[1:3] != 0]))
    tifffile.imwrite(tmp_path / "other.tif", whole[:, 1:])
    with pytest.raises(InputError, match="shape"):
        evaluate_instances(part, tmp_path / "other.tif")
    with pytest.raises(OutputError, match="no instance labels 'soma'"):
        evaluate_instances(part, tmp_path / "part.tif", name="soma")
    done = run_emseg("evaluate", part, tmp_path / "part.tif", "--instances")
    assert done.returncode == 0, done.stderr
    assert "adapted Rand error        0.0000" in done.stdout


@pytest.mark.parametrize("name", ["instances", "soma"])
def test_they_are_drawn(whole: Path, name: str) -> None:
    plain = pixels(preview(whole))
    label(whole, name=name, workers=0)
    drawn = pixels(preview(whole))
    assert drawn.shape[1] > plain.shape[1]
    right = drawn[28:, -drawn.shape[0] // 2 :]
    assert len(np.unique(right.reshape(-1, 3), axis=0)) > 10


def test_after_a_run(made: Path, whole: Path, tmp_path: Path) -> None:
    """`emseg run --instances` runs with stored probabilities and then labels. A second call does nothing."""
    output = tmp_path / "out.zarr"
    words = ("run", made / "volume.zarr", "-o", output, "--model", made / "model.safetensors", "--workers", 0, "--instances")
    done = run_emseg(*words)
    assert done.returncode == 0, done.stderr
    assert "segments in" in done.stdout
    label(whole, workers=0)
    np.testing.assert_array_equal(instances(output), instances(whole))
    again = run_emseg(*words, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["instances"]["segments"] == instances(output).max()


@pytest.mark.parametrize(
    "step", ["files.files.LocalFiles.remove_all", "files.files.LocalFiles.rename_all", "outputs.instances.list_labels"]
)
def test_killed_while_it_is_published(whole: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """It dies before an older image is removed, before it is replaced, and before the new one is listed."""
    label(whole, workers=0, threshold=0.7)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"emseg_core.store.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            label(whole, workers=0, overwrite=True)
    done = label(whole, workers=0, overwrite=True)
    assert done.segments == instances(whole).max()
    assert not list((whole / "emseg").glob("instances-*"))
    assert json.loads((whole / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"] == ["classes", "instances"]


@pytest.mark.parametrize("gone", [(), ("labelling.json",), ("segments.npy",), ("labelling.json", "pieces", "seams")])
def test_killed_while_what_it_was_made_from_is_removed(
    whole: Path, monkeypatch: pytest.MonkeyPatch, gone: tuple[str, ...]
) -> None:
    """Files may be removed in any order. The same command removes the rest, and changes nothing else."""
    remove_all = LocalFiles.remove_all

    def killed(self: LocalFiles, folder: str) -> None:
        if not folder.startswith("emseg/") or not (whole / "labels" / "instances").exists():
            remove_all(self, folder)
            return
        for name in gone:
            (self.remove if "." in name else partial(remove_all, self))(f"{folder}/{name}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "remove_all", killed)
        with pytest.raises(KeyboardInterrupt):
            label(whole, workers=0)
    before = files(whole)
    done = label(whole, workers=0)
    assert (done.exit_code, done.segments) == (0, instances(whole).max())
    assert files(whole) == before
    assert not list((whole / "emseg").glob("instances-*"))
