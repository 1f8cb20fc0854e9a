"""Measure how runs scale with workers, the limits of the driver, and the time until it starts the first task.

    python tests/benchmarks/bench_scaling.py [FOLDER]

*Real* runs the bundled network, with one worker and with two in turn. *Simulated* uses a predictor that sleeps
(`sleeping.py`), so that a machine with few cores can host many worker processes; everything else is real: processes, Dask,
reading, and writing to disk. *Limits* are those of the driver.

Before any measurement, workers have started and loaded the model; this is the start-up time. The time of a real run is that of
its report. The time of a simulated run is from the first worker that joins to the end of the last block, so it includes the
joining of the others, their first reads, and the end, when some have no work left. It would be *ideal* if each worker slept all
the time; *efficiency* is the ideal time divided by the measured one. *Steady* is the efficiency of each worker between the ends
of its first and its last block, without start and end. *Machine* is the load of all cores: near 100 %, the row shows the limit
of the machine. The CPU seconds of the driver are those of its process, which includes the scheduler.

Each measurement is a separate process. FOLDER, by default a temporary one, needs 100 MB and is removed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil
import tifffile
import zarr

import emseg
from emseg.clusters.local import local_cluster
from emseg.executors.dask import DaskExecutor
from emseg.flows import segment as flow
from emseg.flows.records.run_log import RunRecord
from emseg.flows.running.claim import prepare_output
from emseg.runs.dispatch import Dispatch, Policy
from emseg.runs.events import BlockEnded, Event, RunStarted, WorkerJoined
from emseg.runs.pace import Pace
from emseg.runs.stop import Stop
from emseg.runs.tally import Tally
from emseg.tasks.segmenting import SegmentWork
from emseg.tasks.trial import Trial, try_out
from emseg_core.box import Triple, triple
from emseg_core.grid.blocks import Block
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.grid.order import block_sequences
from emseg_core.grid.plan import Plan
from emseg_core.model.backend import default_backend
from emseg_core.model.bundled import resolve_model
from emseg_core.model.device import Device
from emseg_core.model.model_place import describe
from emseg_core.normalise import Normalisation
from emseg_core.outcome import Outcome, Seconds
from emseg_core.recipe import Recipe
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Numerics
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.lease import Token
from emseg_core.store.outputs.lifecycle import open_output

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
COPIES = 6
"""Number of copies of the sample: 32 blocks of about a second."""
PAIRS = 3
NUMBERS = ("report", "start_up", "worker_cpu", "driver_cpu")
"""Results of which the median is printed."""
SLEEPING = Path(__file__).with_name("sleeping.py")
POINTWISE = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1))
"""A network without context, so that a block is as small as its tile."""
TILE = (1, 64, 64)
PAUSE = 0.5
"""Seconds of sleep per block."""
SIZES = (1, 2, 4, 8, 16, 32)
"""Numbers of worker processes."""
BLOCKS_PER_WORKER = 20
"""Number of blocks per worker of a simulated run."""
MIN_BLOCKS = 40
"""Minimum number of blocks of a simulated run."""
AWAKE_WORKERS = 4
AWAKE_BLOCKS = 4000
LARGE_TILE = (8, 512, 512)
"""The smallest block that is planned for a very large volume."""
GRIDS = ((1, 10, 10), (100, 400, 250))
"""Numbers of blocks along (z, y, x): a hundred, and ten million."""
MARKS = (1_000, 10_000, 100_000)
"""Numbers of blocks after which the memory of the driver's bookkeeping is measured."""
EMPTY_BLOCKS = 160_000
"""Number of blocks without work that a driver assigns, more than the number of task names that Dask remembers."""
STEP = 20_000
"""Number of blocks between two measurements of its memory."""


@dataclass(frozen=True, slots=True)
class NoWork:
    """Work that does nothing, not even open the output, so that only the cost of the driver remains."""

    name: str = "segment"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(self, turn: object = None) -> Iterator[tuple[Callable[[Block], Outcome], None]]:
        """Return a function that does nothing to a block."""
        yield lambda block: Outcome(block.index, "done", block.write.voxels, Seconds(0.1, 0.1, 0.1, 0.1)), None


@dataclass
class Moments:
    """Observer that records when the first worker of a run joined and when its blocks ended."""

    joined: float | None = None
    idle: float = 0.0
    """CPU seconds of this process until the first worker joined."""
    ended: list[float] = field(default_factory=list)
    ended_on: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Times at which blocks ended, by worker."""
    spent: float = 0.0
    """CPU seconds of this process until the end of the last block."""

    def __call__(self, event: Event) -> None:
        """Record an event."""
        match event:
            case WorkerJoined() if self.joined is None:
                self.joined, self.idle = perf_counter(), process_time()
            case BlockEnded(outcome):
                self.ended.append(perf_counter())
                self.ended_on[outcome.worker].append(self.ended[-1])
                self.spent = process_time()

    @property
    def seconds(self) -> float:
        """Seconds from the first worker that joined to the end of the last block."""
        return self.ended[-1] - (self.joined or 0.0)

    @property
    def interval(self) -> float:
        """Mean number of seconds between the ends of two blocks of one worker."""
        spans = [(ends[-1] - ends[0], len(ends) - 1) for ends in self.ended_on.values()]
        return sum(seconds for seconds, _ in spans) / sum(blocks for _, blocks in spans)


def measure_run(
    volume: str, workers: int, *, model: str | None = None, tile: list[int] | None = None, region: str | None = None
) -> dict[str, Any]:
    """Measure a run whose workers are ready."""
    source, moments, began = Path(volume), Moments(), perf_counter()
    shape = triple(tile) if tile else None
    plan = emseg.plan(source, model=model, tile=shape, roi=region).plan
    with local_cluster(workers, BLOCKS_IN_FLIGHT) as client:
        as_it_is = Normalisation("volume", (0.0,), (1.0,))
        backend, file = default_backend("cpu"), resolve_model(model)
        spec = describe(file)[0]
        client.run(try_out, Trial(source, None, file, spec, as_it_is, plan.tile, 1, "cpu", backend, "float32", measured=True))
        start_up, before = perf_counter() - began, sum(client.run(process_time).values())
        psutil.cpu_percent()
        place = source.with_name("out.zarr")
        asked = {"model": model, "tile": shape, "roi": region, "precision": "float32", "pyramid": False}
        report = flow.segment(source, place, client=client, on_event=moments, **asked)  # type: ignore[arg-type]
        machine, after = psutil.cpu_percent(), sum(client.run(process_time).values())
    shutil.rmtree(place)
    assert report.exit_code == 0, report.failures
    return {
        "start_up": start_up,
        "report": report.seconds,
        "seconds": moments.seconds,
        "interval": moments.interval,
        "driver_cpu": (moments.spent - moments.idle) / report.done,
        "worker_cpu": (after - before) / report.done,
        "machine": machine,
    }


def measure_first(volume: str, model: str, tile: list[int]) -> dict[str, Any]:
    """Measure the seconds from the call of a run to its first task, after which it is stopped."""
    source, stop, seconds, began = Path(volume), Stop(), dict[str, float](), perf_counter()

    def observe(event: Event) -> None:
        now = perf_counter() - began
        match event:
            case RunStarted():
                seconds["planned"] = now
            case BlockEnded(outcome) if not stop.asked:
                seconds["task"] = now - sum(astuple(outcome.seconds))
                stop.ask()

    # this disk could not hold the whole output, which is never computed
    flow.check_space = lambda output, output_bytes: None  # type: ignore[attr-defined]
    place = source.with_name("out.zarr")
    flow.segment(source, place, model=model, tile=triple(tile), precision="float32", workers=2, stop=stop, on_event=observe)
    shutil.rmtree(place)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return {**seconds, "returned": perf_counter() - began, "peak": 1024 * peak}


def measure_driver() -> dict[str, Any]:
    """Measure the memory of a driver with its scheduler that assign very many blocks without work."""
    volume, stop, ended = VolumeSpec((EMPTY_BLOCKS, *TILE[1:]), "uint8", TILE), Stop(), 0
    plan, memory = Plan(volume.box, TILE, volume.shape, POINTWISE, TILE, 1, TILE), []
    with local_cluster(2, BLOCKS_IN_FLIGHT) as client:
        began, idle = perf_counter(), process_time()
        sequences = block_sequences(plan, volume, np.ones(EMPTY_BLOCKS, bool))
        for event in DaskExecutor(client, stop).run(NoWork(), sequences, Policy(), stop):
            if isinstance(event, BlockEnded):
                ended += 1
                if ended % STEP == 0:
                    memory.append(psutil.Process().memory_info().rss)
        return {
            "memory": memory,
            "seconds": (perf_counter() - began) / ended,
            "driver_cpu": (process_time() - idle) / ended,
        }


def measure_books(folder: str) -> dict[str, Any]:
    """Measure the memory of dispatch, tally, pace and run record, with simulated outcomes and without Dask."""
    blocks, place, workers = MARKS[-1], Path(folder, "books.zarr"), 32
    volume = VolumeSpec((blocks, *TILE[1:]), "uint8", TILE)
    plan = Plan(volume.box, TILE, volume.shape, POINTWISE, TILE, 1, TILE)
    numerics = Numerics("none", "none", "float32", 1, "none")
    recipe = Recipe(volume, "none", "none", Normalisation("volume", (0.0,), (1.0,)), plan, numerics, False)
    prepare_output(place, recipe, None, {}, overwrite=False, token=None)
    output = open_output(place)
    job = SegmentWork(recipe, Path(folder), Path(folder), place, Token(output.records, 1))
    now, dispatch, tally = 0.0, Dispatch(block_sequences(plan, volume, np.ones(blocks, bool)), Policy()), Tally(plan, 0)
    record, pace = RunRecord(output, job, workers, print), Pace(plan, 0, workers, now)
    for worker in range(workers):
        dispatch.join(f"tcp://127.0.0.1:{worker}", BLOCKS_IN_FLIGHT, now)
    memory, began = [], perf_counter()
    while not dispatch.finished:
        dispatch.assign(now)
        for attempt in dispatch.in_progress:
            now += 0.01
            outcome = Outcome(attempt.block.index, "done", attempt.block.write.voxels, Seconds(0.1, 0.1, 0.1, 0.1))
            event, _ = dispatch.ended(attempt, outcome, now)
            record.add(event)
            tally.count(outcome)
            pace.record(event, now)
            if pace.done in MARKS:
                memory.append(psutil.Process().memory_info().rss)
    seconds = perf_counter() - began
    shutil.rmtree(place)
    return {"memory": memory, "seconds": seconds / blocks}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "run": measure_run,
    "first": measure_first,
    "driver": measure_driver,
    "books": measure_books,
}


def measure(name: str, pause: float | None = None, **options: Any) -> dict[str, Any]:
    """Run a measurement in a separate process; if there is a pause, its workers sleep instead of computing."""
    asleep = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(SLEEPING), "EMSEG_BENCH_PAUSE": str(pause)}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, json.dumps(options)],
        env={**os.environ, **(asleep if pause is not None else {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def real(folder: Path) -> None:
    """Measure the bundled network and print the table."""
    sample = tifffile.imread(SAMPLE)
    values = np.concatenate([sample[:: 1 if copy % 2 else -1] for copy in range(COPIES)])
    volume = folder / "sample.zarr"
    save(volume, values.shape, (64, 64, 64))[...] = values
    print(f"\nreal: {' x '.join(map(str, values.shape))} voxels, seconds from the first block to the last")
    print("pair   1 worker  start-up   2 workers  start-up   speed-up  efficiency")
    pairs = []
    for pair in range(1, PAIRS + 1):
        pairs.append([measure("run", volume=str(volume), workers=workers) for workers in (1, 2)])
        print_pair(str(pair), *pairs[-1])
    middle = [{name: median(found[name] for found in turns) for name in NUMBERS} for turns in zip(*pairs, strict=True)]
    print_pair("median", *middle)
    for name, key in (("worker", "worker_cpu"), ("driver", "driver_cpu")):
        print(f"CPU per block: {name} {' and '.join(f'{1000 * found[key]:.0f} ms' for found in middle)}", flush=True)


def print_pair(name: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Print a row of the table of the bundled network."""
    faster = one["report"] / two["report"]
    print(
        f"{name:<6} {one['report']:8.2f}  {one['start_up']:8.1f}  {two['report']:10.2f}  {two['start_up']:8.1f}"
        f"   {faster:8.3f}  {100 * faster / 2:8.1f} %",
        flush=True,
    )


def simulated(volume: Path, model: Path) -> None:
    """Measure sleeping workers and print the table."""
    print(f"\nsimulated: {PAUSE} s of sleep per block of {' x '.join(map(str, TILE))} voxels")
    print("workers  blocks  start-up   ideal  seconds  efficiency  steady   blocks/s  driver CPU  worker CPU  machine")
    for workers in SIZES:
        blocks = max(MIN_BLOCKS, BLOCKS_PER_WORKER * workers)
        found = sleeping_run(volume, model, workers, blocks, PAUSE)
        ideal = blocks * PAUSE / workers
        print(
            f"{workers:7}  {blocks:6}  {found['start_up']:6.1f} s  {ideal:6.2f}  {found['seconds']:7.2f}"
            f"  {100 * ideal / found['seconds']:8.1f} %  {100 * PAUSE / found['interval']:4.1f} %"
            f"  {blocks / found['seconds']:9.1f}  {1000 * found['driver_cpu']:7.1f} ms  {1000 * found['worker_cpu']:7.1f} ms"
            f"  {found['machine']:5.0f} %",
            flush=True,
        )


def limits(folder: Path, volume: Path, model: Path) -> None:
    """Measure the limits of the driver and print them."""
    found = sleeping_run(volume, model, AWAKE_WORKERS, AWAKE_BLOCKS, 0.0)
    print(f"\nlimits: {AWAKE_BLOCKS} blocks without sleep, {AWAKE_WORKERS} workers")
    print(
        f"{AWAKE_BLOCKS / found['seconds']:.0f} blocks/s here, machine {found['machine']:.0f} %; CPU per block: driver and "
        f"scheduler {1000 * found['driver_cpu']:.1f} ms, i.e. {1 / found['driver_cpu']:.0f} blocks/s on a dedicated core, "
        f"worker {1000 * found['worker_cpu']:.1f} ms"
    )
    found = measure("driver")
    print(
        f"{1 / found['seconds']:.0f} blocks/s without work, driver's CPU {1000 * found['driver_cpu']:.1f} ms per block; its "
        f"memory after every {STEP} of {EMPTY_BLOCKS} blocks: {mebibytes(found['memory'])}",
        flush=True,
    )
    for grid in GRIDS:
        large = folder / "large.zarr"
        save(large, triple(n * length for n, length in zip(grid, LARGE_TILE, strict=True)), LARGE_TILE)
        found = measure("first", 0.0, volume=str(large), model=str(model), tile=LARGE_TILE)
        shutil.rmtree(large)
        print(
            f"plan of {int(np.prod(grid)):>8} blocks: first task {found['task']:.2f} s after the call, of which "
            f"{found['planned']:.2f} s until workers and output are ready; peak {mebibytes([found['peak']])}",
            flush=True,
        )
    found = measure("books", folder=str(folder))
    print(
        f"bookkeeping alone, simulated outcomes: {mebibytes(found['memory'])} after {', '.join(map(str, MARKS))} blocks, "
        f"{1000 * found['seconds']:.2f} ms per block"
    )


def sleeping_run(volume: Path, model: Path, workers: int, blocks: int, pause: float) -> dict[str, Any]:
    """Measure a run with sleeping workers on the first blocks of the volume."""
    region = f"0:{blocks},:,:"
    return measure("run", pause, volume=str(volume), workers=workers, model=str(model), tile=TILE, roi=region)


def mebibytes(sizes: list[int]) -> str:
    """Format sizes in bytes."""
    return ", ".join(f"{size / 2**20:.0f}" for size in sizes) + " MiB"


def save(path: Path, shape: tuple[int, ...], chunk: Triple) -> zarr.Array[Any]:
    """Create an empty volume."""
    return zarr.create_array(path, shape=shape, chunks=chunk, dtype="uint8", dimension_names="zyx")


def save_pointwise(path: Path) -> Path:
    """Write a model file of the network that the sleeping predictor replaces."""
    from emseg_core.model.file import save_model  # a global import would load torch into the driver's memory
    from emseg_core.model.unet import UNet

    save_model(path, UNet(POINTWISE), {"name": "pointwise"})
    return path


def main(folder: Path) -> None:
    """Run all measurements and print the tables."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}", flush=True)
    real(folder)
    volume, model = folder / "noise.zarr", save_pointwise(folder / "pointwise.safetensors")
    shape = (AWAKE_BLOCKS, *TILE[1:])
    save(volume, shape, TILE)[...] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    simulated(volume, model)
    limits(folder, volume, model)
    print(f"\nload {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(MEASURES[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="emseg-scaling-"))
        place.mkdir(exist_ok=True)
        try:
            main(place)
        finally:
            shutil.rmtree(place)
