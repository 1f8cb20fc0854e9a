"""Test that a resume refuses a volume that has changed since, and that `emseg verify --volume` finds the change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from runs import PLANAR, bytes_of, save_random_model, save_volume, shards, snapshot

from emseg.cli.verify import verify as command
from emseg.executors.serial import SerialExecutor
from emseg.flows.records import run_log, same_volume
from emseg.flows.records.run_log import lines_of, recipe_of
from emseg.flows.records.same_volume import compare_sample
from emseg.flows.running.stages import StageRunner
from emseg.flows.segment import segment
from emseg.flows.verify import verify
from emseg.runs.dispatch import Policy
from emseg.runs.events import BlockEnded, Event, Noticed
from emseg.runs.stop import Stop, StoppedError
from emseg.runs.tally import Report
from emseg.tasks import rereading
from emseg_core.block import reread_block
from emseg_core.box import Box
from emseg_core.errors import OutputError, UnfinishedError
from emseg_core.grid.plan import Plan
from emseg_core.outcome import Outcome
from emseg_core.store.files import lease
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import ZarrVolume, open_volume

SHAPE = (4, 2100, 2100)
"""A shape so large that the sample of every run leaves out most of the volume."""
REGION = Box((0, 1000, 1000), (4, 1060, 1060))
TILE = (1, 52, 48)
FAR = Box((0, 960, 960), (4, 1100, 1100))
"""A box with everything that blocks of the region read."""


class Case:
    """A volume with a segmented part, and the output of a run that was not stopped."""

    def __init__(self, folder: Path) -> None:
        self.volume = save_volume(folder / "volume.zarr", np.zeros(SHAPE, np.uint8), (4, 64, 64))
        voxels = np.random.default_rng(3).integers(0, 255, FAR.shape).astype(np.uint8)
        zarr.open_array(self.volume)[FAR.slices()] = voxels
        self.model = save_random_model(folder / "model.safetensors", PLANAR)
        self.reference = folder / "reference.zarr"
        report = self.run(self.reference)
        assert report.done == report.blocks >= 16
        self.plan: Plan = recipe_of(open_output(self.reference)).plan

    def run(self, output: Path, volume: Path | None = None, **more: Any) -> Report:
        """Run in this process."""
        settings: dict[str, Any] = {"model": self.model, "roi": REGION, "tile": TILE, "workers": 0, **more}
        return segment(volume or self.volume, output, **settings)

    def read(self, block: int) -> Box:
        """Return the voxels that a block reads."""
        return self.plan.read_box(self.plan.block(block)).intersect(Box.of_shape(SHAPE))

    def name(self, block: int) -> str:
        """Return its voxels in the form of ``--roi``."""
        return str(self.plan.block(block).write)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def output(case: Case, tmp_path: Path) -> Path:
    """Make the output of a run that was stopped before its last block."""
    output = Path(shutil.copytree(case.reference, tmp_path / "output.zarr"))
    shards(output)[-1].unlink()
    return output


@pytest.fixture
def changed(case: Case, tmp_path: Path) -> Callable[[tuple[int, ...]], Path]:
    """Return a function that copies the volume and changes one voxel by one."""

    def change(place: tuple[int, ...]) -> Path:
        volume = Path(shutil.copytree(case.volume, tmp_path / "changed.zarr"))
        array: Any = zarr.open_array(volume)
        array[place] ^= np.uint8(1)
        return volume

    return change


def corners(box: Box) -> list[tuple[int, ...]]:
    return [box.start, tuple(stop - 1 for stop in box.stop)]


def holds(box: Box, place: tuple[int, ...]) -> bool:
    return all(start <= at < stop for start, at, stop in zip(box.start, place, box.stop, strict=True))


def notices(case: Case, output: Path, **more: Any) -> list[str]:
    """Return the notices of a resumed run."""
    events: list[Event] = []
    case.run(output, on_event=events.append, **more)
    return [event.message for event in events if isinstance(event, Noticed)]


# -- at a resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corner", [0, 1])
@pytest.mark.parametrize("block", [0, 4])
def test_one_changed_voxel_of_a_done_block_is_refused_and_named(
    case: Case, output: Path, changed: Callable[..., Path], block: int, corner: int
) -> None:
    place = corners(case.read(block))[corner]
    volume = changed(place)
    before = snapshot(output)
    with pytest.raises(OutputError) as error:
        case.run(output, volume)
    assert snapshot(output) == before
    message = str(error.value)
    assert "\n" not in message
    assert case.name(block) in message
    done = range(len(case.plan) - 1)
    hit = [number for number in done if holds(case.read(number), place)]
    assert all(case.name(number) in message for number in hit[:5])
    assert f"{len(hit)} of {len(done)} compared blocks had other voxels" in message
    assert case.run(output).done == 1


def test_what_no_done_block_has_read_may_change(case: Case, output: Path, changed: Callable[..., Path]) -> None:
    """Another block then computes what is there, and nothing is mixed."""
    last = len(case.plan) - 1
    place = corners(case.read(last))[1]
    others = [number for number in range(last) if holds(case.read(number), place)]
    for number in others:
        shards(output)[number].unlink()
    assert case.run(output, changed(place)).done == 1 + len(others)


def test_a_missing_chunk_is_a_change(case: Case, output: Path, tmp_path: Path) -> None:
    volume = Path(shutil.copytree(case.volume, tmp_path / "changed.zarr"))
    (volume / "c/0/15/15").unlink()
    with pytest.raises(OutputError, match="other voxels"):
        case.run(output, volume)


def test_a_chunk_that_cannot_be_read_any_more_costs_no_other_block(case: Case, output: Path, tmp_path: Path) -> None:
    volume = Path(shutil.copytree(case.volume, tmp_path / "changed.zarr"))
    (volume / "c/0/15/15").write_bytes(b"damaged")
    for file in shards(output)[1:]:
        file.unlink()
    events: list[Event] = []
    report = case.run(output, volume, on_event=events.append)
    assert report.failed
    assert report.done
    (told,) = [each.message for each in events if isinstance(each, Noticed) and "can no longer be read" in each.message]
    assert "c/0/15/15" in told or "cannot be read" in told


def test_the_same_voxels_in_another_place_and_codec_go_on(case: Case, output: Path, tmp_path: Path) -> None:
    old = zarr.open_array(case.volume)
    settings: dict[str, Any] = {"shape": SHAPE, "chunks": old.chunks, "dtype": "uint8", "zarr_format": 2}
    new = zarr.create_array(tmp_path / "moved.zarr", **settings, compressors=None)
    new[FAR.slices()] = old[FAR.slices()]
    assert case.run(output, tmp_path / "moved.zarr").done == 1
    assert bytes_of(output) == bytes_of(case.reference)


def test_what_is_read_again_is_drawn_by_lot(case: Case, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 blocks and more, each is chosen sooner or later."""
    read: list[int] = []

    def reread(volume: ZarrVolume, plan: Plan, block: Any) -> Outcome:
        read.append(block.index)
        return reread_block(volume, plan, block)

    monkeypatch.setattr(rereading, "reread_block", reread)
    monkeypatch.setattr(same_volume, "SAMPLED_BLOCKS", 2)
    seen: set[int] = set()
    stored, here = open_output(output), SerialExecutor()
    for _ in range(100):
        read.clear()
        compare_sample(stored, 2, case.volume, StageRunner(stored.path, here, None, Policy(), Stop(), print))
        assert len(set(read)) == len(read) == 2
        seen.update(read)
    assert seen >= set(range(len(case.plan) - 1))


def test_nothing_is_read_again_where_nothing_is_left(case: Case, changed: Callable[..., Path]) -> None:
    report = case.run(case.reference, changed(corners(case.read(0))[0]))
    assert (report.done, report.exit_code) == (0, 0)


def test_a_stop_while_blocks_are_read_again_leaves_all_as_it_was(
    case: Case, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, before = Stop(), snapshot(output)

    def reread(volume: ZarrVolume, plan: Plan, block: Any) -> Outcome:
        stop.ask(15)
        return reread_block(volume, plan, block)

    monkeypatch.setattr(rereading, "reread_block", reread)
    with pytest.raises(StoppedError):
        case.run(output, stop=stop)
    assert snapshot(output) == before


def test_a_volume_that_is_away_meanwhile_ends_the_run_as_any_outage(
    case: Case, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emseg.runs.dispatch.MAX_OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr("emseg.runs.dispatch.RETRY_DELAYS_SECONDS", (0.0,))
    before, told = snapshot(output), list[str]()

    def reread(volume: ZarrVolume, plan: Plan, block: Any) -> Outcome:
        return Outcome(block.index, "failed", block.write.voxels, cause="it is away", fault="store")

    monkeypatch.setattr(rereading, "reread_block", reread)
    with pytest.raises(UnfinishedError, match="run the command again"):
        case.run(output, on_event=lambda event: told.append(event.message) if isinstance(event, Noticed) else None)
    assert any("it is away" in message for message in told)
    assert snapshot(output) == before


# -- records ----------------------------------------------------------------------------------------------------------


def record_of(output: Path, run: int = 1) -> Path:
    return output / f"emseg/run-{run:04d}/00000.jsonl"


def forget(output: Path, blocks: set[int], run: int = 1) -> None:
    """Remove from a record what a driver that was killed early would not have stored about these blocks."""
    file = record_of(output, run)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [line for line in lines if line["event"] != "ended" and not (line["event"] == "block" and line["block"] in blocks)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in kept))


def test_what_was_stored_right_before_a_kill_is_computed_again(case: Case, output: Path, changed: Callable[..., Path]) -> None:
    """The blocks are computed from the current volume, so nothing is mixed, whatever it contains."""
    forget(output, {2, 5})
    events: list[Event] = []
    report = case.run(output, on_event=events.append)
    assert report.done == 3
    ended = [event.outcome.block for event in events if isinstance(event, BlockEnded)]
    assert set(ended[:3]) == {2, 5, len(case.plan) - 1}
    told = [event.message for event in events if isinstance(event, Noticed)]
    assert any("recomputing 2 blocks stored right before a run was killed" in message for message in told)
    assert bytes_of(output) == bytes_of(case.reference)
    shards(output)[-1].unlink()
    assert case.run(output).done == 1, "now all is told"


@pytest.mark.parametrize("odd", [True, False, -1, 1.0, 10**400, "1", None, [1]])
def test_a_line_of_no_block_refuses_no_volume(case: Case, output: Path, odd: Any) -> None:
    """Such a line reports another digest, but not of which block."""
    file = record_of(output)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    done = next(line for line in lines if line["event"] == "block")
    lines.insert(-1, {**done, "block": odd, "read": "0" * len(done["read"])})
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    case.run(output)
    assert bytes_of(output) == bytes_of(case.reference)


def test_coarser_levels_above_what_is_computed_again_are_built_again(case: Case, tmp_path: Path) -> None:
    tall = Box((0, 900, 1000), (1, 1200, 1030))
    case.run(tmp_path / "truth.zarr", roi=tall)
    output = Path(shutil.copytree(tmp_path / "truth.zarr", tmp_path / "output.zarr"))
    coarse = shards(output, "labels/classes/1")
    assert len(coarse) > 2
    forget(output, {1})
    stored = shards(output)[1]
    shutil.copyfile(shards(output)[0], stored)  # as if it had been made of other voxels
    coarse[-1].unlink()
    before = [file.stat().st_mtime_ns for file in coarse[:-1]]
    case.run(output, roi=tall)
    assert bytes_of(output) == bytes_of(tmp_path / "truth.zarr")
    kept = [file.stat().st_mtime_ns == number for file, number in zip(coarse, before, strict=False)]
    assert kept[0] is False
    assert kept[-1] is True


@pytest.mark.parametrize("lost", ["folder", "lines", "some lines", "damaged", "older"])
def test_lost_records_cost_no_block(case: Case, output: Path, lost: str) -> None:
    file = record_of(output)
    lines = file.read_text().splitlines()
    match lost:
        case "folder":
            shutil.rmtree(file.parent)
        case "lines":
            file.unlink()
        case "some lines":
            file.rename(file.with_name("00001.jsonl"))
        case "damaged":
            file.write_text("\n".join(line[:-9] if '"event": "block"' in line else line for line in lines))
        case _:
            read = [json.loads(line) for line in lines]
            new = ("generation", "tellers", "read")
            older = [{key: value for key, value in line.items() if key not in new} for line in read]
            file.write_text("".join(f"{json.dumps(line)}\n" for line in older))
    events: list[Event] = []
    report = case.run(output, on_event=events.append)
    assert (report.done, report.skipped) == (1, report.blocks - 1)
    told = [event.message for event in events if isinstance(event, Noticed) and "digests are not recorded" in event.message]
    assert len(told) == (lost != "some lines")  # the remaining lines cover all blocks
    assert bytes_of(output) == bytes_of(case.reference)


def test_after_a_loss_what_is_told_is_compared(case: Case, output: Path, changed: Callable[..., Path]) -> None:
    labels = shards(output)
    record_of(output).unlink()
    for file in labels[3:]:
        file.unlink()
    assert case.run(output).done == len(case.plan) - 3
    shards(output)[-1].unlink()
    place = corners(case.read(len(case.plan) - 2))[1]
    with pytest.raises(OutputError, match="other voxels"):
        case.run(output, changed(place))
    assert "3 of" in " ".join(notices(case, output))


def test_a_labelling_in_between_loses_nothing(case: Case, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a lease, and writes no run log."""
    with lease.take_lease(open_output(output).records, output).held():
        pass
    assert case.run(output).done == 1
    shards(output)[-1].unlink()
    forget(output, {1})
    forget(output, {len(case.plan) - 1}, run=3)
    assert case.run(output).done == 2
    assert next(line for line in lines_of(open_output(output), 4))["tellers"] == [1, 3]


def test_an_output_that_was_begun_anew_is_compared_with_nothing_older(
    case: Case, output: Path, changed: Callable[..., Path]
) -> None:
    volume = changed(corners(case.read(0))[0])
    assert case.run(output, volume, overwrite=True).done == len(case.plan)
    shards(output, "labels/classes-2/0")[-1].unlink()
    assert case.run(output, volume).done == 1
    shards(output, "labels/classes-2/0")[-1].unlink()
    with pytest.raises(OutputError, match="other voxels"):
        case.run(output)


def test_a_block_that_was_lost_is_known_by_what_it_read_last(case: Case, output: Path, changed: Callable[..., Path]) -> None:
    last = len(case.plan) - 1
    volume = changed(corners(case.read(last))[1])
    labels = shards(output)
    for file in labels[1:]:  # what the first has read was not changed
        file.unlink()
    assert case.run(output, volume).done == last
    shards(output)[1].unlink()
    assert case.run(output, volume).done == 1
    shards(output)[1].unlink()
    with pytest.raises(OutputError, match="other voxels"):
        case.run(output)


def test_what_a_block_has_read_is_written_down_at_once_where_that_costs_little(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "MAX_TIME_SHARE", float("inf"))
    output, ended = tmp_path / "output.zarr", 0

    def look(event: Event) -> None:
        nonlocal ended
        if isinstance(event, BlockEnded):
            ended += 1
            last = json.loads(record_of(output).read_text().splitlines()[-1])
            assert (last["block"], last["read"]) == (event.outcome.block, event.outcome.read)

    case.run(output, on_event=look)
    assert ended == len(case.plan)


def test_memory_is_a_few_bytes_for_each_block(case: Case, output: Path) -> None:
    reads = same_volume._recorded_digests(open_output(output), 1, print)
    assert reads.digests.nbytes + reads.known.nbytes == 9 * len(case.plan)
    assert reads.known.all()
    volume = open_volume(case.volume)
    for block in case.plan:
        assert int(reread_block(volume, case.plan, block).read, 16) == reads.digests[block.index]


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_finds_one_changed_voxel_anywhere(case: Case, changed: Callable[..., Path]) -> None:
    everywhere = [place for block in range(len(case.plan)) for place in corners(case.read(block))]
    volume = changed(everywhere[0])
    array: Any = zarr.open_array(volume)
    array[everywhere[0]] ^= np.uint8(1)
    for place in everywhere:
        array[place] ^= np.uint8(1)
        found = verify(case.reference, volume=volume, reread=True)
        array[place] ^= np.uint8(1)
        hit = [number for number in range(len(case.plan)) if holds(case.read(number), place)]
        assert found.reread is not None
        assert (found.holds, found.exit_code, found.reread.changed) == (False, 3, len(hit))
        assert [failure.block for failure in found.reread.listed] == hit
        assert all(case.name(number) in str(found) for number in hit)
    found = verify(case.reference, volume=volume, reread=True, boxes=2)
    assert (found.holds, found.voxels > 0, found.reread) == (True, True, same_volume.VolumeComparison(len(case.plan)))


def test_verify_says_what_it_cannot_compare(case: Case, output: Path) -> None:
    forget(output, {1, 3})
    found = verify(output, volume=case.volume, reread=True, boxes=2)
    assert found.holds
    assert found.reread == same_volume.VolumeComparison(len(case.plan) - 3, unknown=2)
    assert "2 not compared because their digests are not recorded" in str(found)


def test_verify_can_be_stopped(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()

    def reread(volume: ZarrVolume, plan: Plan, block: Any) -> Outcome:
        stop.ask(2)
        return reread_block(volume, plan, block)

    monkeypatch.setattr(rereading, "reread_block", reread)
    with pytest.raises(StoppedError):
        verify(case.reference, volume=case.volume, reread=True, stop=stop)


def test_the_command_compares_with_and_without_a_path(case: Case, output: Path, changed: Callable[..., Path]) -> None:
    elsewhere = changed(corners(case.read(2))[0])
    runner = CliRunner()
    for arguments, code in ((["--volume"], 0), (["--volume", "--json"], 0), (["--volume", str(elsewhere)], 3)):
        done = runner.invoke(command, [str(output), "--boxes", "1", "--model", str(case.model), *arguments])
        assert done.exit_code == code, done.output
        assert f"comparing {len(case.plan) - 1} blocks with the volume" in done.stderr
        if "--json" in arguments:
            assert json.loads(done.stdout)["reread"]["changed"] == 0
        elif code:
            assert case.name(2) in done.stdout
