"""Measure the time of commands with almost nothing to compute, and the steps at the start of a run.

    python tests/benchmarks/bench_startup.py [OTHER_PYTHON]

Each command runs as a process of its own on a volume of 8 x 64 x 64 voxels, five times; medians of wall-clock seconds,
and of the processor's. With OTHER_PYTHON, the interpreter of an environment that has another build of emseg, both builds take
turns, and ratios are given.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any

import tifffile
import zarr

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
SHAPE = (8, 64, 64)
ROUNDS = 5
COMMANDS = {
    "run, no workers": "run {volume} -o {folder}/new.zarr --overwrite --workers 0",
    "run, 2 workers": "run {volume} -o {folder}/new.zarr --overwrite --workers 2",
    "label, no workers": "label {folder}/copy.zarr --workers 0",
    "label, 2 workers": "label {folder}/copy.zarr --workers 2",
    "status": "status {folder}/labels.zarr",
    "plan": "plan {volume}",
    "models": "models",
    "--help": "--help",
}
STEPS = {
    "emseg.flows.segment": ("output_to_resume", "draft_run", "settle", "prepare_output"),
    "emseg.clusters.local": ("start_cluster", "Client"),
}
"""Functions whose start and end are moments of the timeline, by the module that calls them."""


def main(folder: Path, pythons: list[str]) -> None:
    """Print medians of all commands, and the timelines of a run."""
    volume = folder / "volume.zarr"
    zarr.create_array(volume, data=tifffile.imread(SAMPLE)[tuple(slice(length) for length in SHAPE)], chunks=(8, 32, 32))
    places = [folder / f"build-{number}" for number in range(len(pythons))]
    for python, place in zip(pythons, places, strict=True):
        place.mkdir()
        emseg(python, f"run {volume} -o {place}/labels.zarr --probabilities --workers 0")
    heads = (f"{name + suffix:>12}" for suffix in ("", ", CPU") for name in ("this", "other", "ratio"))
    print("".join((f"{'seconds, median of ' + str(ROUNDS):<24}", *heads)))
    for name, command in COMMANDS.items():
        taken: list[list[tuple[float, float]]] = [[] for _ in pythons]
        for _ in range(ROUNDS):
            for python, place, seconds in zip(pythons, places, taken, strict=True):
                shutil.rmtree(place / "copy.zarr", ignore_errors=True)
                shutil.copytree(place / "labels.zarr", place / "copy.zarr")
                seconds.append(emseg(python, command.format(volume=volume, folder=place)))
        print(f"{name:<24}", end="")
        for clock in (0, 1):
            found = [median(each[clock] for each in seconds) for seconds in taken]
            ratio = f"{found[0] / found[1]:>12.2f}" if len(found) > 1 else f"{'':>24}"
            print("".join(f"{seconds:>12.2f}" for seconds in found) + ratio, end="")
        print(flush=True)
    for workers in (0, 2):
        print(f"\ntimeline of a run with {workers} workers, seconds from its start")
        began = time()
        words = [sys.executable, __file__, "timeline", str(began), str(volume), str(folder / "timeline.zarr"), str(workers)]
        subprocess.run(words, check=True)
        print(f"{time() - began:8.2f}  the process has ended", flush=True)


def emseg(python: str, command: str) -> tuple[float, float]:
    """Run a command with one of the builds, and return the seconds it took, and those of the processor."""
    began, before = perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([python, "-m", "emseg", *command.split()], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timeline(began: float, volume: str, output: str, workers: int) -> None:
    """Segment, and print when each step starts and ends, in seconds since `began`."""

    def say(moment: str) -> None:
        print(f"{time() - began:8.2f}  {moment}", flush=True)

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            say(f"{name} ...")
            try:
                return function(*arguments, **more)
            finally:
                say(f"{name} done")

        return call

    say("Python has started")
    from emseg.flows.segment import segment

    say("the command is imported")
    for module, names in STEPS.items():
        if workers or "clusters" not in module:
            for name in names:
                owner = import_module(module)
                setattr(owner, name, timed(getattr(owner, name), name))
    seen: set[str] = set()

    def watch(event: object) -> None:
        name = type(event).__name__
        if name not in seen and name != "BlocksInProgress":
            seen.add(name)
            say(f"first {name}")

    segment(volume, output, workers=workers, overwrite=True, on_event=watch)
    say("the flow has ended")


if __name__ == "__main__":
    if sys.argv[1:2] == ["timeline"]:
        timeline(float(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        place = Path(tempfile.mkdtemp(prefix="emseg-startup-"))
        try:
            main(place, [sys.executable, *sys.argv[1:]])
        finally:
            shutil.rmtree(place)
