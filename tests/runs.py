"""Whole runs on small volumes: make inputs, compute the expected outputs, and compare folders."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from networks import mean_in_one_pass, probabilities_in_one_pass, random_network
from numpy.typing import NDArray

from emseg.clusters.local import LOOPBACK
from emseg_core.box import Triple, triple
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import QUANTA
from emseg_core.model.file import load_model, save_model
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.ownership import IDENTITY
from emseg_core.store.outputs.descriptions import with_digest

PLANAR = ModelSpec.unet(width=3, depth=1)
CUBIC = ModelSpec(3, 1, ("inside", "membrane", "other"), ((3, 3, 3), (1, 1, 1)), ((2, 2, 2),))
CHUNK = (5, 16, 16)
TIE = 1e-4
"""Rounding may decide between probabilities closer than this."""


def save_random_model(path: Path, spec: ModelSpec, seed: int = 3, card: dict[str, str] | None = None) -> Path:
    """Save a model file with weights drawn from the seed."""
    torch = pytest.importorskip("torch")
    save_model(path, random_network(spec, seed, torch.float32), card or {})
    return path


def worker_processes(driver: int) -> list[psutil.Process]:
    """Return the worker processes that a process has started, itself or by its fork server, and that still run."""
    found, servers = [], set()
    for process in psutil.Process(driver).children(recursive=True):  # parents first
        try:
            command, parent = " ".join(process.cmdline()), process.ppid()
        except psutil.Error:  # it has ended
            continue
        if "spawn_main" in command or parent in servers:
            found.append(process)
        elif "fork_server" in command:
            servers.add(process.pid)
    return found


def texture(shape: Triple, seed: int = 0) -> NDArray[np.uint8]:
    """Return blobs with noise ``(z, y, x) uint8``. A random network assigns all of its classes to them."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.arange(length) for length in shape)
    waves = np.sin(z / 3)[:, None, None] + np.sin(y / 4)[:, None] + np.sin(x / 5)
    return np.clip(128 + 30 * waves + rng.normal(0, 25, shape), 0, 255).astype(np.uint8)


def save_volume(path: Path, values: NDArray[Any], chunk: tuple[int, ...] | None = None, **attributes: Any) -> Path:
    """Save a plain Zarr array with these voxels."""
    chunk = chunk or CHUNK[-values.ndim :]
    chunk = tuple(min(c, max(1, length)) for c, length in zip(chunk, values.shape, strict=True))
    array = zarr.create_array(path, shape=values.shape, chunks=chunk, dtype=values.dtype, attributes=attributes)
    if values.size:
        array[...] = values
    return path


def shape_of_many_blocks(spec: ModelSpec) -> Triple:
    """Return an odd shape whose plan has 24 blocks or more, with several along each axis."""
    for shape in itertools.product((7, 17, 25, 33, 41, 49), (29, 37, 45, 53, 61, 77), (31, 39, 47, 55, 63, 79)):
        plan = plan_of(shape, spec)
        if min(plan.grid) > 1 and len(plan) >= 24:
            return shape
    raise AssertionError("no shape gives so many blocks: widen the search")


def plan_of(shape: Triple, spec: ModelSpec, dtype: str = "uint8") -> Plan:
    """Return the plan for a volume saved by `save_volume`."""
    chunk = triple(min(c, length) for c, length in zip(CHUNK, shape, strict=True))
    return plan_volume(VolumeSpec(shape, dtype, chunk), spec)


def one_pass(values: NDArray[Any], model: Path, *, per_slice: bool = False, tta: bool = False) -> NDArray[np.float32]:
    """Return probabilities ``(class, z, y, x)`` of a whole volume in one tile. It must have no padding."""
    axes = (1, 2) if per_slice else None
    numbers = values.astype(np.float64)
    mean, deviation = (part(axis=axes, keepdims=True).astype(np.float32) for part in (numbers.mean, numbers.std))
    normalised = (values.astype(np.float32) - mean) / deviation
    truth = mean_in_one_pass if tta else probabilities_in_one_pass
    return truth(load_model(model).network(), normalised).astype(np.float32)


def assert_same_labels(labels: NDArray[np.uint8], truth: NDArray[np.float32]) -> None:
    """Check that each label is the most probable class, except for ties."""
    best = np.sort(truth, axis=0)
    clear = best[-1] - best[-2] > TIE
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], truth.argmax(axis=0)[clear])
    assert labels.max() < len(truth)


def assert_same_probabilities(stored: NDArray[np.uint8], truth: NDArray[np.float32]) -> None:
    """Check that stored probabilities are those of the truth, rounded to whole quanta."""
    assert np.abs(stored / QUANTA - truth).max() <= 0.5 / QUANTA + TIE
    assert len(np.unique(stored)) > (20 if stored.size > 10_000 else 2), "hardly any value: nothing is tested"


def bytes_of(output: Path) -> dict[str, str]:
    """Return the digest of each file of an output, except for its run records and the owner's identity."""
    return {name: digest for name, digest in snapshot(output).items() if not name.startswith("emseg/run-") and name != IDENTITY}


def rewrite_description(output: Path, change: Callable[[str], str]) -> None:
    """Change how an output describes itself, with a matching digest, as if emseg had written it so."""
    file = output / "zarr.json"
    document = json.loads(change(file.read_text()))
    document["attributes"]["emseg"] = with_digest(document["attributes"]["emseg"])
    file.write_text(json.dumps(document))


def snapshot(folder: Path) -> dict[str, str]:
    """Return the content of each path below a folder: the digest of a file, the target of a link, or ``folder``."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(root, name)
            if path.is_symlink():
                what = f"link to {path.readlink()}"
            else:
                what = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            found[path.relative_to(folder).as_posix()] = what
    return found


def shards(output: Path, array: str = "labels/classes/0") -> list[Path]:
    """Return the file of each write unit of an output's array, in the order of the plan's blocks."""
    folder = output / array / "c"
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: [int(part) if part.isdecimal() else -1 for part in path.relative_to(folder).parts])


def slowed(pause: float) -> dict[str, str]:
    """Return the environment of a run whose workers take this many seconds longer per tile on any machine."""
    preload = Path(__file__).with_name("slow_predictor.py")
    return {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": str(preload), "EMSEG_TEST_PAUSE": str(pause)}


def emseg_process(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Start the command line in a new process group."""
    command = [sys.executable, "-m", "emseg", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **more)


def run_emseg(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line, and return how it ended."""
    with emseg_process(*arguments, **more) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def own_address() -> str:
    """Return an address of this machine that others can reach, or loopback if it has none."""
    addresses = [address for addresses in psutil.net_if_addrs().values() for address in addresses]
    found = (address.address for address in addresses if address.family == socket.AF_INET)
    return next((address for address in found if not address.startswith("127.")), LOOPBACK)


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
