"""Test that every command works without a home directory, a user name and environment variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from programs import path_of
from runs import texture
from trainings import TOGETHER

UNKNOWN = 54321
"""A user number that this machine does not have."""

COMMANDS = """
import getpass, os, sys
from pathlib import Path


def asserts_no_account():
    assert os.getuid() == {unknown}
    for asked in (Path.home, getpass.getuser):
        try:
            asked()
        except (RuntimeError, KeyError, OSError):
            continue
        raise AssertionError("there is an account")


def emseg(words):
    from emseg.cli import cli

    print(words, file=sys.stderr, flush=True)
    try:
        cli.main(words.split(), standalone_mode=False)
    except SystemExit as end:
        assert not end.code, words


if __name__ == "__main__":
    asserts_no_account()
    emseg("ingest raw.tif volume.zarr --voxel-size 8 8 8")
    emseg("plan volume.zarr")
    emseg("train train.toml")
    emseg("run volume.zarr -o alone.zarr --workers 0 --model tiny.safetensors")
    emseg("run volume.zarr -o out.zarr --workers 1 --model tiny.safetensors --instances")
    emseg("status out.zarr")
    emseg("verify out.zarr --checksums")
    emseg("preview out.zarr")
    emseg("report out.zarr")
    emseg("export out.zarr out.tif")
"""


def test_every_command(tmp_path: Path) -> None:
    unshare = [path_of("unshare"), "--user", f"--map-user={UNKNOWN}", "env", "-i"]
    if subprocess.run([*unshare, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip("no user of this machine may be another one here")
    ids = np.repeat(np.repeat(np.repeat(np.arange(1, 9).reshape(2, 2, 2), 12, 0), 16, 1), 16, 2)
    tifffile.imwrite(tmp_path / "raw.tif", texture((24, 32, 32)))
    tifffile.imwrite(tmp_path / "ids.tif", ids.astype(np.uint8))
    (tmp_path / "train.toml").write_text(TOGETHER)
    (tmp_path / "commands.py").write_text(COMMANDS.format(unknown=UNKNOWN))
    done = subprocess.run([*unshare, sys.executable, "commands.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert {"volume.zarr", "tiny.safetensors", "alone.zarr", "out.zarr", "out.tif"} <= made
