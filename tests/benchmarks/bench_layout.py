"""Compare all divisions of this machine's cores into workers and threads.

    python tests/benchmarks/bench_layout.py [--voxels N] [--rounds N]

The volume has about N million voxels, 60 by default. The networks are the bundled 3-D network and a 2-D network of width 16 and
depth 4 with random weights. Each division runs once per round, in three rounds by default after a warm-up. Times are from the
first assigned block to the last written one, in the precision that a run chooses by default.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import numpy as np
import torch
import zarr

from emseg.flows.segment import segment
from emseg_core.model.backend import default_backend, low_precisions
from emseg_core.model.file import save_model
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec

SPEC = ModelSpec.unet(width=16, depth=4)
SIDE = 768


def main(voxels: int, rounds: int) -> None:
    """Run the benchmark and print a table for each network."""
    cores = len(os.sched_getaffinity(0))
    ways = [(cores // threads, threads) for threads in range(1, cores + 1) if cores % threads == 0]
    precision = (*low_precisions("cpu"), "float32")[0]
    print(f"{cores} cores, {torch.cpu.get_capabilities().get('cpu_name')}, {default_backend('cpu')}, {precision}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = (voxels // SIDE**2, SIDE, SIDE)
        values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        zarr.create_array(folder / "volume.zarr", shape=shape, chunks=(64, 64, 64), dtype="uint8")[...] = values
        torch.manual_seed(0)
        save_model(folder / "planar.safetensors", UNet(SPEC), {})
        for network, model in (("bundled", None), ("2-D", folder / "planar.safetensors")):
            seconds: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
            for turn in range(rounds + 1):
                for workers, threads in ways:
                    asked = {"model": model, "workers": workers, "threads": threads, "precision": precision}
                    report = segment(folder / "volume.zarr", folder / "out.zarr", **asked)  # type: ignore[arg-type]
                    assert report.exit_code == 0, report.failures
                    shutil.rmtree(folder / "out.zarr")
                    if turn:
                        seconds[workers, threads].append(report.seconds)
            best = min(median(took) for took in seconds.values())
            print(f"\n{network} network, {values.size / 1e6:.0f} Mvoxel\nworkers  threads  seconds  Mvoxel/s  of the best")
            for (workers, threads), took in seconds.items():
                middle = median(took)
                print(f"{workers:7}  {threads:7}  {middle:7.2f}  {values.size / middle / 1e6:8.2f}  {best / middle:11.2f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--voxels", type=int, default=60, help="size of the volume, in million voxels")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    main(asked.voxels * 10**6, asked.rounds)
