"""What the choice of tiles is worth to a three-dimensional network: the planner's beside cubes of 132 voxels.

    python tests/benchmarks/bench_tiles.py [ROUNDS]

A 3-D U-Net of depth 3 and width 32 (44 voxels of context on each side) with weights that are drawn, with one thread, in each
library and precision that this machine has. Turn by turn: one cube of 132 voxels, which many tools use, and one tile of
the plan for a volume of 2048 voxels cubed on this machine. What counts is the time for each voxel that is kept, which is
`ModelSpec.step` of them for a tile. ROUNDS is 3 by default.
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

from emseg.box import Triple
from emseg.grid.layout import Limits, plan_volume
from emseg.model.backend import low_precisions, open_predictor
from emseg.model.file import ModelFile
from emseg.model.unet import UNet
from emseg.ports import Predictor
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Backend
from emseg.specs.volume import VolumeSpec
from emseg_workflows.launch import tile_budget
from emseg_workflows.placement import Placement

SPEC = ModelSpec.unet(width=32, depth=3, kernel=(3, 3, 3), pooling=(2, 2, 2))
CUBE: Triple = (132, 132, 132)
VOLUME = VolumeSpec((2048, 2048, 2048), "uint8", (64, 64, 64))


def main(rounds: int) -> None:
    """Print the table."""
    torch.manual_seed(0)
    model = ModelFile(SPEC, {}, "drawn", dict(UNet(SPEC).state_dict()))
    budget = tile_budget(Placement(), 1, "cpu")
    planned = plan_volume(VOLUME, SPEC, limits=Limits(tile_bytes=budget)).tile
    print(f"planned {planned}: {SPEC.activation_bytes(planned) / 2**30:.2f} of at most {budget / 2**30:.2f} GiB of activations")
    arithmetic = SPEC.flops(CUBE) / kept(CUBE) / (SPEC.flops(planned) / kept(planned))
    print(f"{arithmetic:.2f} times less arithmetic for each voxel than cubes of {CUBE[0]}")
    print(f"{'':<20}{'cube, ns a voxel':>18}{'planned':>10}{'times faster':>14}{'most memory so far':>20}")
    for library in get_args(Backend)[::-1]:
        for precision in (*low_precisions("cpu"), "float32"):
            predictor = open_predictor(model, library, precision, 1, "cpu")
            turns = [(clocked(predictor, CUBE), clocked(predictor, planned)) for _ in range(rounds + 1)][1:]
            cube, ours = (1e9 * median(seconds) for seconds in zip(*turns, strict=True))
            ratio = median(one / other for one, other in turns)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{library + ' ' + precision:<20}{cube:>18.0f}{ours:>10.0f}{ratio:>14.2f}{peak:>15.2f} GiB", flush=True)


def kept(tile: Triple) -> int:
    """Voxels of a tile's output that are kept."""
    return math.prod(SPEC.step(tile))


def clocked(predictor: Predictor, tile: Triple) -> float:
    """Seconds for each voxel that is kept."""
    voxels = np.random.default_rng(0).normal(size=(1, *tile)).astype(np.float32)
    began = perf_counter()
    predictor.predict(voxels)
    return (perf_counter() - began) / kept(tile)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
