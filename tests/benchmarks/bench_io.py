"""Compare runs whose network costs almost nothing with a plain parallel copy.

    python tests/benchmarks/bench_io.py [ROUNDS] [FOLDER]

The volume has 256 x 1024 x 1024 voxels in Zarr's default codecs: repeated real EM of a fly if the folder `EMSEG_DATA` contains
it, else blobs with noise. Each round measures these in turn, with one process and with two, each with as many threads as a
worker has:

*copy, raw*: each thread reads the voxels of a shard and writes them with zarr-python alone, without fsync, with the shards,
chunks and codecs of a run's labels;
*copy*: the same with a threshold in between, so that it writes the labels of a run;
*emseg*: a run whose predictor only compares each voxel with the mean (`thresholding.py`), from the first assigned block to the
end of the last, planned for a network without context, and *solid* for a 3-D U-Net, which reads a context;
*emseg, levels*: the same as *emseg*, followed by the coarser pyramid levels, which no copy makes.

All except the raw copy must write the same labels, or the script fails. Before any measurement, the workers have started and
done everything once. *Of copy* is the median of the ratios within each round. A second table has CPU seconds by stage, of runs
in this process, block after block, so that the work of a stage's helper threads is included. The *network* there is computed:
it has one level, two 3 x 3 convolutions with 2 or 4 channels.

ROUNDS is 5 by default. FOLDER, by default a temporary one, needs 1 GB and is removed at the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import dask
import numpy as np
import tifffile
import torch
import zarr
from distributed import Client
from numpy.typing import NDArray

import emseg
import emseg_core.outcome
from emseg.clusters.local import local_cluster
from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event, WorkerJoined
from emseg_core.box import Box
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.grid.plan import Plan
from emseg_core.model import backend
from emseg_core.model.file import save_model
from emseg_core.model.unet import UNet
from emseg_core.normalise import survey
from emseg_core.outcome import Seconds
from emseg_core.specs.model import ModelSpec
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.arrays import create_array

SHAPE = (256, 1024, 1024)
CHUNK = (64, 64, 64)
REAL = Path("flyem-fib25", "train-raw.tif")
THRESHOLDING = Path(__file__).with_name("thresholding.py")
MODELS = {
    "emseg": ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1)),
    "emseg, solid": ModelSpec.unet(width=1, depth=2, kernel=(3, 3, 3)),
}
"""Replaced by a threshold: these only determine what a block reads."""
LEVELS = "emseg, levels"
"""The first of these again, with coarser levels."""
NETWORKS = {f"network of {width}": ModelSpec.unet(width=width, depth=0) for width in (2, 4)}
"""Networks that are computed."""
SIZES = (1, 2)
"""Numbers of processes."""


@dataclass
class Clock:
    """Observer that times a run from its first worker to the end of its last block, and adds up the times of its blocks."""

    began: float | None = None
    ended: float = 0.0
    spent: Counter[str] | None = None

    def __call__(self, event: Event) -> None:
        """Record an event."""
        match event:
            case WorkerJoined() if self.began is None:
                self.began, self.spent = perf_counter(), Counter()
            case BlockEnded(outcome) if self.spent is not None:
                self.ended = perf_counter()
                self.spent.update(asdict(outcome.seconds))

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds."""
        return self.ended - (self.began or 0.0)


def main(rounds: int, folder: Path) -> None:
    """Run the benchmark and print the tables."""
    volume = folder / "volume.zarr"
    array = zarr.create_array(volume, shape=SHAPE, chunks=CHUNK, dtype="uint8", dimension_names="zyx")
    array[...] = voxels()
    for name, spec in {**MODELS, **NETWORKS}.items():
        torch.manual_seed(0)
        save_model(folder / f"{name}.safetensors", UNet(spec), {})
    stored = sum(file.stat().st_size for file in volume.rglob("*"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, {array.size / stored:.2f} voxels per stored byte")
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as held:
        ways: dict[tuple[str, int], Callable[[], float]] = {}
        for workers in SIZES:
            pool = held.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
            with dask.config.set({"distributed.worker.preload": [str(THRESHOLDING)]}):
                client = held.enter_context(local_cluster(workers, BLOCKS_IN_FLIGHT))
            for name, raw in (("copy, raw", True), ("copy", False)):
                ways[name, workers] = partial(copy, folder, pool, workers, raw)
            for name in (*MODELS, LEVELS):
                ways[name, workers] = partial(run, folder, client, name)
        for turn in range(rounds + 1):
            for case, way in ways.items():
                seconds = way()
                if turn:  # the first one is a warm-up
                    times[case].append(seconds)
    print_table(times, array.size)
    print(f"\nCPU seconds\n{'':<16}" + "".join(f"{stage:>10}" for stage in (*asdict(Seconds()), "total")))
    for name in (*MODELS, *NETWORKS):
        spent = cpu_by_stage(folder, name)
        print(f"{name:<16}" + "".join(f"{seconds:>10.2f}" for seconds in (*spent.values(), sum(spent.values()))), flush=True)


def voxels() -> NDArray[np.uint8]:
    """Make the volume, ``(z, y, x)``."""
    real = Path(os.environ.get("EMSEG_DATA", "."), REAL)
    if real.exists():
        piece = tifffile.imread(real)
        piece = np.concatenate([piece, piece[::-1]])
        for axis in (1, 2):
            piece = np.concatenate([piece, np.flip(piece, axis)], axis)
        repeats = [-(-length // part) for length, part in zip(SHAPE, piece.shape, strict=True)]
        return np.ascontiguousarray(np.tile(piece, repeats)[tuple(map(slice, SHAPE))])
    rng = np.random.default_rng(0)
    z, y, x = (np.sin(np.arange(length) / 9) for length in SHAPE)
    waves = 40 * (z[:, None, None] + y[:, None] + x).astype(np.float32)
    return np.clip(128 + waves + rng.normal(0, 12, SHAPE).astype(np.float32), 0, 255).astype(np.uint8)


def print_table(times: dict[tuple[str, int], list[float]], count: int) -> None:
    """Print medians, and the medians of the ratios within each round."""
    print(f"{'':<16}{'processes':>10}{'seconds':>10}{'Mvoxel/s':>10}{'of copy':>10}")
    for (name, workers), seconds in times.items():
        of_copy = median(c / s for c, s in zip(times["copy", workers], seconds, strict=True))
        print(
            f"{name:<16}{workers:>10}{median(seconds):>10.2f}{count / median(seconds) / 1e6:>10.1f}{of_copy:>10.2f}", flush=True
        )


def copy(folder: Path, pool: ProcessPoolExecutor, workers: int, raw: bool) -> float:
    """Copy the volume and return the seconds it took."""
    plan, target = plan_of(folder), folder / "copy.zarr"
    target.mkdir()
    shapes: dict[str, Any] = {"shape": SHAPE, "shard": plan.unit, "chunk": plan.chunk}
    create_array(LocalFiles(target), "", **shapes, dtype="uint8", fill_value=255, axes=("z", "y", "x"))
    part = partial(copy_part, folder / "volume.zarr", target, None if raw else mean_of(folder))
    boxes = [block.write for block in plan]
    began = perf_counter()
    list(pool.map(part, [boxes[i::workers] for i in range(workers)]))
    seconds = perf_counter() - began
    if not raw:
        check_bytes(target, f"copy of {workers}")
    shutil.rmtree(target)
    return seconds


def copy_part(source: Path, target: Path, threshold: int | None, boxes: list[Box]) -> None:
    """Copy boxes in one process."""
    values, labels = zarr.open_array(source, mode="r"), zarr.open_array(target, mode="r+")

    def copy_box(box: Box) -> None:
        read = np.asarray(values[box.slices()])
        labels[box.slices()] = read if threshold is None else (read > threshold).view(np.uint8)

    with ThreadPoolExecutor(BLOCKS_IN_FLIGHT) as threads:
        list(threads.map(copy_box, boxes))


def run(folder: Path, client: Client, name: str) -> float:
    """Segment the volume and return the seconds it took."""
    model, levels = ("emseg", True) if name == LEVELS else (name, False)
    with finished_run(folder, model, client=client, pyramid=levels) as clock:
        return clock.seconds


def cpu_by_stage(folder: Path, name: str) -> dict[str, float]:
    """Measure the CPU seconds of all threads of this process by stage."""
    real_clock, real_predictor = perf_counter, backend.open_predictor
    emseg_core.outcome.perf_counter = process_time  # type: ignore[attr-defined]
    try:
        if name in MODELS:
            from thresholding import open_threshold

            backend.open_predictor = open_threshold  # type: ignore[assignment]
        with finished_run(folder, name, workers=0, pyramid=False) as clock:
            return dict(clock.spent or {})
    finally:
        emseg_core.outcome.perf_counter = real_clock  # type: ignore[attr-defined]
        backend.open_predictor = real_predictor


@contextmanager
def finished_run(folder: Path, name: str, **settings: Any) -> Iterator[Clock]:
    """Segment the volume; the output exists until the end of the ``with`` block."""
    place, clock = folder / "out.zarr", Clock()
    asked: dict[str, Any] = {"model": folder / f"{name}.safetensors", "precision": "float32"}
    report = segment(folder / "volume.zarr", place, on_event=clock, **asked, **settings)
    assert report.exit_code == 0, report.failures
    if name in MODELS:
        check_bytes(place / "labels" / "classes" / "0", f"{name} with {settings}")
    yield clock
    shutil.rmtree(place)


@lru_cache
def plan_of(folder: Path) -> Plan:
    """Plan the run with which a copy is compared."""
    return emseg.plan(folder / "volume.zarr", model=folder / "emseg.safetensors").plan


@lru_cache
def mean_of(folder: Path) -> int:
    """Return the largest grey value that is not above the mean used by a run."""
    return int(np.float32(survey(open_volume(folder / "volume.zarr"), "volume")[0].mean[0]))


_digests: dict[str, str] = {}
"""Digest of the expected labels, and of those of each variant that has been checked."""


def check_bytes(labels: Path, way: str) -> None:
    """Check once per variant that it writes the same labels as all others."""
    if way in _digests:
        return
    _digests[way] = digest = hashlib.sha256(np.asarray(zarr.open_array(labels, mode="r")[...]).tobytes()).hexdigest()
    assert digest == _digests.setdefault("labels", digest), f"{way} wrote different labels"


if __name__ == "__main__":
    place = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="emseg-io-"))
    place.mkdir(exist_ok=True)
    try:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, place)
    finally:
        shutil.rmtree(place)
