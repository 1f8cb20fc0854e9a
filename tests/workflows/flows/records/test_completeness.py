"""Test that any lost or damaged part of an output is noticed, and restored to the same bytes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from runs import PLANAR, bytes_of, save_random_model, save_volume, texture

import emseg
from emseg import export, label, segment
from emseg.cli import cli
from emseg.flows.preview import preview
from emseg.flows.records.completeness import inventory
from emseg.flows.repair import repair, verify_checksums
from emseg.flows.status import status
from emseg.flows.view import view
from emseg.runs.events import Event, Noticed
from emseg_core.errors import InputError, OutputError
from emseg_core.grid import pyramid
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.files.ownership import IDENTITY
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.zarrs.arrays import group_metadata

SHAPE = (2, 50, 90)
REMEDY = "repair it with `emseg verify --repair`"
IN_PYTHON = re.escape("repair it with `repair()`")


@pytest.fixture(scope="module", autouse=True)
def _levels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "MAX_COARSEST_LENGTH", 48)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, a model, a mask, and an output with all optional parts."""
    folder = tmp_path_factory.mktemp("whole")
    mask = np.zeros((1, 25, 45), bool)
    mask[:, 2:, 3:30] = True
    zarr.create_array(folder / "mask.zarr", data=mask, chunks=(1, 25, 45))
    save_volume(folder / "volume.zarr", texture(SHAPE))
    save_random_model(folder / "model.safetensors", PLANAR)
    report = segment(
        folder / "volume.zarr",
        folder / "sound.zarr",
        model=folder / "model.safetensors",
        mask=folder / "mask.zarr",
        tile=(1, 48, 48),
        probabilities=True,
        workers=0,
    )
    assert report.exit_code == 0
    assert report.outside
    assert label(folder / "sound.zarr", threshold=0.6, workers=0).exit_code == 0
    assert len(open_output(folder / "sound.zarr").levels) > 1
    return folder


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output, to be damaged."""
    return Path(shutil.copytree(folder / "sound.zarr", tmp_path / "out.zarr"))


def parts(output: Path) -> list[Path]:
    """Return each file of an output, except its run records and its identity."""
    files = (file for file in sorted(output.rglob("*")) if file.is_file())
    return [file for file in files if not file.relative_to(output).as_posix().startswith(("emseg/run-", IDENTITY))]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARMS: list[Callable[[Path], None]] = [flip, Path.unlink]
KINDS = [
    "zarr.json",
    "emseg/zarr.json",
    "emseg/outside.npy",
    "emseg/instances.csv",
    "labels/zarr.json",
    "labels/classes/zarr.json",
    "labels/classes/0/zarr.json",
    "labels/classes/1/zarr.json",
    "labels/classes/0/c/",
    "labels/classes/1/c/",
    "labels/instances/zarr.json",
    "labels/instances/0/zarr.json",
    "labels/instances/1/zarr.json",
    "labels/instances/0/c/",
    "labels/instances/1/c/",
    "probabilities/zarr.json",
    "probabilities/0/zarr.json",
    "probabilities/1/zarr.json",
    "probabilities/0/c/",
    "probabilities/1/c/",
]
"""The parts of an output; for shards, their folders."""


def one_of(output: Path, kind: str) -> Path:
    return next(file for file in parts(output) if file.relative_to(output).as_posix().startswith(kind))


def test_these_are_all_kinds(output: Path) -> None:
    for file in parts(output):
        name = file.relative_to(output).as_posix()
        kinds = [kind for kind in KINDS if name == kind or (kind.endswith("/") and name.startswith(kind))]
        assert len(kinds) == 1 or name.startswith(("labels/classes/2", "labels/instances/2", "probabilities/2")), name


def test_a_sound_output_is_only_read(folder: Path, output: Path) -> None:
    found = verify_checksums(output)
    assert found.holds, found
    assert found.instances
    assert str(found).endswith("PASS: every checksum holds")
    before, owner = {file: file.stat().st_mtime_ns for file in parts(output)}, (output / IDENTITY).read_bytes()
    assert repair(output, volume=folder / "elsewhere", workers=0).holds
    assert {file: file.stat().st_mtime_ns for file in parts(output)} == before
    assert (output / IDENTITY).read_bytes() == owner


def test_harm_to_any_file_is_noticed(output: Path) -> None:
    for number, file in enumerate(parts(output)):
        sound = file.read_bytes()
        HARMS[number % 2](file)
        assert verify_checksums(output).exit_code == 3, file
        file.write_bytes(sound)
    assert verify_checksums(output).holds


def test_any_bit_of_a_document_counts(output: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [file for file in parts(output) if file.suffix in (".json", ".npy", ".csv")]
    for _ in range(8):
        for file in documents:
            sound = file.read_bytes()
            data = bytearray(sound)
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            file.write_bytes(data)
            assert list(inventory(output).flaws()), (file, bytes(data))
            file.write_bytes(sound)
    assert not list(inventory(output).flaws())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_harmed_is_made_again(folder: Path, output: Path, kind: str) -> None:
    """One bit or the whole part is damaged. Of the parts that are slow to restore, only one is tried."""
    costly = kind.endswith(("/c/", ".csv"))
    for harm in HARMS[KINDS.index(kind) % 2 :][:1] if costly else HARMS:
        harm(one_of(output, kind))
        found = repair(output, workers=0)
        assert found.holds, found
        assert found.repaired + found.units_repaired + found.instances_repaired + found.files_repaired
        assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_all_at_once(folder: Path, output: Path, tmp_path: Path) -> None:
    """Everything is damaged except the copy of the output's description. Only the mask knows which blocks it excluded."""
    for number, file in enumerate(parts(output)):
        if file.relative_to(output).as_posix() != "emseg/zarr.json":
            HARMS[number % 2](file)
    with pytest.raises(OutputError, match="give the mask of its run with --mask"):
        repair(output, workers=0)
    other = save_volume(tmp_path / "other.zarr", np.ones(SHAPE, np.uint8))
    with pytest.raises(OutputError, match="is not the one that"):
        repair(output, mask=other, workers=0)
    assert repair(output, mask=folder / "mask.zarr", workers=0).holds
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_an_output_that_says_nothing_any_more_is_refused(output: Path) -> None:
    flip(output / "zarr.json")
    (output / "emseg" / "zarr.json").unlink()
    before = bytes_of(output)
    for action in (verify_checksums, repair, status, label):
        with pytest.raises(OutputError) as caught:
            action(output)
        assert "\n" not in str(caught.value)
    assert bytes_of(output) == before


def test_a_root_that_is_lost_has_a_way_back(output: Path) -> None:
    (output / "zarr.json").unlink()
    for action in (status, preview):
        with pytest.raises(OutputError, match=REMEDY):
            action(output)
    for command in (label, emseg.report):
        with pytest.raises(OutputError, match=IN_PYTHON):
            command(output)


LOST = ["labels/instances/0/c/", "labels/instances/1/c/", "labels/instances/0/zarr.json", "labels/instances/zarr.json"]


@pytest.mark.parametrize("kind", [*LOST, "emseg/instances.csv"])
def test_everybody_tells_that_instances_are_not_whole(folder: Path, output: Path, tmp_path: Path, kind: str) -> None:
    one_of(output, kind).unlink()
    found = status(output)
    assert found.exit_code == 3
    assert found.flaws[0].image == "instances"
    assert REMEDY in str(found)
    assert REMEDY in emseg.report(output, tmp_path / "page.html").read_text()
    with view(output) as shown:
        assert any(REMEDY in note for note in shown.notes)
        assert ("instances" in shown.link) == (kind not in LOST)
    if kind in LOST:
        with pytest.raises(InputError, match=IN_PYTHON):
            export(output, tmp_path / "i.zarr", instances="instances")
        assert not (tmp_path / "i.zarr").exists()
    told: list[Event] = []
    assert label(output, threshold=0.6, workers=0, on_event=told.append).exit_code == 0
    assert any(isinstance(event, Noticed) and ": computing instances again" in event.message for event in told)
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")
    assert status(output).exit_code == 0


def test_a_flipped_bit_makes_label_label_again(folder: Path, output: Path, tmp_path: Path) -> None:
    flip(one_of(output, "labels/instances/0/c/"))
    assert len(verify_checksums(output).instances_damaged) == 1
    with pytest.raises(Exception, match=IN_PYTHON):
        export(output, tmp_path / "i.tif", instances="instances")
    assert label(output, threshold=0.6, workers=0).exit_code == 0
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_what_is_away_for_a_moment_is_not_damaged(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is missing at first and found later was unavailable. Nothing is restored."""
    before, read = bytes_of(output), LocalFiles.read
    for name in ("labels/zarr.json", "labels/instances/zarr.json", "labels/classes/1/zarr.json", "emseg/outside.npy"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "read", lambda self, asked, name=name: None if asked == name else read(self, asked))
            for action in (verify_checksums, repair):
                with pytest.raises(OutputError, match="was unavailable for a moment"):
                    action(output)
    assert bytes_of(output) == before


def test_blocks_that_were_not_there_are_not_missed(folder: Path, tmp_path: Path) -> None:
    """Instance labels of the present blocks stay complete when more are computed, but not if one of their parts is lost."""
    output = Path(shutil.copytree(folder / "sound.zarr", tmp_path / "out.zarr"))
    one_of(output, "labels/classes/0/c/").unlink()
    assert label(output, threshold=0.6, name="some", allow_incomplete=True, workers=0).exit_code == 0
    assert not status(output).flaws
    gone = one_of(output, "labels/some/0/c/")
    sound = gone.read_bytes()
    gone.unlink()
    assert [flaw.image for flaw in status(output).flaws] == ["some"]
    gone.write_bytes(sound)
    assert repair(output, workers=0).repaired == 1
    assert not status(output).flaws


def older(output: Path) -> None:
    """Make an output without a copy of its description, as older versions did."""
    for name in ("zarr.json", "labels/instances/zarr.json"):
        document: dict[str, Any] = json.loads((output / name).read_bytes())
        for key in ("sha256", "table"):
            document["attributes"]["emseg"].pop(key, None)
        (output / name).write_text(json.dumps(document, indent=2) + "\n")
    (output / "emseg" / "zarr.json").write_bytes(group_metadata({}))


def test_older_outputs_are_held_to_what_is_known(folder: Path, output: Path) -> None:
    older(output)
    assert verify_checksums(output).holds
    assert status(output).exit_code == 0
    kept = bytes_of(output)
    for kind in ("emseg/instances.csv", "labels/instances/0/zarr.json", "labels/zarr.json", "probabilities/0/c/"):
        one_of(output, kind).unlink()
        assert verify_checksums(output).exit_code == 3
    assert repair(output, workers=0).holds
    changed = {name for name, digest in bytes_of(output).items() if kept[name] != digest}
    assert changed == {"emseg/zarr.json", "labels/instances/zarr.json"}


def test_how_older_instances_were_made_is_not_known_twice(output: Path) -> None:
    older(output)
    (output / "labels" / "instances" / "zarr.json").unlink()
    for _ in range(2):
        found = verify_checksums(output)
        assert found.exit_code == 3
        assert "labels/instances no longer records how it was made: label it again" in str(found)
        repair(output, workers=0)
    assert label(output, threshold=0.6, overwrite=True, workers=0).exit_code == 0
    assert verify_checksums(output).holds


def test_the_command_takes_what_run_takes(output: Path) -> None:
    run, words = CliRunner(), ["verify", str(output), "--checksums"]
    for more in (["--workers", "2"], ["--adapt", "1:2"], ["--cluster", "srun"], ["--gpus", "0"], ["--mask", "m.zarr"]):
        refused = run.invoke(cli, words + more)
        assert refused.exit_code == 2
        assert f"{more[0]} " in refused.output
        assert "has no effect without --repair" in refused.output
    flip(one_of(output, "labels/instances/0/c/"))
    refused = run.invoke(cli, ["verify", str(output), "--repair", "--cluster", "srun"])
    assert "does not know how many workers to start: give --workers" in str(refused.exception or refused.output)
