"""Test that two processes that share each batch learn what one process learns from all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emseg_core.errors import InputError
from emseg_core.training.ranks import check_peers

TRAINING = """
import json, sys
from pathlib import Path
import torch
from trainings import cells
from emseg_core.specs.model import ModelSpec
from emseg_core.training.fit import fit
from emseg_core.training.truth_reader import ValidationVolume
from emseg_core.training.spec import AugmentSpec, FitSpec

torch.set_num_threads(1)
spec = ModelSpec.unet(width=4, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2), dropout=0.0)
still = AugmentSpec(displacement=0, gain=0, offset=0, noise=0)
settings = FitSpec(
    steps=12, output=(8, 8, 8), batch=4, warmup=2, rate=3e-3, validate_every=4, precision="float32", augment=still,
    border_weight=3.0, affinity_weight=0.5, affinity_reach=(1, 3), class_weights=(1.0, 5.0), patience=3,
)
losses = []
network, score = fit(spec, settings, [cells()], [ValidationVolume.of(cells(1))], on_progress=lambda p: losses.append(p.loss))
if network is not None:
    sums = {name: float(value.double().sum()) for name, value in network.state_dict().items()}
    print(json.dumps({"losses": losses, "score": score, "sums": sums}))
else:
    assert not losses
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""
STOPPED = """
from pathlib import Path
import torch
from emseg_core.training.ranks import Ranks, join_processes

def stop(ranks: Ranks) -> None:
    network = ranks.wrap(torch.nn.Conv2d(1, 1, 3))
    network(torch.ones(1, 1, 8, 8)).sum().backward()
    raise KeyError(ranks.broadcast(7))

stopped = None
try:
    with join_processes("cpu") as ranks:
        stop(ranks)
except KeyError as error:
    stopped = error
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
if ranks.leads:
    print('{"stopped": %s}' % stopped)
"""


def trained(folder: Path, processes: int, program: str = TRAINING) -> dict[str, Any]:
    """Return what a training with this many processes prints. None of them leaves a thread of Gloo behind."""
    script = folder / "training.py"
    script.write_text(program)
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    tests = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, *start, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1  # one process prints
    told: dict[str, Any] = json.loads(lines[0])
    return told


def test_the_same_loss_curve_and_weights(tmp_path: Path) -> None:
    one, two = (trained(tmp_path, processes) for processes in (1, 2))
    assert np.allclose(one["losses"], two["losses"], rtol=1e-4)
    assert one["sums"].keys() == two["sums"].keys()
    assert np.allclose(list(one["sums"].values()), list(two["sums"].values()), rtol=1e-3, atol=1e-3)
    assert abs(one["score"] - two["score"]) < 1e-3


def test_a_training_that_fails_ends_its_group(tmp_path: Path) -> None:
    assert trained(tmp_path, 2, STOPPED) == {"stopped": 7}


def test_a_stranger_who_has_connected_is_found() -> None:
    """A stranger is any process that was not started with this one."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        check_peers()
        with socket.create_connection(door.getsockname()), door.accept()[0]:
            check_peers()
        knock = "import socket, sys; held = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); sys.stdin.read()"
        command = [sys.executable, "-c", knock, str(door.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as stranger, door.accept()[0] as arrived:
            port = arrived.getpeername()[1]
            with pytest.raises(InputError, match=f"not part of this training has connected to it from port {port}"):
                check_peers()
            stranger.kill()
