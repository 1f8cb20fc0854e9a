"""Test runs on volumes of an object store: the bytes of a run on a local copy, even if the store is away for a while."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from object_store import BUCKET, DENIED, ObjectStore, object_store
from runs import PLANAR, bytes_of, free_port, save_random_model, shards, snapshot, texture

from emseg import segment
from emseg.cli import main
from emseg.flows.repair import repair
from emseg.flows.running.output_location import check_output_place, default_output
from emseg.flows.status import status
from emseg.flows.verify import verify
from emseg.runs import dispatch
from emseg.runs.events import BlockRetried, Event
from emseg_core.errors import VolumeError
from emseg_core.store.files.place import parse_place

SHAPE = (6, 40, 56)
VOLUMES: dict[str, dict[str, Any]] = {
    "v2.zarr": {"zarr_format": 2},
    "sharded.zarr": {"shards": (8, 32, 32)},
    "image.zarr/1": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make volumes with the same voxels, and a network."""
    folder = tmp_path_factory.mktemp("local")
    scales = [{"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1, 2**n, 2**n]}]} for n in range(2)]
    multiscales = [{"axes": [{"name": name, "type": "space"} for name in "zyx"], "datasets": scales}]
    image = zarr.create_group(folder / "image.zarr", attributes={"ome": {"version": "0.5", "multiscales": multiscales}})
    image.create_array("0", data=texture((6, 80, 112)), chunks=(6, 80, 112))
    for name, options in VOLUMES.items():
        array = zarr.create_array(folder / name, shape=SHAPE, dtype="uint8", chunks=(4, 16, 16), **options)
        array[:] = texture(SHAPE)
    save_random_model(folder / "model.safetensors", PLANAR)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[ObjectStore]:
    """Start a store with copies of them."""
    with object_store() as store:
        for name in ("v2.zarr", "sharded.zarr", "image.zarr"):
            store.upload(folder / name, f"em/{name}")
        yield store


@pytest.fixture(autouse=True)
def _willing(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    yield
    store.willing()


def run(folder: Path, volume: str | Path, output: Path, workers: int = 0, **settings: Any) -> dict[str, str]:
    """Run, and return the bytes of the output."""
    report = segment(volume, output, model=folder / "model.safetensors", workers=workers, **settings)
    assert (report.exit_code, report.left) == (0, 0)
    return bytes_of(output)


def until_tried_again(failed: threading.Event) -> Callable[[Event], None]:
    """Return an observer that signals when a block is to be tried again."""
    return lambda event: failed.set() if isinstance(event, BlockRetried) else None


@pytest.fixture(scope="module")
def truth(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return the bytes of each volume's output, run from its local copy."""
    made = tmp_path_factory.mktemp("truth")
    return {name: run(folder, folder / name, made / name.replace("/", "-")) for name in VOLUMES}


@pytest.mark.parametrize("name", VOLUMES)
def test_same_bytes_as_from_a_local_copy(
    name: str, folder: Path, store: ObjectStore, truth: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with store.counting() as asked:
        assert run(folder, store.address(f"em/{name}"), tmp_path / "out") == truth[name]
    assert all(request.startswith("GET ") and "?" not in request for request in asked)


def test_one_channel_of_several(folder: Path, store: ObjectStore, tmp_path: Path) -> None:
    """It is chosen by name. Workers read no chunk of the other one."""
    scale = {"type": "scale", "scale": [1, 40, 4, 4]}
    multiscales = [
        {
            "axes": [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "zyx")],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
    ]
    omero = {"channels": [{"label": "DAPI"}, {"label": "EM"}]}
    image = zarr.create_group(
        tmp_path / "v.zarr", attributes={"ome": {"version": "0.5", "multiscales": multiscales, "omero": omero}}
    )
    both = np.stack([texture(SHAPE, seed=1), texture(SHAPE)])
    image.create_array("0", data=both, chunks=(1, 4, 16, 16))
    address = store.upload(tmp_path / "v.zarr", "em/channels.zarr")
    made = {}
    for place, workers in ((tmp_path / "v.zarr", 0), (address, 2)):
        output = tmp_path / f"out-{workers}"
        with store.counting() as asked:
            report = segment(place, output, channel="EM", model=folder / "model.safetensors", workers=workers)
        assert (report.exit_code, report.left) == (0, 0)
        assert not any("/c/0/" in request for request in asked)
        assert any("/c/1/" in request for request in asked) == bool(workers)
        made[workers] = bytes_of(output)
    assert made[0] == made[2]
    assert verify(tmp_path / "out-2", boxes=1).holds


def test_same_bytes_from_workers_while_the_store_is_away(
    folder: Path, store: ObjectStore, truth: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away until a block has failed. All it returns afterwards is correct."""
    monkeypatch.setattr(dispatch, "RETRY_DELAYS_SECONDS", (0.5,) * 7)
    gone, failed = threading.Event(), threading.Event()

    def away(key: str, signed: bool) -> str:
        if "v2.zarr/0." in key and (tmp_path / "out" / "emseg" / "run-0001").exists():
            gone.set()
        return "503 Slow Down" if gone.is_set() and not failed.is_set() else ""

    store.refuse = away
    address, model = store.address("em/v2.zarr"), folder / "model.safetensors"
    report = segment(address, tmp_path / "out", model=model, workers=2, on_event=until_tried_again(failed))
    assert gone.is_set()
    assert (report.exit_code, report.left, report.failed) == (0, 0, 0)
    assert report.retried
    assert bytes_of(tmp_path / "out") == truth["v2.zarr"]


def test_a_store_that_stops_listening_for_a_while(
    folder: Path, store: ObjectStore, truth: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "RETRY_DELAYS_SECONDS", (0.5,) * 7)
    gone, failed = threading.Event(), threading.Event()
    restarts: list[threading.Thread] = []

    def away(key: str, signed: bool) -> str:
        if "/c/" in key and (tmp_path / "out" / "emseg" / "run-0001").exists() and not gone.is_set():
            gone.set()
            restarts.append(threading.Thread(target=lambda: (again := store.stop(), failed.wait(), again())))
            restarts[0].start()
        return ""

    store.refuse = away
    found = run(folder, store.address("em/sharded.zarr"), tmp_path / "out", on_event=until_tried_again(failed))
    assert found == truth["sharded.zarr"]
    assert gone.is_set()
    restarts[0].join()
    kept = [json.loads(line) for line in (tmp_path / "out/emseg/run-0001/00000.jsonl").read_text().splitlines()]
    assert any("Connection refused" in line.get("cause", "") or "connection" in line.get("cause", "") for line in kept)


def test_what_began_with_a_copy_goes_on_with_the_other(
    folder: Path, store: ObjectStore, truth: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """A volume is identified by its voxels, not its path. The record has the newest path."""
    output, address = tmp_path / "out", store.address("em/v2.zarr")
    run(folder, folder / "v2.zarr", output)
    shards(output)[1].unlink()
    assert run(folder, address, output) == truth["v2.zarr"]
    assert status(output).volume == address
    shards(output)[0].write_bytes(shards(output)[0].read_bytes()[:-9])
    assert repair(output, workers=0).repaired == 1
    assert bytes_of(output) == truth["v2.zarr"]
    store.refuse = lambda key, signed: DENIED
    with pytest.raises(VolumeError, match=f"{address} cannot be read"):
        verify(output, boxes=1)


def emseg(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command line in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["emseg", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_on_the_command_line(
    folder: Path,
    store: ObjectStore,
    truth: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The output of a remote volume is created in the current folder, with the volume's name."""
    image, model = store.address("em/image.zarr"), str(folder / "model.safetensors")
    run_words = ("run", image, "--level", "1", "--model", model, "--workers", "0")
    assert emseg(monkeypatch, *run_words) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["image-1.emseg.zarr"]
    assert bytes_of(tmp_path / "image-1.emseg.zarr") == truth["image.zarr/1"]
    assert f"{image}/1" in (tmp_path / "image-1.emseg.zarr/emseg/run-0001/00000.jsonl").read_text()
    assert emseg(monkeypatch, *run_words) == 0
    assert emseg(monkeypatch, "verify", "image-1.emseg.zarr", "--boxes", "2", "--volume", f"{image}/1") == 0
    monkeypatch.setattr(sys, "argv", ["emseg", "plan", f"{image}/1", "--model", model])
    main()
    monkeypatch.setattr(sys, "argv", ["emseg", "preview", "image-1.emseg.zarr"])
    main()
    out = capsys.readouterr().out
    assert "0:6,0:40,0:56" in out
    assert (tmp_path / "image-1.emseg.zarr.png").is_file()


REFUSED = {
    "run s3://no-such-bucket/v.zarr": "there is no such bucket",
    f"run s3://{BUCKET}/em/none.zarr": "is not a Zarr: check the spelling",
    f"plan s3://{BUCKET}/em/none.zarr": "is not a Zarr: check the spelling",
    f"run s3://{BUCKET}/denied.zarr": "403 Forbidden, AccessDenied",
    "run ftp://host/v.zarr": "but emseg reads s3://",
    "run http://127.0.0.1:NOBODY/v.zarr": "Connection refused",
    f"run s3://{BUCKET}/em/v2.zarr -o http://127.0.0.1/out.zarr": "is on a web server",
    f"run s3://{BUCKET}/em/v2.zarr --level 1": "is not an OME-Zarr image",
    "status s3://volumes/out.zarr": "there is none of zarr.json, .zarray, .zgroup at s3://volumes/out.zarr",
    "verify s3://volumes/out.zarr": "there is none of zarr.json",
    "ingest s3://volumes/em/v2.zarr copy.zarr": "address of a remote store",
    f"submit s3://{BUCKET}/em/v2.zarr -o http://b/o.zarr --dry-run --workers 1 --memory 1G": "is on a web server",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line_and_nothing_written(
    command: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.refuse = lambda key, signed: DENIED if key.startswith("denied") else ""
    words = command.replace("NOBODY", str(free_port())).split()
    assert emseg(monkeypatch, *words, *(("--workers", "0") if words[0] == "run" else ())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert REFUSED[command] in line
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("volume", "name"),
    [
        ("s3://bucket/a/v.zarr", "v.emseg.zarr"),
        ("https://host/v.ome.zarr", "v.emseg.zarr"),
        ("s3://bucket/a/v.zarr/em/s2", "v-em-s2.emseg.zarr"),
        ("gs://bucket/raw", "raw.emseg.zarr"),
        ("gs://bucket", "bucket.emseg.zarr"),
    ],
)
def test_the_place_of_an_output(volume: str, name: str, tmp_path: Path) -> None:
    assert default_output(parse_place(volume)) == Path.cwd() / name
    check_output_place(tmp_path / "o", parse_place(volume))
