"""Test that another user of the machine cannot access a run: scheduler, workers and nannies reject the TLS handshake."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Security
from distributed.core import rpc
from runs import PLANAR, emseg_process, run_emseg, save_random_model, save_volume, slowed, texture

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user"),
]

OTHER = 65534
"""The other user."""
STRANGER = """
import asyncio, json, os, socket, ssl, sys
from urllib.parse import urlsplit

from distributed import Security
from distributed.comm import connect

addresses, folder, user = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
own = Security.temporary().get_connection_args("client")
own["ssl_context"].verify_mode = ssl.CERT_NONE  # let in by its own side, to whomever it speaks
os.setgroups([])
os.setresgid(user, user, user)
os.setresuid(user, user, user)


async def joins(address, options):
    try:
        comm = await connect(address, timeout=5, **options)
    except (OSError, RuntimeError) as error:
        return type(error).__name__
    await comm.close()
    return "joined"


def speaks(address):
    # What is told to one who sends what is no TLS.
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        raw.sendall(bytes(64))
        told = b""
        try:
            while part := raw.recv(4096):
                told += part
        except ConnectionError:
            pass
    return told.hex()


def shakes_hands(address):
    # The certificate that is shown, and what comes after one of one's own making.
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=60) as raw:
        try:
            with own["ssl_context"].wrap_socket(raw) as secure:
                return "read " + secure.recv(4096).hex()
        except OSError as error:
            return getattr(error, "reason", None) or type(error).__name__


async def all_joins():
    plain = [joins(address.replace("tls://", "tcp://"), {}) for address in addresses]
    return await asyncio.gather(*plain, *(joins(address, own) for address in addresses))


try:
    entered = os.listdir(folder)
except PermissionError:
    entered = None
found = {"joins": asyncio.run(all_joins()), "entered": entered}
found |= {"speaks": [*map(speaks, addresses)], "hands": [*map(shakes_hands, addresses)]}
print(json.dumps(found))
"""


def doors(driver: psutil.Process, security: Security) -> list[str]:
    """Return the addresses of the scheduler, workers and nannies of a run, as the scheduler tells a trusted client."""

    async def told(port: int) -> list[str]:
        async with rpc(f"tls://127.0.0.1:{port}", timeout=2, connection_args=security.get_connection_args("client")) as peer:
            about = await peer.identity()
        workers = about.get("workers", {})
        return [about["address"], *workers, *(worker["nanny"] for worker in workers.values())] if workers else []

    for connection in driver.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            try:
                if found := asyncio.run(told(connection.laddr.port)):
                    return found
            except OSError:  # the dashboard
                pass
    return []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Make a temporary folder for all users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


def test_nobody_else_gets_into_a_run(scratch: Path, tmp_path: Path) -> None:
    """After the run is killed, the next run cleans up."""
    volume = save_volume(tmp_path / "volume.zarr", texture((7, 61, 63)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    command = ("run", volume, "-o", tmp_path / "out.zarr", "--model", model, "--device", "cpu")
    with emseg_process(*command, "--workers", "2", env={**slowed(30), "TMPDIR": str(scratch)}) as process:
        driver = psutil.Process(process.pid)
        found: list[str] = []
        while len(found) < 5:
            assert process.poll() is None, process.communicate()
            for private in scratch.glob("emseg-*"):
                files = {"ca_file": private / "tls/certificate.pem", "client_cert": private / "tls/certificate.pem"}
                files["client_key"] = private / "tls/key.pem"
                if all(file.exists() for file in files.values()):
                    found = doors(driver, Security(**{f"tls_{name}": str(file) for name, file in files.items()}))
        words = [sys.executable, "-c", STRANGER, json.dumps(found), str(private), str(OTHER)]
        tried = subprocess.run(words, capture_output=True, text=True)
        assert tried.returncode == 0, tried.stderr
        said = json.loads(tried.stdout)
        assert said["entered"] is None
        assert "joined" not in said["joins"]
        assert len(said["joins"]) == 10
        assert all(told == "" or told.startswith("15") for told in said["speaks"]), "at most an alert of TLS"
        assert {*said["hands"]} <= {"TLSV1_ALERT_UNKNOWN_CA", "ConnectionResetError"}
        family = driver.children(recursive=True)
        process.kill()
        process.communicate()
    psutil.wait_procs(family, timeout=60)
    assert [path.name for path in scratch.iterdir()] == [private.name]
    done = run_emseg(*command, "--workers", "1", env={**os.environ, "TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
