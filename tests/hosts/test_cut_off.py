"""Test a run over several hosts: losing one costs only time, and hosts without the key cannot join."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosts.network import Host, missing, network
from runs import bytes_of, run_emseg, save_volume, shards, slowed, texture

from emseg.clusters.certificates import run_security
from emseg.clusters.local import DASHBOARD_PORT, LOOPBACK
from emseg.flows.records.run_log import lines_of
from emseg_core.store.outputs.lifecycle import open_output

JOIN = "note: another host joins with: "
STRANGER = """
import socket, ssl, sys
from distributed import Client, Security

scheduler, certificate, key, *places = sys.argv[1:]

def joins(address, security):
    Client(address, security=security, timeout="3s").close()

def hears(place, *chain):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain:
        context.load_cert_chain(*chain)
    host, port = place.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 3) as plain, context.wrap_socket(plain) as encrypted:
        if not encrypted.recv(1):
            raise ConnectionError("hung up")

def attempt(name, function, *arguments):
    try:
        function(*arguments)
        print(name)
    except OSError:
        pass

files = {"tls_ca_file": certificate, "tls_client_cert": certificate, "tls_client_key": key}
attempt("joins plainly", joins, scheduler.replace("tls://", "tcp://"), None)
attempt("joins", joins, scheduler, Security(require_encryption=True, **files))
for place in places:
    attempt(f"nameless at {place}", hears, place)
    attempt(f"heard at {place}", hears, place, certificate, key)
"""
"""Program of a stranger on another host that knows all addresses, tries to connect, and prints which attempts succeeded."""


class Hosts(NamedTuple):
    """The host of the run, and two that help it."""

    driver: Host
    cut: Host
    helper: Host


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    why = missing()
    if why:
        pytest.skip(why)
    with network("driver", "cut", "helper") as made:
        yield Hosts(*made)


class Run:
    """A run on one host that others may join. Each block takes this many seconds longer on any machine."""

    def __init__(self, host: Host, folder: Path, pause: float) -> None:
        self.folder = folder
        self.output = folder / "out.zarr"
        self._env = slowed(pause)
        words = ("run", "volume.zarr", "-o", "out.zarr", "--host", host.address, "--workers", "1", "--json")
        self.process = host.start(
            *(sys.executable, "-m", "emseg", *words),
            cwd=folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        said = [""]
        for line in self.process.stderr:
            said.append(line)
            if line.startswith(JOIN):
                break
        assert said[-1].startswith(JOIN), said
        self.command = shlex.split(said[-1].removeprefix(JOIN))
        self.address = next(word for word in self.command if word.startswith("tls://"))

    def join(self, host: Host) -> subprocess.Popen[str]:
        """Start a worker on this host with the printed command."""
        with (self.folder / f"{host.name}.log").open("wb") as log:
            return host.start(*self.command, cwd=self.folder, env=self._env, stdout=log, stderr=log)

    def keys(self) -> tuple[Path, Path]:
        """Return the run's own certificate and key."""
        (folder,) = self.folder.glob(".out.zarr.tls-*")
        return folder / "certificate.pem", folder / "key.pem"

    def log(self, host: Host) -> str:
        """Return the worker's log on this host so far."""
        return (self.folder / f"{host.name}.log").read_text()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the record so far."""
        begun = (self.output / "emseg" / "run-0001" / "00000.jsonl").exists()
        return list(lines_of(open_output(self.output), 1)) if begun else []

    def has_done(self, host: Host) -> bool:
        """Return whether a block was done on this host."""
        return any(line["event"] == "block" and _did(host, line) for line in self.lines())

    def wait_until(self, predicate: Callable[[], object], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not predicate():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, f"not so after {seconds} s"
            time.sleep(0.1)


def test_a_host_is_cut_off(hosts: Hosts, tmp_path: Path) -> None:
    """Other workers do its unfinished blocks, and what it still writes does no harm."""
    save_volume(tmp_path / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
    run = Run(hosts.driver, tmp_path, pause=1.5)
    cut, helper = run.join(hosts.cut), run.join(hosts.helper)
    run.wait_until(lambda: run.has_done(hosts.cut) and run.has_done(hosts.helper))
    hosts.cut.cut_off()
    run_emseg("run", "volume.zarr", "-o", "alone.zarr", "--workers", "0", cwd=tmp_path)
    out, err = run.process.communicate(timeout=180)
    assert run.process.returncode == 0, err
    report = json.loads(out)
    assert (report["done"], report["failed"]) == (len(shards(tmp_path / "alone.zarr")), 0)
    assert helper.wait(60) == 0
    cut.wait(60)
    assert bytes_of(run.output) == bytes_of(tmp_path / "alone.zarr")

    lines = run.lines()
    (worker,) = [line["worker"] for line in lines if line["event"] == "joined" and _is_at(hosts.cut, line)]
    assert [line["worker"] for line in lines if line["event"] == "left"] == [worker]
    done = {line["block"]: place for place, line in enumerate(lines) if line["event"] == "block" and line["status"] == "done"}
    retried = {line["block"]: place for place, line in enumerate(lines) if line["event"] == "retried"}
    assert retried
    for block, place in retried.items():
        assert worker in lines[place]["cause"]
        assert done[block] > place
        assert _did(hosts.driver, lines[done[block]]) or _did(hosts.helper, lines[done[block]])
    assert sum(line["event"] == "block" for line in lines) == report["blocks"]
    assert {retry["block"]: retry["worker"] for retry in report["retries"]} == {
        block: lines[done[block]]["worker"] for block in retried
    }


def test_those_without_the_key_stay_out(hosts: Hosts, tmp_path: Path) -> None:
    """This holds even where they can reach the scheduler. Services without a login cannot be reached."""
    save_volume(tmp_path / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
    run = Run(hosts.driver, tmp_path, pause=3)
    run.join(hosts.helper)
    run.wait_until(lambda: "Registered to" in run.log(hosts.helper))
    there = {host: host.listening() for host in (hosts.driver, hosts.helper)}
    assert (LOOPBACK, DASHBOARD_PORT) in there[hosts.driver]
    assert {address for address, _ in there[hosts.driver]} == {LOOPBACK, hosts.driver.address}
    places = sorted({f"{host.address}:{port}" for host, sockets in there.items() for _, port in sockets})
    hidden = {f"{host.address}:{port}" for host, sockets in there.items() for address, port in sockets if address == LOOPBACK}

    def successes(certificate: object, key: object) -> list[str]:
        return hosts.cut.run(sys.executable, "-c", STRANGER, run.address, certificate, key, *places).splitlines()

    with run_security(tmp_path / "other") as other:
        assert successes(other.tls_client_cert, other.tls_client_key) == []  # type: ignore[attr-defined]
    assert successes(*run.keys()) == ["joins", *(f"heard at {place}" for place in places if place not in hidden)]
    assert run.process.poll() is None


def _is_at(host: Host, worker: dict[str, Any]) -> bool:
    """Return whether a worker is on this host."""
    return str(worker["worker"]).startswith(f"tls://{host.address}:")


def _did(host: Host, block: dict[str, Any]) -> bool:
    """Return whether a block was computed on this host."""
    return str(block["worker"]).startswith(f"{host.name}:")
