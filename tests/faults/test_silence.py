"""Test that a run connects only to itself: no telemetry, no check for updates, no external page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

import pytest
from programs import path_of
from runs import save_volume, shards, texture

WATCH = """\
import json, os, sys

file = os.open(os.environ["EMSEG_TEST_SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
NAMES = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}

def watch(event, args):
    if event in NAMES:
        address = args[NAMES[event]]
        seen = address if isinstance(address, tuple) else (address,)
    elif event == "os.fork" or event == "import" and args[0].startswith("openvino"):
        seen = args[:1]
    else:
        return
    line = json.dumps([os.getpid(), event, *map(str, seen[:1] or ("",))])
    os.write(file, (line + "\\n").encode())

sys.addaudithook(watch)
"""
"""Code that runs at the start of each Python process. Forked processes inherit it."""
ALONE = """\
import fcntl, json, socket, struct, subprocess, sys

def nowhere():
    lines = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
    six = [line.split() for line in open("/proc/net/snmp6") if line.startswith("Ip6OutNoRoutes")]
    return int(lines[1][lines[0].index("OutNoRoutes")]) + sum(int(number) for _, number in six)

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS: up
done = subprocess.run(sys.argv[2:])
counts = [nowhere()]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    try:
        one.sendto(b"?", ("192.0.2.1", 53))
    except OSError:
        pass
json.dump([*counts, nowhere()], open(sys.argv[1], "w"))
sys.exit(done.returncode)
"""
"""Code that runs a command in a network with only loopback. The kernel counts packets to other hosts, also those of C++."""
OURS = {"127.0.0.1", "localhost", "::1", "None", ""}


def alone() -> list[str]:
    """Return the prefix that runs a command in its own network, or nothing where that is not allowed."""
    words = [path_of("unshare"), "--net"]
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []


@pytest.mark.skipif(not list(distributions(name="openvino-telemetry")), reason="nothing is installed that would talk")
def test_a_whole_segmentation_talks_to_itself_alone(tmp_path: Path) -> None:
    save_volume(tmp_path / "v.zarr", texture((8, 64, 64)))
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    seen, counted, apart = tmp_path / "seen", tmp_path / "counted", alone()
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # the package is silent if this is set
    environment |= {"PYTHONPATH": str(tmp_path / "watch"), "EMSEG_TEST_SEEN": str(seen), "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "emseg", "run", "v.zarr", "-o", "o.zarr", "--workers", "2"]
    if apart:
        command = [*apart, sys.executable, "-S", "-c", ALONE, str(counted), *command]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert shards(tmp_path / "o.zarr")

    events = [json.loads(line) for line in seen.read_text().splitlines()]
    asked = Counter((event, what) for _, event, what in events if event.startswith("socket."))
    assert {what for _, what in asked} <= OURS, asked
    assert len({process for process, event, _ in events if event == "socket.connect"}) >= 3, "driver and workers were watched"
    asking = {process for process, event, what in events if (event, what) == ("import", "openvino_telemetry")}
    assert asking == {process for process, event, what in events if (event, what) == ("import", "openvino")} != set()
    assert not [what for *_, what in events if what.startswith("openvino_telemetry.")], "it was imported"
    assert not asking & {process for process, event, _ in events if event == "os.fork"}, "something talks in the background"
    assert not list((tmp_path / "home").rglob("*telemetry*")), "a wish of the user was written down"
    if apart:
        during, afterwards = json.loads(counted.read_text())
        assert during == 0, "somebody tried to reach another machine"
        assert afterwards > during, "nothing would have been seen"
