"""Test a run over several hosts: a host with its certificate joins with the printed command, and no other can connect."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from distributed import Client, Security
from runs import bytes_of, emseg_process, free_port, own_address, run_emseg, save_volume, shards, slowed, texture

from emseg.clusters.certificates import run_security
from emseg.clusters.local import LOOPBACK
from emseg.executors import dask
from emseg.flows.records.run_log import lines_of
from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event, Noticed
from emseg_core.store.outputs.lifecycle import open_output


def joined(output: Path) -> set[str]:
    """Return each worker that a run recorded."""
    return {line["worker"] for line in lines_of(open_output(output), 1) if line["event"] == "joined"}


def test_a_worker_joins_with_the_printed_command_and_strangers_do_not(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
    run_emseg("run", "volume.zarr", "-o", "alone.zarr", "--workers", "0", cwd=tmp_path)
    options = ("--host", own_address(), "--workers", "1", "--json")
    run = emseg_process("run", "volume.zarr", "-o", "out.zarr", *options, cwd=tmp_path, env=slowed(0.5))
    assert run.stderr is not None
    said = run.stderr.readline()
    start = "note: another host joins with: "
    assert said.startswith(start)
    command = shlex.split(said.removeprefix(start))
    address = next(word for word in command if word.startswith("tls://"))
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    assert len(list(tmp_path.glob(".out.zarr.tls-*"))) == 1
    with run_security(tmp_path / "other") as other:
        for where, security in ((address.replace("tls", "tcp"), Security()), (address, other)):
            with pytest.raises(OSError):  # noqa: PT011  in the words of whatever layer meets it first
                Client(where, security=security, timeout="2s")
    out, _ = run.communicate(timeout=120)
    assert run.returncode == 0
    assert json.loads(out)["failed"] == 0
    assert len(joined(tmp_path / "out.zarr")) == 2
    assert worker.wait(60) == 0
    assert not list(tmp_path.glob(".out.zarr.tls-*"))
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(tmp_path / "alone.zarr")


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    done = run_emseg("run", "volume.zarr", "--host", "192.0.2.1", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "use an address of this machine" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["volume.zarr"]


class Cluster:
    """A scheduler that another user has started, with two workers."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"tcp://{LOOPBACK}:{self.port}"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all three."""
        self._start("scheduler", "--host", LOOPBACK, "--port", str(self.port), "--no-dashboard")
        for _ in range(2):
            self._start("worker", self.address, "--nthreads", "2", "--no-dashboard", "--death-timeout", "20")

    def kill(self) -> None:
        """Kill all three, and the processes that the workers' nannies have started."""
        for process in self._processes:
            for member in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                member.kill()
            process.wait()
        self._processes.clear()

    def _start(self, *words: str) -> None:
        command = [sys.executable, "-m", "dask", *words]
        started = subprocess.Popen(command, cwd=self._folder, env=slowed(0.5), stderr=subprocess.DEVNULL)
        self._processes.append(started)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_scheduler_that_goes_away(comes_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run waits, reassigns the blocks in progress, and ends with the same bytes; or it says so and can be resumed."""
    monkeypatch.setattr(dask, "RECONNECT_SECONDS", 60 if comes_back else 3)
    volume = save_volume(tmp_path / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
    alone = segment(volume, tmp_path / "alone.zarr", workers=0)
    cluster = Cluster(tmp_path)
    cluster.start()
    ended, said = [], []

    def watch(event: Event) -> None:
        match event:
            case BlockEnded(outcome):
                ended.append(outcome.block)
                if len(ended) == 3:
                    cluster.kill()
                    if comes_back:
                        cluster.start()
            case Noticed(message):
                said.append(message)

    try:
        report = segment(volume, tmp_path / "out.zarr", scheduler=cluster.address, on_event=watch)
    finally:
        cluster.kill()
    assert any("the Dask scheduler was lost" in message for message in said)
    if comes_back:
        assert report.exit_code == 0
        assert len(set(ended)) == alone.blocks
        assert len(ended) == alone.blocks
    else:
        assert report.exit_code == 3
        assert report.left >= alone.blocks - 3 - len(shards(tmp_path / "out.zarr"))
        assert "run the same command again to continue" in said[-1]
        assert segment(volume, tmp_path / "out.zarr", workers=0).exit_code == 0
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(tmp_path / "alone.zarr")
