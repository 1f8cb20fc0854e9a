"""Test `emseg ingest` and `emseg export` on workers: the bytes and refusals of one process, even if workers die or stop."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from distributed import Client
from exported import STEPS, WHAT, make_output
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runs import snapshot
from stacks import save_hdf5, save_mrc, save_n5, save_png, save_precomputed
from takeover import take_over

from emseg import cli, export
from emseg.cli.export import export as command
from emseg.clusters.local import local_cluster
from emseg.flows.ingest import ingest
from emseg.flows.running import copying
from emseg.runs import dispatch
from emseg.runs.events import BlockEnded, BlockRetried, Event, RunEnded, RunStarted, WorkerLeft
from emseg.runs.stop import Stop, StoppedError
from emseg.tasks.ingesting import IngestWork
from emseg_core.box import Box, triple
from emseg_core.errors import BlockError, InputError, OrphanError, OutputError, PlanError, UnfinishedError, VolumeError
from emseg_core.grid.blocks import Block
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.exports import new_volume
from emseg_core.store.stacks.png import PngFolder
from emseg_core.store.stacks.stack import KnownStack

SHAPE = (22, 40, 50)
CHUNKED = ("n5", "precomputed")


def voxels(dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(3).integers(1, 250, shape).astype(dtype)


def save_folder(folder: Path, data: NDArray[Any]) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(data):
        tifffile.imwrite(folder / f"em_{number}.tif", pixels, compression="zlib")
    return folder


def save_gaps(folder: Path, data: NDArray[Any]) -> Path:
    save_png(folder, data)
    for number in (12, 13, 20):
        (folder / f"em_{number}.png").unlink()
    return folder


SAVED: dict[str, Callable[[Path, NDArray[Any]], object]] = {
    "s.tif": lambda path, data: tifffile.imwrite(path, data, photometric="minisblack", byteorder=">"),
    "zipped.tif": lambda path, data: tifffile.imwrite(path, data, photometric="minisblack", compression="zlib"),
    "folder": save_folder,
    "png": save_png,
    "gaps": save_gaps,
    "s.h5": save_hdf5,
    "s.mrc": save_mrc,
    "n5": save_n5,
    "precomputed": save_precomputed,
}


# a connection that Dask gives up while its cluster starts or ends leaves a socket to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Start four workers, each with as many threads as a worker of `emseg ingest`."""
    with local_cluster(4, BLOCKS_IN_FLIGHT) as client:
        yield client


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use slabs of four slices, and shards of 16 voxels along each edge."""
    monkeypatch.setattr(new_volume, "MAX_SLAB_BYTES", 4 * SHAPE[1] * SHAPE[2] * 2)
    monkeypatch.setattr(new_volume, "CHUNK_SIDE_VOXELS", 4)


@pytest.mark.parametrize("name", SAVED)
def test_the_same_bytes_as_in_one_process(tmp_path: Path, client: Client, name: str) -> None:
    source, told = tmp_path / name, list[Event]()
    SAVED[name](source, voxels())
    options: dict[str, Any] = {"allow_missing": name == "gaps", "voxel_size": (50, 4, 4)}
    one = ingest(source, tmp_path / "one.zarr", workers=0, **options)
    assert ingest(source, tmp_path / "many.zarr", client=client, on_event=told.append, **options) == one
    assert snapshot(tmp_path / "many.zarr") == snapshot(tmp_path / "one.zarr")
    ended = [event.outcome for event in told if isinstance(event, BlockEnded)]
    assert len(ended) == (2 * 3 * 4 if name in CHUNKED else 6)
    assert all(outcome.worker for outcome in ended), "workers copy; how many of them is a matter of their speed"
    assert str(os.getpid()) not in {outcome.worker.rpartition(":")[2] for outcome in ended}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "one.zarr", "many.zarr"})


@settings(max_examples=12)
@given(data=st.data())
def test_the_same_bytes_for_any_shape(tmp_path_factory: pytest.TempPathFactory, client: Client, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    shape = triple(data.draw(st.tuples(st.integers(2, 40), st.integers(2, 70), st.integers(2, 70))))
    dtype, name = data.draw(st.sampled_from(["uint8", "uint16"])), data.draw(st.sampled_from([*SAVED][:4]))
    if shape[0] == 1 and name.endswith("tif"):
        name = "folder"
    values = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 2, shape).astype(dtype)
    values[:, : data.draw(st.integers(0, 70))] = 0  # shards of only 0 are not stored
    SAVED[name](folder / name, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_volume, "MAX_SLAB_BYTES", data.draw(st.integers(1, 2 * values.nbytes)))
        ingest(folder / name, folder / "one.zarr", workers=0)
        ingest(folder / name, folder / "many.zarr", client=client)
    assert snapshot(folder / "many.zarr") == snapshot(folder / "one.zarr")


def test_workers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small volumes get none unless requested. Others get as many as cores and memory allow."""
    source, told = save_png(tmp_path / "s", voxels()), list[Event]()

    def workers() -> int:
        (started,) = (event.workers for event in told if isinstance(event, RunStarted))
        told.clear()
        return started

    ingest(source, tmp_path / "v", on_event=told.append)
    assert workers() == 0
    expected = snapshot(tmp_path / "v")
    monkeypatch.setattr(copying, "SINGLE_PROCESS_BYTES", 0)
    monkeypatch.setattr(copying, "most_workers", lambda needed: 1)
    ingest(source, tmp_path / "v", overwrite=True, on_event=told.append)
    assert workers() == 0
    monkeypatch.setattr(copying, "most_workers", lambda needed: 1 + int(needed > 2 * 4 * SHAPE[1] * SHAPE[2]))
    ingest(source, tmp_path / "v", overwrite=True, on_event=told.append)
    assert workers() == 2
    assert snapshot(tmp_path / "v") == expected


def test_arrays_stay_in_this_process(tmp_path: Path, client: Client) -> None:
    for asked in ({"workers": 2}, {"client": client}):
        with pytest.raises(PlanError, match="only this process can read an array"):
            ingest(voxels(), tmp_path / "v", **asked)
    told: list[Event] = []
    ingest(voxels(), tmp_path / "v", on_event=told.append)
    assert isinstance(told[0], RunStarted)
    assert told[0].workers == 0


def test_memory_is_checked_before_anything_is_read(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "RUNTIME_BYTES", 2**50)
    message = r"needs .* GiB of memory for 2 parts of 4 x 40 x 50 voxels, .*: use fewer workers than 4"
    with pytest.raises(PlanError, match=message):
        ingest(save_png(tmp_path / "s", voxels()), tmp_path / "v", client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def cut_zipped(path: Path) -> None:
    with tifffile.TiffFile(path) as tif:
        (place,) = tif.pages[13].dataoffsets
    damage(path, place)


def cut_chunk(path: Path) -> None:
    with h5py.File(path) as file:
        place = file["volumes/raw"].id.get_chunk_info(1).byte_offset
    damage(path, place)


def damage(path: Path, place: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: place + 20] + b"damaged" + whole[place + 27 :])


def cut_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "zipped.tif": cut_zipped,
    "folder": lambda path: cut_file(path / "em_9.tif"),
    "png": lambda path: cut_file(path / "em_17.png"),
    "s.h5": cut_chunk,
    "n5": lambda path: cut_file(path / "0" / "1" / "1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_and_leaves_nothing(tmp_path: Path, client: Client, name: str) -> None:
    source, said = tmp_path / name, []
    SAVED[name](source, voxels())
    DAMAGE[name](source)
    for placed in ({"workers": 0}, {"client": client}):
        told: list[Event] = []
        with pytest.raises(VolumeError) as caught:
            ingest(source, tmp_path / "v", on_event=told.append, **placed)
        assert "\n" not in str(caught.value)
        said.append(
            re.sub(r"slices \d+ to \d+|voxels \S+", "part", str(caught.value))[:200]
        )  # a chunk may lie in several parts
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert not any(isinstance(event, RunEnded | BlockRetried | WorkerLeft) for event in told)
    assert said[0] == said[1]


def test_slices_of_several_sizes_are_refused_before_the_first_is_copied(tmp_path: Path, client: Client) -> None:
    for name in ("folder", "png"):
        SAVED[name](tmp_path / name, voxels())
        other, suffix = tmp_path / f"other-{name}", "tif" if name == "folder" else "png"
        SAVED[name](other, voxels(shape=(22, 41, 50)))
        (other / f"em_10.{suffix}").replace(tmp_path / name / f"em_10.{suffix}")
        with pytest.raises(VolumeError, match="give all slices in"):
            ingest(tmp_path / name, tmp_path / "v", client=client)
        assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("name", ["folder", "png"])
def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, name: str) -> None:
    """Workers do not check every slice before they start, but they check those that they read."""
    SAVED[name](tmp_path / name, voxels())
    with new_volume.new_volume(tmp_path / "v", spec := _spec(), (4, 16, 16), source="s") as volume:
        known = KnownStack(spec.shape, spec.dtype)
        work = IngestWork(tmp_path / name, None, False, known, tmp_path / "v", volume.token)
        with work.opened() as (act, numerics):
            assert numerics is None
            assert act(Block(0, Box((0, 0, 0), (4, 40, 50)))).status == "done"
            SAVED[name](tmp_path / "other", voxels(shape=(22, 41, 50)))
            (file,) = (tmp_path / "other").glob("*_9.*")
            file.replace(tmp_path / name / file.name)
            outcome = act(Block(2, Box((8, 0, 0), (12, 40, 50)) if name == "folder" else Box((0, 0, 0), (4, 40, 50))))
            assert outcome.fault == "block"
            assert "give all slices in" in str(outcome.cause)
            assert outcome.seconds.write == 0
        (tmp_path / name / file.name).rename(tmp_path / name / f"em_30{file.suffix}")
        with pytest.raises(VolumeError, match=r"was \(22, 40, 50\) uint16, but is|missing"), work.opened():
            pass
        volume.discard()


def _spec() -> Any:
    return VolumeSpec(SHAPE, "uint16", (4, 4, 4), 3)


PROGRAM = """
import sys
from emseg_core.store.exports import new_volume
from emseg import export, ingest

if __name__ == "__main__":
    new_volume.MAX_SLAB_BYTES, new_volume.CHUNK_SIDE_VOXELS = 4 * 40 * 50 * 2, 4
    {"export": export, "ingest": ingest}[sys.argv[1]](sys.argv[2], sys.argv[3], workers=2)
"""


def run_dying(tmp_path: Path, what: str, source: Path, file: int, death: str) -> subprocess.CompletedProcess[str]:
    """Run two workers, one of which dies in the middle of its n-th file, and return how the command ended."""
    environment = {
        **os.environ,
        "DASK_DISTRIBUTED__WORKER__PRELOAD": str(Path(__file__).parents[3] / "dying_writer.py"),
        "EMSEG_TEST_ONCE": str(tmp_path / "died"),
        "EMSEG_TEST_FILE": str(file),
        "EMSEG_TEST_DEATH": death,
    }
    words = [sys.executable, "-c", PROGRAM, what, str(source), str(tmp_path / "v.zarr")]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, start_new_session=True, timeout=120)
    (tmp_path / "died").unlink()  # so one of them has
    return ended


def test_a_worker_that_dies_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """Another worker copies its part, and its half-written file is removed."""
    source = save_png(tmp_path / "s", voxels())
    ingest(source, tmp_path / "whole.zarr", workers=0)
    ended = run_dying(tmp_path, "ingest", source, 14, "one")
    assert ended.returncode == 0, ended.stderr
    assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "v.zarr", "whole.zarr"]


def test_what_was_killed_with_its_workers_goes_on(tmp_path: Path) -> None:
    source, told = save_png(tmp_path / "s", voxels()), list[Event]()
    ingest(source, tmp_path / "whole.zarr", workers=0)
    ended = run_dying(tmp_path, "ingest", source, 26, "all")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (left,) = tmp_path.glob(".emseg-*")
    assert list(left.rglob("*.partial"))
    ingest(source, tmp_path / "v.zarr", workers=0, on_event=told.append)
    assert 0 < sum(isinstance(event, BlockEnded) for event in told) < 6
    assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "v.zarr", "whole.zarr"]


@pytest.mark.parametrize("with_workers", [False, True])
def test_what_was_stopped_goes_on(tmp_path: Path, request: pytest.FixtureRequest, with_workers: bool) -> None:
    source, stop, ended = save_hdf5(tmp_path / "s.h5", voxels(shape=(90, 40, 50))), Stop(), []
    placed = {"client": request.getfixturevalue("client")} if with_workers else {"workers": 0}
    ingest(source, tmp_path / "whole.zarr", workers=0)

    def observe(event: Event) -> None:
        if isinstance(event, BlockEnded):
            ended.append(event.outcome.block)
            stop.ask(signal.SIGTERM)

    with pytest.raises(StoppedError) as caught:
        ingest(source, tmp_path / "v.zarr", stop=stop, on_event=observe, **placed)
    assert caught.value.number == signal.SIGTERM
    assert not (tmp_path / "v.zarr").exists()
    stop, before = Stop(), set(ended)
    ended.clear()
    ingest(source, tmp_path / "v.zarr", stop=Stop(), on_event=lambda event: observe(event) if not ended else None, **placed)
    assert not before & set(ended)
    assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")


def test_two_at_once(tmp_path: Path) -> None:
    """The second one is refused, and the first one is not affected."""
    source, refused = save_mrc(tmp_path / "s.mrc", voxels()), []
    ingest(source, tmp_path / "whole.zarr", workers=0)

    def second(event: Event) -> None:
        if isinstance(event, BlockEnded):
            with pytest.raises(OutputError, match=r"v\.zarr is in use by run 1, process \d+ on .*: wait for it or stop it"):
                ingest(source, tmp_path / "v.zarr", workers=0)
            refused.append(event)

    ingest(source, tmp_path / "v.zarr", workers=0, on_event=second)
    assert len(refused) == 6
    assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")


def test_who_was_taken_for_dead_leaves_all_to_the_next(tmp_path: Path, client: Client) -> None:
    source = save_mrc(tmp_path / "s.mrc", voxels())

    def follow(event: Event) -> None:
        if isinstance(event, RunStarted):
            (folder,) = tmp_path.glob(".emseg-*")
            take_over(folder)

    with pytest.raises(OrphanError, match="run 1 may not write any more, as run 2 has taken over"):
        ingest(source, tmp_path / "v.zarr", client=client, on_event=follow)
    (folder,) = tmp_path.glob(".emseg-*")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"zarr.json", "lease.json", "identity.json"}


def test_a_disk_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, told, known = save_png(tmp_path / "s", voxels()), list[Event](), PngFolder.read
    away = iter([True, False, True])

    def read(self: PngFolder, start: int, stop: int) -> NDArray[Any]:
        if next(away, False):
            raise VolumeError("no slice can be read") from OSError(errno.EIO, os.strerror(errno.EIO))
        return known(self, start, stop)

    monkeypatch.setattr(PngFolder, "read", read)
    monkeypatch.setattr(dispatch, "RETRY_DELAYS_SECONDS", (0.01,) * 7)
    ingest(source, tmp_path / "v.zarr", workers=0, on_event=told.append)
    assert sum(isinstance(event, BlockRetried) for event in told) == 2
    away = iter([False, *[True] * 1000])
    monkeypatch.setattr(dispatch, "MAX_OUTAGE_SECONDS", 0.05)
    with pytest.raises(UnfinishedError, match="no slice can be read: run the same command again"):
        ingest(source, tmp_path / "w.zarr", workers=0)
    away = iter([])
    told.clear()
    ingest(source, tmp_path / "w.zarr", workers=0, on_event=told.append)
    assert sum(isinstance(event, BlockEnded) for event in told) == 5
    assert snapshot(tmp_path / "w.zarr") == snapshot(tmp_path / "v.zarr")


def test_what_is_not_complete_has_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unfinished(*_: object, **__: object) -> None:
        raise UnfinishedError("v.zarr lacks 2 of 6 parts: run the same command again")

    monkeypatch.setattr("emseg.flows.ingest.ingest", unfinished)
    monkeypatch.setattr(sys, "argv", ["emseg", "ingest", str(tmp_path), str(tmp_path / "v.zarr")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert capsys.readouterr().err == "error: v.zarr lacks 2 of 6 parts: run the same command again\n"


def test_a_source_that_workers_cannot_open(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_mrc(tmp_path / "s.mrc", voxels())

    def remove(event: Event) -> None:
        if isinstance(event, RunStarted):
            source.unlink()

    with pytest.raises(InputError, match=r"s\.mrc"):
        ingest(source, tmp_path / "v", client=client, on_event=remove)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize("file_format", ["ome-zarr-0.4", "ome-zarr-0.5", "precomputed"])
@pytest.mark.parametrize("what", WHAT)
def test_exports_have_the_same_bytes(output: Path, tmp_path: Path, client: Client, what: str, file_format: Any) -> None:
    told: list[Event] = []
    one = export(output, tmp_path / "one", file_format=file_format, workers=0, **WHAT[what])
    many = export(output, tmp_path / "many", file_format=file_format, client=client, on_event=told.append, **WHAT[what])
    assert snapshot(many) == snapshot(one)
    ended = [event.outcome for event in told if isinstance(event, BlockEnded)]
    assert len(ended) > len(STEPS) == sum(isinstance(event, RunStarted) for event in told)
    assert str(os.getpid()) not in {outcome.worker.rpartition(":")[2] for outcome in ended}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_a_damaged_output_is_one_line_and_leaves_nothing(output: Path, tmp_path: Path, client: Client) -> None:
    damaged, said = Path(shutil.copytree(output, tmp_path / "damaged")), set()
    cut_file(min(path for path in (damaged / "labels" / "classes" / "1" / "c").rglob("*") if path.is_file()))
    for file_format, placed in itertools.product(("ome-zarr-0.5", "precomputed"), ({"workers": 0}, {"client": client})):
        with pytest.raises(BlockError, match=r"of a level of .*damaged cannot be read .*repair it") as caught:
            export(damaged, tmp_path / "made", file_format=file_format, **placed)  # type: ignore[arg-type]
        said.add(str(caught.value).partition(" of a level")[2])
        assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
    assert len(said) == 1


def test_an_export_whose_worker_dies_in_the_middle_of_a_file(output: Path, tmp_path: Path) -> None:
    export(output, tmp_path / "whole.zarr", workers=0)
    ended = run_dying(tmp_path, "export", output, 1, "one")
    assert ended.returncode == 0, ended.stderr
    assert snapshot(tmp_path / "v.zarr") == snapshot(tmp_path / "whole.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.zarr", "whole.zarr"]


@pytest.mark.parametrize("name", ["made.tif", "made.zarr"])
def test_an_export_that_is_stopped_leaves_nothing(
    output: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = Stop()
    stop.ask(signal.SIGINT)
    with pytest.raises(StoppedError) as caught:
        export(output, tmp_path / name, workers=0, stop=stop)
    assert caught.value.number == signal.SIGINT
    monkeypatch.setattr("emseg.cli.terminal.Stop", lambda: stop)
    with pytest.raises(SystemExit) as left:
        command.main([str(output), str(tmp_path / name), "--workers", "0"], standalone_mode=False)
    assert left.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines()[-1] == "stopped. Nothing is kept; run the same command again to start over"
    assert not list(tmp_path.iterdir())
