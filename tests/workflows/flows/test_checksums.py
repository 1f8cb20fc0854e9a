"""Test that damage to an output is found without computing, and repaired to the bytes of an undisturbed run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import PLANAR, bytes_of, run_emseg, save_random_model, save_volume, shards, snapshot, texture

from emseg.cli import cli
from emseg.flows.records.run_log import recipe_of
from emseg.flows.repair import repair, verify_checksums
from emseg.flows.segment import segment
from emseg.flows.verify import verify
from emseg.runs.events import BlockEnded, Event
from emseg.runs.stop import Stop, StoppedError
from emseg_core.errors import InputError
from emseg_core.store.files.lease import take_lease
from emseg_core.store.outputs.lifecycle import open_output

ARRAYS = ["labels/classes/0", "probabilities/0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, a model, and the output of an undisturbed run with non-default settings."""
    folder = tmp_path_factory.mktemp("sound")
    save_volume(folder / "volume.zarr", texture((9, 61, 67)))
    save_random_model(folder / "model.safetensors", PLANAR)
    report = segment(
        folder / "volume.zarr",
        folder / "sound.zarr",
        model=folder / "model.safetensors",
        roi="1:5,3:60,0:66",
        normalise="slice",
        tile=(1, 52, 48),
        threads=2,
        tta=True,
        probabilities=True,
        workers=0,
    )
    assert report.exit_code == 0
    assert report.blocks >= 4
    return folder


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output, to be damaged."""
    return Path(shutil.copytree(folder / "sound.zarr", tmp_path / "out.zarr"))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


DAMAGED: list[Callable[[Path], None]] = [flip, cut, overwrite]
MISSING: list[Callable[[Path], None]] = [empty, Path.unlink]


def test_a_sound_output_holds_and_is_only_read(output: Path) -> None:
    before = snapshot(output)
    found = verify_checksums(output)
    assert found.holds
    assert (found.exit_code, found.checked, found.blocks) == (0, len(shards(output)), len(shards(output)))
    assert str(found).endswith("PASS: every checksum holds")
    assert snapshot(output) == before


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("harm", DAMAGED + MISSING, ids=lambda harm: harm.__name__)
def test_harm_is_found_and_repaired(folder: Path, output: Path, array: str, harm: Callable[[Path], None]) -> None:
    file = shards(output, array)[2]
    harm(file)
    found = verify_checksums(output)
    expected = (1, 0) if harm in DAMAGED else (0, 1)
    assert (len(found.damaged), found.missing) == expected
    assert found.exit_code == 3
    assert found.checked == found.blocks - found.missing
    for failure in found.damaged:
        assert failure.box == str(recipe_of(open_output(output)).plan.block(failure.block).write)
        assert f"{failure.box} of {output} cannot be read" in failure.cause
        assert failure.box in str(found)

    after = repair(output, workers=0)
    assert after.holds
    assert after.repaired == 1
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_all_at_once(folder: Path, output: Path) -> None:
    files = shards(output, ARRAYS[0]) + shards(output, ARRAYS[1])
    for file, harm in zip(files, (DAMAGED + MISSING) * len(files), strict=False):
        harm(file)
    assert not verify_checksums(output).holds
    ended: list[int] = []

    def watch(event: Event) -> None:
        if isinstance(event, BlockEnded):
            ended.append(event.outcome.block)

    after = repair(output, workers=0, on_event=watch)
    assert after.holds
    assert after.repaired == len(ended) == len(set(ended))
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_an_exchanged_shard_has_the_right_checksum(output: Path) -> None:
    """Only verify, which computes, finds it."""
    _, y, x = recipe_of(open_output(output)).plan.grid
    for array in ARRAYS:
        one, other = shards(output, array)[0], shards(output, array)[y * x]  # of one shape
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    assert verify_checksums(output).holds
    assert not verify(output, boxes=2).holds


def test_nothing_but_the_harmed_is_computed(output: Path) -> None:
    files = shards(output)
    before = {file: file.stat().st_mtime_ns for file in files}
    flip(files[1])
    harmed = files[1].stat().st_mtime_ns
    assert repair(output, workers=0).repaired == 1
    after = {file: file.stat().st_mtime_ns for file in files}
    assert after[files[1]] > harmed
    assert {file for file in files if after[file] != before[file]} == {files[1]}


def test_a_sound_output_is_not_repaired(output: Path) -> None:
    before = bytes_of(output)
    found = repair(output, workers=0)
    assert (found.repaired, found.exit_code) == (0, 0)
    assert bytes_of(output) == before


def test_a_running_run_refuses_it(output: Path) -> None:
    flip(shards(output)[0])
    stored = open_output(output)
    with take_lease(stored.records, output).held():
        before = snapshot(output)
        with pytest.raises(InputError, match="in use by run 2"):
            repair(output, workers=0)
        assert snapshot(output) == before
        assert len(verify_checksums(output).damaged) == 1
    assert repair(output, workers=0).holds


def test_another_volume_or_model_removes_nothing(output: Path, tmp_path: Path) -> None:
    flip(shards(output)[0])
    before = snapshot(output)
    other = save_volume(tmp_path / "other.zarr", texture((9, 61, 67), seed=1))
    with pytest.raises(InputError, match=r"volume_digest.*--volume"):
        repair(output, volume=other, workers=0)
    with pytest.raises(InputError, match=r"model_digest.*--model"):
        repair(output, model=save_random_model(tmp_path / "other.safetensors", PLANAR, seed=1), workers=0)
    assert snapshot(output) == before


def test_inputs_that_were_moved(folder: Path, output: Path, tmp_path: Path) -> None:
    shutil.rmtree(output / "emseg" / "run-0001")
    flip(shards(output)[0])
    with pytest.raises(InputError, match="give --volume"):
        repair(output, workers=0)
    volume = shutil.copytree(folder / "volume.zarr", tmp_path / "moved.zarr")
    model = shutil.copy(folder / "model.safetensors", tmp_path / "moved.safetensors")
    assert repair(output, volume=volume, model=model, workers=0).holds
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_a_stopped_repair_is_gone_on_with_by_a_run(folder: Path, output: Path) -> None:
    for file in shards(output)[::2]:
        flip(file)
    stop = Stop()

    def watch(event: Event) -> None:
        if isinstance(event, BlockEnded):
            stop.ask(signal.SIGTERM)

    with pytest.raises(StoppedError):
        repair(output, workers=0, stop=stop, on_event=watch)
    assert (len(verify_checksums(output).damaged), verify_checksums(output).missing > 0) == (0, True)
    assert repair(output, workers=0).holds
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


def test_a_stop_while_it_reads_removes_nothing(output: Path) -> None:
    flip(shards(output)[0])
    before, stop = bytes_of(output), Stop()
    stop.ask(signal.SIGINT)
    with pytest.raises(StoppedError):
        repair(output, workers=0, stop=stop)
    assert bytes_of(output) == before


def test_what_a_sick_disk_cannot_read_is_not_removed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bytes_of(output)

    def sick(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("emseg_core.store.zarrs.arrays.Shards.read", sick)
    found = repair(output, workers=0)
    assert len(found.damaged) == found.blocks
    assert "input/output error" in found.damaged[0].cause
    assert (found.exit_code, found.repaired) == (3, 0)
    assert bytes_of(output) == before


def test_checksums_need_no_volume_no_model_no_torch(output: Path) -> None:
    shutil.rmtree(output / "emseg" / "run-0001")
    flip(shards(output)[0])
    probe = (
        "import sys; from emseg.cli import main\n"
        "sys.argv = ['emseg', 'verify', sys.argv[1], '--checksums', '--json']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe, output], capture_output=True, text=True)
    assert done.stderr == "False\n"
    assert done.returncode == 3
    found = json.loads(done.stdout)
    units = {f"{what}{how}" for what in ("units", "instances") for how in ("", "_damaged", "_missing", "_repaired")}
    files = {"files_damaged", "files_repaired"}
    assert found.keys() == {"blocks", "checked", "damaged", "missing", "repaired", "holds"} | units | files
    assert [failure.keys() for failure in found["damaged"]] == [{"block", "box", "cause"}]


def test_the_command_repairs(folder: Path, output: Path) -> None:
    flip(shards(output)[0])
    cut(shards(output, ARRAYS[1])[1])
    done = run_emseg("verify", output, "--repair", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert "0 damaged, 0 missing, 2 repaired" in done.stdout
    assert bytes_of(output) == bytes_of(folder / "sound.zarr")


@pytest.mark.parametrize(("more", "what"), [(["--volume"], "volume"), (["--model", "m.safetensors"], "model")])
def test_what_checksums_do_not_read_is_not_taken(output: Path, more: list[str], what: str) -> None:
    """A user who passes such an argument expects it to be used."""
    refused = CliRunner().invoke(cli, ["verify", str(output), "--checksums", *more])
    assert refused.exit_code == 2
    assert f"--checksums does not read the {what}: omit --checksums or --{what}" in refused.output


def test_workers_are_for_repair(output: Path) -> None:
    done = run_emseg("verify", output, "--checksums", "--workers", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--workers 2 has no effect without --repair" in line
