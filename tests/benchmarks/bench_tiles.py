"""Compare the planner's tiles for a 3-D network with cubes of 132 voxels.

    python tests/benchmarks/bench_tiles.py [ROUNDS]

A 3-D U-Net of depth 3 and width 32 (44 voxels of context on each side) with random weights predicts, with one thread and in
each library and precision available on this machine, in turn one cube of 132 voxels, a common size in other tools, and one tile
of the plan for a volume of 2048 x 2048 x 2048 voxels on this machine. The table has the time per voxel that is kept; a tile
keeps `ModelSpec.step` voxels. ROUNDS is 3 by default.
"""

from __future__ import annotations

import math
import resource
import sys
from statistics import median
from time import perf_counter
from typing import get_args

import numpy as np
import torch

from emseg.launch import tile_budget
from emseg.placement import Placement
from emseg_core.box import Triple
from emseg_core.grid.layout import Limits, plan_volume
from emseg_core.model.backend import low_precisions, open_predictor
from emseg_core.model.file import ModelFile, weights_of
from emseg_core.model.unet import UNet
from emseg_core.ports import Predictor
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend
from emseg_core.specs.volume import VolumeSpec

SPEC = ModelSpec.unet(width=32, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))
CUBE: Triple = (132, 132, 132)
VOLUME = VolumeSpec((2048, 2048, 2048), "uint8", (64, 64, 64))


def main(rounds: int) -> None:
    """Run the benchmark and print the table."""
    torch.manual_seed(0)
    model = ModelFile(SPEC, {}, "drawn", weights_of(UNet(SPEC)))
    budget = tile_budget(Placement(), 1, "cpu")
    planned = plan_volume(VOLUME, SPEC, limits=Limits(tile_bytes=budget)).tile
    print(f"planned {planned}: {SPEC.activation_bytes(planned) / 2**30:.2f} of at most {budget / 2**30:.2f} GiB of activations")
    arithmetic = SPEC.flops(CUBE) / kept(CUBE) / (SPEC.flops(planned) / kept(planned))
    print(f"cubes of {CUBE[0]} take {arithmetic:.2f} times the arithmetic per voxel")
    print(f"{'':<20}{'cube, ns/voxel':>18}{'planned':>10}{'times faster':>14}{'peak memory so far':>20}")
    for library in get_args(Backend)[::-1]:
        for precision in (*low_precisions("cpu"), "float32"):
            predictor = open_predictor(model, library, precision, 1, "cpu")
            turns = [(clocked(predictor, CUBE), clocked(predictor, planned)) for _ in range(rounds + 1)][1:]
            cube, ours = (1e9 * median(seconds) for seconds in zip(*turns, strict=True))
            ratio = median(one / other for one, other in turns)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{library + ' ' + precision:<20}{cube:>18.0f}{ours:>10.0f}{ratio:>14.2f}{peak:>15.2f} GiB", flush=True)


def kept(tile: Triple) -> int:
    """Return the number of voxels kept from a tile's output."""
    return math.prod(SPEC.step(tile))


def clocked(predictor: Predictor, tile: Triple) -> float:
    """Predict a tile and return the seconds per voxel that is kept."""
    voxels = np.random.default_rng(0).normal(size=(1, *tile)).astype(np.float32)
    began = perf_counter()
    predictor.predict(voxels)
    return (perf_counter() - began) / kept(tile)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
