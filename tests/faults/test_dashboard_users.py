"""Test that another user of the machine learns nothing from the dashboard, token and log of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from dashboards import Door
from runs import emseg_process, save_volume, slowed, texture

OTHER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
ASK = """
import http.client, sys
for path in "/ /status /emseg /json/emseg.json /metrics /info/main/workers.html /health /statics/css/base.css".split():
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    print(answer.status, answer.read().decode())
open(sys.argv[2])
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
def test_another_user_learns_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # the file itself is protected, not the path to it
    volume, output = save_volume(tmp_path / "volume.zarr", texture((32, 64, 64)), (32, 64, 64)), tmp_path / "out.zarr"
    with emseg_process("run", volume, "-o", output, "--workers", "1", env=slowed(5)) as run:
        try:
            said = ""
            assert run.stderr is not None
            while "map " not in said:
                line = run.stderr.readline()
                assert line, said
                said += line
            ((port, name),) = re.findall(
                r"^map +http://127\.0\.0\.1:(\d+)/emseg\?emseg-token=\$\(cat (\S+)\)$", said, re.MULTILINE
            )
            file = Path(name)
            assert file.parent == tmp_path
            assert file.stat().st_mode & 0o777 == 0o600
            door = Door(int(port), file.read_text())
            assert str(output) in door.text("/json/emseg.json")
            assert "emseg_blocks{" in door.text("/metrics")
            family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            assert not any(door.token in word for process in family for word in process.cmdline())

            python = ("/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable, "-c", ASK)
            asked = subprocess.run([*OTHER, *python, port, name], capture_output=True, text=True, cwd="/")
            told = asked.stdout.splitlines()
            assert len(told) == 16, asked.stderr
            assert {line for line in told if line} == {"403 403: open the link with the token that emseg has printed"}
            assert "PermissionError" in asked.stderr
            assert run.poll() is None, "it was over before anybody asked"
            run.terminate()
            said += run.communicate(timeout=120)[1]
        finally:
            run.kill()
    assert door.token not in said
    assert not file.exists()
    assert not any(door.token.encode() in path.read_bytes() for path in output.rglob("*") if path.is_file())
