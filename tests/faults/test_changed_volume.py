"""Test that a resume after the volume has changed never mixes two volumes."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from runs import PLANAR, bytes_of, emseg_process, run_emseg, save_random_model, save_volume, slowed, snapshot, texture

from emseg.flows.records.run_log import recipe_of
from emseg_core.box import Box
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (4, 2100, 2100)
"""A shape so large that the sample of every run leaves out most of the volume."""
PART = Box((0, 1000, 1000), (4, 1060, 1060))
PATIENCE = 60


def test_a_killed_run_goes_on_with_the_volume_that_it_has_read_and_no_other(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", np.zeros(SHAPE, np.uint8), (4, 64, 64))
    array: Any = zarr.open_array(tmp_path / "volume.zarr")
    array[PART.slices()] = texture(PART.shape)
    save_random_model(tmp_path / "model.safetensors", PLANAR)
    command = ("run", "volume.zarr", "--roi", str(PART), "--model", "model.safetensors", "--tile", "1,52,48", "-o")
    assert run_emseg(*command, "undisturbed.zarr", "--workers", "0", cwd=tmp_path).returncode == 0

    output = tmp_path / "out.zarr"
    record = output / "emseg/run-0001/00000.jsonl"
    process = emseg_process(*command, "out.zarr", "--workers", "2", cwd=tmp_path, env=slowed(1.0))
    while process.poll() is None and not (record.exists() and '"block", ' in record.read_text()):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive

    told = [line for line in map(json.loads, record.read_text().splitlines()) if line["event"] == "block"]
    block = recipe_of(open_output(output)).plan.block(told[0]["block"])
    array[block.write.slices()] = 255 - array[block.write.slices()]
    before = snapshot(output)
    refused = run_emseg(*command, "out.zarr", "--workers", "2", cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert str(block.write) in refused.stderr.splitlines()[-1]
    assert snapshot(output) == before

    array[block.write.slices()] = 255 - array[block.write.slices()]
    done = run_emseg(*command, "out.zarr", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"comparing \d+ blocks? with the volume", done.stderr)
    assert bytes_of(output) == bytes_of(tmp_path / "undisturbed.zarr")
