"""Test outputs on an object store: killed, resumed, repaired, or with the store away, they have the bytes of a local run."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, DENIED, ObjectStore, object_store
from runs import PLANAR, bytes_of, save_random_model, save_volume, snapshot, texture

from emseg import label, segment, status
from emseg.cli import main
from emseg.flows.repair import repair, verify_checksums
from emseg.flows.verify import verify
from emseg.runs import dispatch
from emseg.runs.events import BlockEnded, Event, Noticed, RunStarted
from emseg.runs.stop import Stop
from emseg_core.errors import OutputError
from emseg_core.store.files import remote
from emseg_core.store.files.files import open_files, open_writable_files
from emseg_core.store.files.lease import take_lease
from emseg_core.store.files.place import parse_place
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (6, 60, 280)
RUN: dict[str, Any] = {"probabilities": True, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume and a network."""
    folder = tmp_path_factory.mktemp("local")
    save_volume(folder / "volume.zarr", texture(SHAPE), (10, 32, 32), voxel_size=[50, 4, 4], units="nm")
    save_random_model(folder / "model.safetensors", PLANAR)
    return folder


@pytest.fixture(scope="module")
def truth(folder: Path) -> Path:
    """Make the output of a run to disk, with instance labels."""
    report = segment(folder / "volume.zarr", folder / "truth.zarr", model=folder / "model.safetensors", **RUN)
    assert (report.exit_code, report.left) == (0, 0)
    assert label(folder / "truth.zarr", workers=0).exit_code == 0
    return folder / "truth.zarr"


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[ObjectStore]:
    """Start a store with a copy of the volume."""
    with object_store() as store:
        store.upload(folder / "volume.zarr", "em/volume.zarr")
        store.put("other/notes.txt", b"kept")
        yield store


@pytest.fixture(autouse=True)
def _willing(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    yield
    store.willing()


@pytest.fixture
def output(store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """Return an address with nothing at it."""
    return store.address(f"out/{request.node.name}.zarr")


def stored(store: ObjectStore, address: str, into: Path) -> dict[str, str]:
    """Return the digest of each object of an output, except its run records, as for a copy on disk."""
    files = open_files(parse_place(address))
    for name in files.names():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(files.read(name) or b"")
    return bytes_of(into)


def without_instances(found: dict[str, str]) -> dict[str, str]:
    """Return the digests without those of instance labels."""
    own = ("labels/instances", "emseg/instances", "emseg/zarr.json", "labels/zarr.json")
    return {name: digest for name, digest in found.items() if not name.startswith(own)}


def test_same_bytes_as_on_a_disk(folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path) -> None:
    """Volume and output are on the store. Instance labels and all commands that read an output follow."""
    volume = store.address("em/volume.zarr")
    report = segment(volume, output, model=folder / "model.safetensors", **RUN)
    assert (report.exit_code, report.left, report.unbuilt) == (0, 0, 0)
    assert without_instances(stored(store, output, tmp_path / "a")) == without_instances(bytes_of(truth))
    labelled = label(output, workers=0)
    assert (labelled.exit_code, str(labelled.instances)) == (0, f"{output}/labels/instances")
    assert stored(store, output, tmp_path / "b") == bytes_of(truth)
    assert label(output, workers=0).segments == labelled.segments, "there is nothing left to do"
    found = status(output)
    assert (found.done, found.volume, found.state) == (found.blocks, volume, "released")
    assert verify(output, boxes=2).holds
    assert verify_checksums(output).holds
    with store.counting() as asked:
        again = segment(volume, output, model=folder / "model.safetensors", **RUN)
    assert again.exit_code == 0
    assert not [request for request in asked if request.startswith(("PUT", "POST", "DELETE"))], "a look changes nothing"


def test_same_bytes_from_workers_with_a_mask_and_a_region(
    folder: Path, store: ObjectStore, output: str, tmp_path: Path
) -> None:
    mask = texture(SHAPE) * 0
    mask[:, :, :100] = 1
    save_volume(tmp_path / "mask.zarr", mask, (10, 32, 32))
    options = {"model": folder / "model.safetensors", "roi": "1:6,10:60,0:280", "mask": tmp_path / "mask.zarr"}
    for place, workers in ((output, 2), (tmp_path / "disk.zarr", 0)):
        report = segment(folder / "volume.zarr", place, workers=workers, **options)  # type: ignore[arg-type]
        assert report.exit_code == 0
        assert report.outside
    assert stored(store, output, tmp_path / "copy") == bytes_of(tmp_path / "disk.zarr")


class Killed(BaseException):
    """The driver dies at this moment, without a message."""


@pytest.mark.parametrize("after", [0, 1, 5])
def test_killed_and_resumed(
    after: int, folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends, so its lease is dead. Complete objects remain and are not computed again."""
    ended = 0

    def watch(event: Event) -> None:
        nonlocal ended
        if isinstance(event, BlockEnded):
            ended += 1
            if ended > after:
                raise Killed

    model = folder / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("emseg_core.store.files.lease.Lease._put", lambda *_, **__: None)  # it does not release its lease either
        with pytest.raises(Killed):
            segment(folder / "volume.zarr", output, model=model, on_event=watch, **RUN)
    assert status(output).state == "held", "as this process lives"
    monkeypatch.setattr("emseg_core.store.files.lease.Holder.dead", lambda *_: True)
    report = segment(folder / "volume.zarr", output, model=model, **RUN)
    assert (report.exit_code, report.skipped) == (0, after + 1)
    assert without_instances(stored(store, output, tmp_path / "copy")) == without_instances(bytes_of(truth))
    assert status(output).run == 2


def test_killed_while_it_is_made(folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path) -> None:
    """Nothing is an output before it is complete. The next run creates it."""

    def refuse(key: str, signed: bool) -> str:
        return DENIED if key.endswith("labels/classes/0/zarr.json") else ""

    store.refuse = refuse
    with pytest.raises(OutputError, match=f"{output} cannot be written .403 Forbidden"):
        segment(folder / "volume.zarr", output, model=folder / "model.safetensors", **RUN)
    store.willing()
    assert "zarr.json" not in open_files(parse_place(output)).entries()
    assert not [name for name in open_files(parse_place(output)).names("emseg/run-") if name.endswith("lease.json")]
    report = segment(folder / "volume.zarr", output, model=folder / "model.safetensors", **RUN)
    assert report.exit_code == 0
    assert without_instances(stored(store, output, tmp_path / "copy")) == without_instances(bytes_of(truth))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_store_stops_listening_for_a_while(
    workers: int,
    folder: Path,
    store: ObjectStore,
    truth: Path,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The outage is longer than the retries of a request. Blocks are tried again after it, and nothing is lost."""
    monkeypatch.setattr(dispatch, "RETRY_DELAYS_SECONDS", (0.5,) * 7)
    monkeypatch.setitem(remote.LONG_RETRIES, "max_retries", 3)
    restarts: list[threading.Thread] = []

    def restart() -> None:
        again = store.stop()
        time.sleep(3)
        again()

    def away(key: str, signed: bool) -> str:
        if "labels/classes/0/c/" in key and not restarts:
            restarts.append(threading.Thread(target=restart))
            restarts[0].start()
        return ""

    store.refuse = away
    options = {**RUN, "workers": workers}
    report = segment(store.address("em/volume.zarr"), output, model=folder / "model.safetensors", **options)
    restarts[0].join()
    assert (report.exit_code, report.left, report.failed) == (0, 0, 0)
    assert without_instances(stored(store, output, tmp_path / "copy")) == without_instances(bytes_of(truth))


def test_one_run_at_a_time(folder: Path, store: ObjectStore, output: str) -> None:
    """The lease is taken before the output exists. The run that lost it is told so."""
    model, place = folder / "model.safetensors", parse_place(output)
    with take_lease(Records(open_writable_files(place)), place).held() as lease:
        assert open_files(place).entries() == ["emseg"]
        with pytest.raises(OutputError, match="is in use by run 1"):
            segment(folder / "volume.zarr", output, model=model, **RUN)
        assert lease.run == 1
    assert segment(folder / "volume.zarr", output, model=model, **RUN).exit_code == 0
    assert status(output).run == 2


def test_what_was_in_flight_when_a_run_began_does_not_stay(
    folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path
) -> None:
    """Objects of an earlier output arrive before or after this one sends its own: labels, probabilities, levels."""
    key, late, stages = output.removeprefix(f"s3://{BUCKET}/"), list[str](), list[str]()

    def arrive(*names: str) -> None:
        for name in names:
            late.append(name)
            store.put(f"{key}/{name}", b"of another model" * 100)

    def watch(event: Event) -> None:
        match event:
            case RunStarted(stage=stage) if stage not in stages:  # a stage that is sent again is another stage
                stages.append(stage)
                level = len(stages) - 1
                arrive(f"labels/classes/{level}/c/0/0/0", f"probabilities/{level}/c/0/0/0/0")  # before it sends its own
            case BlockEnded(outcome) if outcome.block == 1 and len(late) == 2:
                arrive("labels/classes/0/c/0/0/1", "probabilities/0/c/0/0/0/1")  # after
            case BlockEnded() if len(stages) == 2 and len(late) == 6:
                arrive("labels/classes/1/c/0/0/0")

    model, volume = folder / "model.safetensors", folder / "volume.zarr"
    report = segment(volume, output, model=model, on_event=watch, **RUN)
    assert (report.exit_code, report.left, report.unbuilt) == (0, 0, 0)
    assert len(stages) > 1
    assert without_instances(stored(store, output, tmp_path / "copy")) == without_instances(bytes_of(truth))


def test_no_request_to_write_begins_once_another_output_is_there(
    folder: Path, store: ObjectStore, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older run continues until it checks, and ends with all blocks that it has not sent."""
    model, other = folder / "model.safetensors", folder / "other.safetensors"
    save_random_model(other, PLANAR, 9)
    key, done = output.removeprefix(f"s3://{BUCKET}/"), list[int]()

    def replace(event: Event) -> None:
        if isinstance(event, BlockEnded) and not done:
            done.append(event.outcome.block)
            for name in store.bucket.list(key).collect():
                store.remove(name["path"])
            assert segment(folder / "volume.zarr", output, model=other, **RUN).exit_code == 0
            done.append(len(store.asked))

    told: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, Noticed):
            told.append(event.message)
        replace(event)

    report = segment(folder / "volume.zarr", output, model=model, on_event=watch, **RUN)
    assert report.exit_code == 3
    assert report.left
    assert any("another output is in its place: stopping this run" in line for line in told)
    written = [line for line in store.asked[done[1] :] if line.startswith(("PUT", "DELETE", "POST"))]
    assert not [line for line in written if key in line], written
    assert segment(folder / "volume.zarr", output, model=other, **RUN).exit_code == 0


def test_begun_anew(folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path) -> None:
    model = folder / "model.safetensors"
    assert segment(folder / "volume.zarr", output, model=model, workers=0).exit_code == 0
    assert label(output, method="components", workers=0).exit_code == 0
    with pytest.raises(OutputError, match="was started with other settings"):
        segment(folder / "volume.zarr", output, model=model, **RUN)
    assert segment(folder / "volume.zarr", output, model=model, overwrite=True, **RUN).exit_code == 0
    again = open_output(output)
    assert (again.generation, again.keeps_probabilities) == (2, True)
    whole, same = again.read_labels(again.region), open_output(truth)
    assert (whole == same.read_labels(same.region)).all()
    assert open_files(parse_place(output)).entries("labels") == ["classes-2", "zarr.json"]


def test_repaired(folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path) -> None:
    """One object is damaged and one missing. Everything made from them is restored."""
    assert segment(folder / "volume.zarr", output, model=folder / "model.safetensors", **RUN).exit_code == 0
    files = open_files(parse_place(output))
    first, *_, last = [name for name, _ in files.sizes("labels/classes/0/c")]
    damaged = bytearray(files.read(f"labels/classes/0/c/{first}") or b"")
    damaged[20] ^= 255
    files.put(f"labels/classes/0/c/{first}", bytes(damaged))
    files.remove(f"labels/classes/0/c/{last}")
    found = verify_checksums(output)
    assert (len(found.damaged), found.missing) == (1, 1)
    assert repair(output, workers=0).repaired == 2
    assert without_instances(stored(store, output, tmp_path / "copy")) == without_instances(bytes_of(truth))


def test_all_else_is_repaired(folder: Path, store: ObjectStore, truth: Path, output: str, tmp_path: Path) -> None:
    """Metadata, a table and a part of instance labels are missing, and metadata are damaged."""
    store.upload(truth, output.removeprefix(f"s3://{BUCKET}/"))
    files = open_files(parse_place(output))
    shard = next(name for name, _ in files.sizes("labels/instances/0/c"))
    for name in ("zarr.json", "labels/zarr.json", "labels/instances/zarr.json", f"labels/instances/0/c/{shard}"):
        files.remove(name)
    files.put("probabilities/0/zarr.json", (files.read("probabilities/0/zarr.json") or b"")[:-2])
    files.put("emseg/instances.csv", b"id\n")
    found = verify_checksums(output)
    assert found.exit_code == 3
    assert len(found.files_damaged) == 5, found
    assert repair(output, workers=0).holds
    assert stored(store, output, tmp_path / "copy") == bytes_of(truth)


def emseg(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command line in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["emseg", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_on_the_command_line(
    folder: Path,
    store: ObjectStore,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Files beside an output go into the current folder."""
    volume, model = str(folder / "volume.zarr"), str(folder / "model.safetensors")
    for words in (
        ("run", volume, "-o", output, "--model", model, "--workers", "0", "--probabilities", "--instances"),
        ("status", output),
        ("status", output, "--json"),
        ("verify", output, "--boxes", "1"),
        ("verify", output, "--checksums"),
        ("preview", output),
        ("report", output),
        ("evaluate", output, "--seams"),
        ("export", output, "labels.tif"),
        ("export", output, "ids.zarr", "--instances", "instances"),
    ):
        assert emseg(monkeypatch, *words) in (0, 3 if "--seams" in words else 0), capsys.readouterr().err
    name = output.rpartition("/")[2]
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {f"{name}.png", f"{name}.report.html", "labels.tif", "ids.zarr"}
    assert f'"output": "{output}"' in capsys.readouterr().out


REFUSED = {
    "-o http://127.0.0.1/out.zarr": "is on a web server, but emseg writes only to s3:// and gs://",
    "-o s3://no-such-bucket/out.zarr": "there is no such bucket",
    f"-o s3://{BUCKET}/denied.zarr": "lease.json cannot be written (403 Forbidden, AccessDenied): set credentials",
    f"-o s3://{BUCKET}/other": "s3://volumes/other already exists, but no run can resume there",
    f"-o s3://{BUCKET}/em": "lies inside the output",
    f"-o s3://{BUCKET}/em/volume.zarr": "lies inside the volume",
    f"-o s3://{BUCKET}/em/volume.zarr/out": "lies inside the volume",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line_and_nothing_written(
    words: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.refuse = lambda key, signed: DENIED if "denied" in key else ""
    before = [meta["path"] for some in store.bucket.list() for meta in some]
    assert emseg(monkeypatch, "run", store.address("em/volume.zarr"), *words.split(), "--workers", "0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert REFUSED[words] in line
    assert snapshot(tmp_path) == {}
    store.willing()
    assert [meta["path"] for some in store.bucket.list() for meta in some] == before


def test_a_store_that_is_away_is_told_of_at_once(
    folder: Path, store: ObjectStore, output: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a run that has started waits for the store."""
    again = store.stop()
    began = time.monotonic()
    try:
        words = ("run", str(folder / "volume.zarr"), "-o", output, "--workers", "0")
        assert emseg(monkeypatch, *words, "--model", str(folder / "model.safetensors")) == 2
    finally:
        again()
    assert "onnection refused" in capsys.readouterr().err
    assert time.monotonic() < began + 30


def denying(part: str) -> Callable[[str, bool], str]:
    """Refuse keys with this ending, as an object store without that permission does."""
    return lambda key, signed: DENIED if key.endswith(part) else ""


def test_an_output_that_cannot_be_read_is_not_called_damaged(folder: Path, store: ObjectStore, output: str) -> None:
    assert segment(folder / "volume.zarr", output, model=folder / "model.safetensors", **RUN).exit_code == 0
    for part in (f"{output.rpartition('/')[2]}/zarr.json", "labels/classes/0/zarr.json", "probabilities/1/zarr.json"):
        store.refuse = denying(part)
        with pytest.raises(OutputError, match=f"{output} cannot be read .403 Forbidden, AccessDenied.: set credentials"):
            open_output(output)
    store.willing()
    open_output(output)


def test_stopped_and_gone_on_with(folder: Path, store: ObjectStore, output: str) -> None:
    """The lease is released."""
    stop = Stop()
    told = segment(
        *(folder / "volume.zarr", output),
        model=folder / "model.safetensors",
        stop=stop,
        on_event=lambda event: stop.ask(signal.SIGTERM) if isinstance(event, BlockEnded) else None,
        **RUN,
    )
    assert told.exit_code == 128 + signal.SIGTERM
    assert status(output).state == "released"
    assert segment(folder / "volume.zarr", output, model=folder / "model.safetensors", **RUN).exit_code == 0
