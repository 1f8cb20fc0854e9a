"""How much faster more workers are, what the driver can take, and how soon it begins.

    python tests/benchmarks/bench_scaling.py [FOLDER]

*Real* has the bundled network compute, with one worker and with two, turn by turn. *Simulated* has a predictor that
sleeps (`sleeping.py`), so that a machine of few cores holds many worker processes; all else is real: processes, Dask,
reading, and writing to the disk. *Limits* are the driver's.

Workers have started and loaded the model before any clock runs; that is the start-up. The time of a real run is the
report's. The time of a simulated run goes from the first worker's joining to the last block's end, so the joining of
the others, their first reading, and the end, when some have nothing left to do, all count. It would be *ideal* if each
worker slept all the time; *efficiency* is ideal by time. *Steady* is the efficiency of each worker between the ends of
its first block and its last, without start and end. *Machine* is how busy all cores are: where that is near 100 %, the
row tells of the machine. The driver's CPU seconds are those of its process, which has the scheduler in it.

Each measurement has a process of its own. FOLDER, by default a temporary one, needs 100 MB; it is removed at the end.
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

from emseg.box import Triple, triple
from emseg.grid.blocks import Block
from emseg.grid.cost import BLOCKS_IN_FLIGHT
from emseg.grid.order import strands_of
from emseg.grid.plan import Plan
from emseg.model.backend import default_backend
from emseg.model.bundled import resolve_model
from emseg.model.device import Device
from emseg.model.source import describe
from emseg.normalise import Normalisation
from emseg.outcome import Outcome, Seconds
from emseg.recipe import Recipe
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics
from emseg.specs.volume import VolumeSpec
from emseg.store.lease import Token
from emseg.store.output import open_output
from emseg_workflows.bench import Job, Trial, try_out
from emseg_workflows.clusters.local import local_cluster
from emseg_workflows.dispatch import Dispatch, Policy
from emseg_workflows.events import BlockEnded, Event, RunStarted, WorkerJoined
from emseg_workflows.executors.dask import DaskExecutor
from emseg_workflows.flows import segment as flow
from emseg_workflows.flows.outputs import prepare_output
from emseg_workflows.flows.plan import plan_run
from emseg_workflows.flows.record import RunRecord
from emseg_workflows.pace import Pace
from emseg_workflows.report import Tally
from emseg_workflows.stop import Stop

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
COPIES = 6
"""How often the sample is repeated: 32 blocks of about a second."""
PAIRS = 3
NUMBERS = ("report", "start_up", "worker_cpu", "driver_cpu")
"""What there is a median of."""
SLEEPING = Path(__file__).with_name("sleeping.py")
POINTWISE = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1))
"""Sees no neighbours, so that a block is as small as its tile."""
TILE = (1, 64, 64)
PAUSE = 0.5
"""Seconds of sleep for a block."""
SIZES = (1, 2, 4, 8, 16, 32)
"""Worker processes."""
EACH = 20
"""Blocks for each worker."""
LEAST = 40
"""Least blocks of a simulated run."""
AWAKE_WORKERS = 4
AWAKE_BLOCKS = 4000
LARGE_TILE = (8, 512, 512)
"""The smallest block that is planned where there are very many."""
GRIDS = ((1, 10, 10), (100, 400, 250))
"""Blocks along (z, y, x): a hundred, and ten million."""
MARKS = (1_000, 10_000, 100_000)
"""Blocks after which the memory of the driver's books is looked at."""
MANY = 160_000
"""Blocks of nothing at all that a driver hands out, more than there are task names that Dask remembers."""
STEP = 20_000
"""Blocks between two looks at its memory."""


@dataclass(frozen=True, slots=True)
class NoWork:
    """Nothing is done to a block, not even at the output: all that is left is the driver's."""

    name: str = "segment"
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(self, turn: object = None) -> Iterator[tuple[Callable[[Block], Outcome], None]]:
        """What does nothing to a block."""
        yield lambda block: Outcome(block.index, "done", block.write.voxels, Seconds(0.1, 0.1, 0.1, 0.1)), None


@dataclass
class Moments:
    """An observer of a run: when its first worker joined and its blocks ended."""

    joined: float | None = None
    idle: float = 0.0
    """CPU seconds of this process until then."""
    ended: list[float] = field(default_factory=list)
    ended_on: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """The same for each worker."""
    spent: float = 0.0
    """CPU seconds of this process until the last block's end."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case WorkerJoined() if self.joined is None:
                self.joined, self.idle = perf_counter(), process_time()
            case BlockEnded(outcome):
                self.ended.append(perf_counter())
                self.ended_on[outcome.worker].append(self.ended[-1])
                self.spent = process_time()

    @property
    def seconds(self) -> float:
        """From the first joining to the last end."""
        return self.ended[-1] - (self.joined or 0.0)

    @property
    def interval(self) -> float:
        """Mean seconds between the ends of two blocks of one worker."""
        spans = [(ends[-1] - ends[0], len(ends) - 1) for ends in self.ended_on.values()]
        return sum(seconds for seconds, _ in spans) / sum(blocks for _, blocks in spans)


def measure_run(
    volume: str, workers: int, *, model: str | None = None, tile: list[int] | None = None, region: str | None = None
) -> dict[str, Any]:
    """A run with workers that are ready."""
    source, moments, began = Path(volume), Moments(), perf_counter()
    shape = triple(tile) if tile else None
    plan = plan_run(source, model=model, tile=shape, region=region).plan
    with local_cluster(workers, BLOCKS_IN_FLIGHT) as client:
        as_it_is = Normalisation("volume", (0.0,), (1.0,))
        backend, file = default_backend("cpu"), resolve_model(model)
        spec = describe(file)[0]
        client.run(try_out, Trial(source, None, file, spec, as_it_is, plan.tile, 1, "cpu", backend, "float32", measured=True))
        start_up, before = perf_counter() - began, sum(client.run(process_time).values())
        psutil.cpu_percent()
        place = source.with_name("out.zarr")
        asked = {"model": model, "tile": shape, "region": region, "precision": "float32", "pyramid": False}
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
    """Seconds from the call until the first task starts, of a run that is stopped then."""
    source, stop, seconds, began = Path(volume), Stop(), dict[str, float](), perf_counter()

    def observe(event: Event) -> None:
        now = perf_counter() - began
        match event:
            case RunStarted():
                seconds["planned"] = now
            case BlockEnded(outcome) if not stop.asked:
                seconds["task"] = now - sum(astuple(outcome.seconds))
                stop.ask()

    # this disk could not hold what is never computed
    flow.check_space = lambda output, output_bytes: None  # type: ignore[attr-defined]
    place = source.with_name("out.zarr")
    flow.segment(source, place, model=model, tile=triple(tile), precision="float32", workers=2, stop=stop, on_event=observe)
    shutil.rmtree(place)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    return {**seconds, "returned": perf_counter() - began, "peak": 1024 * peak}


def measure_driver() -> dict[str, Any]:
    """Memory of a driver with its scheduler, which hand out very many blocks to workers that do nothing to them."""
    volume, stop, ended = VolumeSpec((MANY, *TILE[1:]), "uint8", TILE), Stop(), 0
    plan, memory = Plan(volume.box, TILE, volume.shape, POINTWISE, TILE, 1, TILE), []
    with local_cluster(2, BLOCKS_IN_FLIGHT) as client:
        began, idle = perf_counter(), process_time()
        strands = strands_of(plan, volume, np.ones(MANY, bool))
        for event in DaskExecutor(client, stop).run(NoWork(), strands, Policy(), stop):
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
    """Memory of dispatch, tally, pace and run record, with outcomes that are made up; no Dask."""
    blocks, place, workers = MARKS[-1], Path(folder, "books.zarr"), 32
    volume = VolumeSpec((blocks, *TILE[1:]), "uint8", TILE)
    plan = Plan(volume.box, TILE, volume.shape, POINTWISE, TILE, 1, TILE)
    numerics = Numerics("none", "none", "float32", 1, "none")
    recipe = Recipe(volume, "none", "none", Normalisation("volume", (0.0,), (1.0,)), plan, numerics, False)
    prepare_output(place, recipe, None, {}, overwrite=False, token=None)
    output = open_output(place)
    job = Job(recipe, Path(folder), Path(folder), place, Token(output.records, 1))
    now, dispatch, tally = 0.0, Dispatch(strands_of(plan, volume, np.ones(blocks, bool)), Policy()), Tally(plan, 0)
    record, pace = RunRecord(output, job, workers, print), Pace(plan, 0, workers, now)
    for worker in range(workers):
        dispatch.join(f"tcp://127.0.0.1:{worker}", BLOCKS_IN_FLIGHT, now)
    memory, began = [], perf_counter()
    while not dispatch.finished:
        dispatch.assign(now)
        for attempt in dispatch.in_hand:
            now += 0.01
            outcome = Outcome(attempt.block.index, "done", attempt.block.write.voxels, Seconds(0.1, 0.1, 0.1, 0.1))
            event, _ = dispatch.ended(attempt, outcome, now)
            record.tell(event)
            tally.count(outcome)
            pace.tell(event, now)
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
    """What a measurement gives in a process of its own, whose workers sleep instead of computing if there is a pause."""
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
    """Print the table of the bundled network."""
    sample = tifffile.imread(SAMPLE)
    values = np.concatenate([sample[:: 1 if copy % 2 else -1] for copy in range(COPIES)])
    volume = folder / "sample.zarr"
    save(volume, values.shape, (64, 64, 64))[...] = values
    print(f"\nreal: {' x '.join(map(str, values.shape))} voxels, seconds between the first block and the last")
    print("pair   1 worker  start-up   2 workers  start-up   speed-up  efficiency")
    pairs = []
    for pair in range(1, PAIRS + 1):
        pairs.append([measure("run", volume=str(volume), workers=workers) for workers in (1, 2)])
        print_pair(str(pair), *pairs[-1])
    middle = [{name: median(found[name] for found in turns) for name in NUMBERS} for turns in zip(*pairs, strict=True)]
    print_pair("median", *middle)
    for name, key in (("worker", "worker_cpu"), ("driver", "driver_cpu")):
        print(f"CPU of a block: {name} {' and '.join(f'{1000 * found[key]:.0f} ms' for found in middle)}", flush=True)


def print_pair(name: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Print a line of the table of the bundled network."""
    faster = one["report"] / two["report"]
    print(
        f"{name:<6} {one['report']:8.2f}  {one['start_up']:8.1f}  {two['report']:10.2f}  {two['start_up']:8.1f}"
        f"   {faster:8.3f}  {100 * faster / 2:8.1f} %",
        flush=True,
    )


def simulated(volume: Path, model: Path) -> None:
    """Print the table of sleeping workers."""
    print(f"\nsimulated: {PAUSE} s of sleep for a block of {' x '.join(map(str, TILE))} voxels")
    print("workers  blocks  start-up   ideal  seconds  efficiency  steady   blocks/s  driver CPU  worker CPU  machine")
    for workers in SIZES:
        blocks = max(LEAST, EACH * workers)
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
    """Print what the driver can take."""
    found = sleeping_run(volume, model, AWAKE_WORKERS, AWAKE_BLOCKS, 0.0)
    print(f"\nlimits: {AWAKE_BLOCKS} blocks of no work, {AWAKE_WORKERS} workers")
    print(
        f"{AWAKE_BLOCKS / found['seconds']:.0f} blocks/s here, machine {found['machine']:.0f} %; CPU of a block: driver and "
        f"scheduler {1000 * found['driver_cpu']:.1f} ms, which is {1 / found['driver_cpu']:.0f} blocks/s on a core of its "
        f"own, worker {1000 * found['worker_cpu']:.1f} ms"
    )
    found = measure("driver")
    print(
        f"{1 / found['seconds']:.0f} blocks/s that nothing is done to, driver's CPU {1000 * found['driver_cpu']:.1f} ms; its "
        f"memory after each {STEP} of {MANY}: {mebibytes(found['memory'])}",
        flush=True,
    )
    for grid in GRIDS:
        large = folder / "large.zarr"
        save(large, triple(n * length for n, length in zip(grid, LARGE_TILE, strict=True)), LARGE_TILE)
        found = measure("first", 0.0, volume=str(large), model=str(model), tile=LARGE_TILE)
        shutil.rmtree(large)
        print(
            f"plan of {int(np.prod(grid)):>8} blocks: first task {found['task']:.2f} s after the call, of which "
            f"{found['planned']:.2f} s until workers and output are there; peak {mebibytes([found['peak']])}",
            flush=True,
        )
    found = measure("books", folder=str(folder))
    print(
        f"books alone, outcomes made up: {mebibytes(found['memory'])} after {', '.join(map(str, MARKS))} blocks, "
        f"{1000 * found['seconds']:.2f} ms of a block"
    )


def sleeping_run(volume: Path, model: Path, workers: int, blocks: int, pause: float) -> dict[str, Any]:
    """A run with sleeping workers on the first blocks of the volume."""
    region = f"0:{blocks},:,:"
    return measure("run", pause, volume=str(volume), workers=workers, model=str(model), tile=TILE, region=region)


def mebibytes(sizes: list[int]) -> str:
    """Sizes in bytes as a person reads them."""
    return ", ".join(f"{size / 2**20:.0f}" for size in sizes) + " MiB"


def save(path: Path, shape: tuple[int, ...], chunk: Triple) -> zarr.Array[Any]:
    """An empty volume."""
    return zarr.create_array(path, shape=shape, chunks=chunk, dtype="uint8", dimension_names="zyx")


def save_pointwise(path: Path) -> Path:
    """A model file of the network that sleepers stand in for."""
    from emseg.model.file import save_model  # noqa: PLC0415  torch would be in the driver's memory
    from emseg.model.unet import UNet  # noqa: PLC0415

    save_model(path, UNet(POINTWISE), {"name": "pointwise"})
    return path


def main(folder: Path) -> None:
    """Print the tables."""
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
