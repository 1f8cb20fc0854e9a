"""Repeat on this machine the paper's "segmentation of a 512 x 512 image takes less than a second on a recent GPU" (2015).

    python tests/benchmarks/bench_paper.py [THREADS]

The original network of 31 million parameters (Ronneberger et al. 2015, arXiv:1505.04597, Fig. 1) with random weights segments
one mirrored slice of 512 x 512 pixels, from pixels to labels, with the model already loaded, in each library and precision
available on this machine. In turn with it, a matrix product in torch in the same precision shows the best speed of the
hardware.

*useful* counts the operations per pixel in an infinitely large slice, times the pixels of the slice; *done* counts those for
the tile that passes through the network, including its context of 92 pixels on each side. THREADS is the number of cores by
default.
"""

from __future__ import annotations

import os
import sys
from statistics import median
from time import perf_counter
from typing import get_args

import numpy as np
import torch

from emseg_core.box import Box
from emseg_core.grid.mirror import reflect
from emseg_core.grid.stitch import classify
from emseg_core.model.adapter import DTYPES
from emseg_core.model.backend import low_precisions, open_predictor
from emseg_core.model.file import ModelFile, weights_of
from emseg_core.model.unet import UNet
from emseg_core.normalise import normalised
from emseg_core.ports import Predictor
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend, Precision

PAPER = ModelSpec.unet()
SLICE = (1, 512, 512)
ROUNDS = 7
SIDE = 4096
"""Number of rows and columns of the matrices."""


def main(threads: int) -> None:
    """Run the benchmark and print the table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ModelFile(PAPER, {}, "drawn", weights_of(UNet(PAPER)))
    pixels = np.random.default_rng(0).integers(0, 256, SLICE, np.uint8)
    tile = PAPER.tile_for(SLICE)
    done, useful = PAPER.flops(tile), endless() * pixels.size
    print(f"{pixels.shape[1]} x {pixels.shape[2]} pixels, {threads} threads, torch {torch.__version__}, {cpu()}")
    print(f"{useful / 1e12:.3f} TFLOP useful, {done / 1e12:.3f} TFLOP done in a tile of {tile[1]} x {tile[2]}")
    print(f"{'':<22}{'seconds':>9}{'done, GFLOP/s':>15}{'useful, GFLOP/s':>17}{'product, GFLOP/s':>18}{'useful of it':>14}")
    for library in get_args(Backend):
        for precision in ("float32", *low_precisions("cpu")):
            predictor = open_predictor(model, library, precision, threads, "cpu")
            segment(predictor, pixels)
            rounds = [(clocked(predictor, pixels), product(precision)) for _ in range(ROUNDS)]
            seconds, best = median(took for took, _ in rounds), median(rate for _, rate in rounds)
            share = median(useful / took / rate for took, rate in rounds)
            print(
                f"{library + ' ' + precision:<22}{seconds:>9.3f}{done / seconds / 1e9:>15.0f}{useful / seconds / 1e9:>17.0f}"
                f"{best / 1e9:>18.0f}{share:>14.2f}"
            )


def endless() -> float:
    """Compute the floating-point operations per pixel of a slice so large that its faces do not matter."""
    side = 2**16
    return PAPER.flops(PAPER.tile_for((1, side, side))) / side**2


def segment(predictor: Predictor, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    """Segment a slice, from pixels to labels."""
    source = Box.of_shape(PAPER.tile_for(SLICE)).relative_to(PAPER.context)
    seen = reflect(source, SLICE).fill(pixels)
    mean, deviation = (np.full(1, value, np.float32) for value in (pixels.mean(), pixels.std()))
    classify(predictor.predict(normalised(seen, mean, deviation)[None])[0])


def clocked(predictor: Predictor, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> float:
    """Segment a slice and return the seconds it took."""
    began = perf_counter()
    segment(predictor, pixels)
    return perf_counter() - began


def product(precision: Precision) -> float:
    """Measure the floating-point operations per second of a matrix product."""
    matrix = torch.randn(SIDE, SIDE).to(DTYPES[precision])
    matrix @ matrix
    began = perf_counter()
    matrix @ matrix
    return 2 * SIDE**3 / (perf_counter() - began)


def cpu() -> str:
    """Return the name of the processor and its instruction sets for low precision."""
    has = torch.cpu.get_capabilities()
    return ", ".join([str(has.get("cpu_name", "unknown")), *(name for name in ("amx_bf16", "avx512_bf16") if has.get(name))])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0)))
