"""Compare the speed of runs with that of the bare network and of other tools, with equal weights and precision.

    python tests/benchmarks/bench_speed.py [--slices N] [--side N] [--rounds N] [--precision P] [--ways WAY ...] [--picture F]

The volume has some slices of 1164 x 1164 voxels, or of another side; the network is 2-D, of width 16 and depth 4, with random
weights. Each round measures these in turn, with one thread for the network:

*bare*: the network alone on whole mirrored slices in memory, in torch (channels last) and in OpenVINO;
*emseg*: a run with one worker process, from the first assigned block to the last written one, with each library, and once with
default settings, except that these random weights may label fewer voxels as float32 does;
*MONAI*: `sliding_window_inference` with windows of 572 x 572 in steps of 384, whose predictions are zero-padded to the window,
and an importance map that is 1 where they are valid, with each library. It uses as many windows as cover a slice: three along
each axis up to a side of 1152, and four from there to 1536. The cost of their overlap in arithmetic is printed;
*map_overlap*: `dask.array.map_overlap` on blocks of 768 x 768 with the context as depth, on one thread, in torch.

All must give the same labels, or the script fails; voxels near the faces, where Dask mirrors differently, are not compared.
Start-up is excluded: models are loaded, and each variant has predicted some slices before.
By default there are eight slices, three rounds, float32 and all variants. ``--picture`` draws the speeds as SVG. The benchmark
needs MONAI: ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import platform
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import ceil, prod
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, get_args

import dask
import dask.array as da
import numpy as np
import torch
import zarr
from distributed import Client
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from emseg.clusters.local import local_cluster
from emseg.flows.segment import segment
from emseg_core.box import Box, triple
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.grid.stitch import classify
from emseg_core.model.backend import low_precisions, open_predictor
from emseg_core.model.file import load_model, save_model
from emseg_core.model.unet import UNet
from emseg_core.normalise import survey
from emseg_core.ports import Predictor
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend, Precision
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume

SPEC = ModelSpec.unet(width=16, depth=4)
WINDOW, STEP = 572, 384
BLOCK = 768
CONTEXT = SPEC.context[1]
AGREE: dict[Precision, float] = {"float32": 0.9999, "bfloat16": 0.99}
"""Minimum fraction of voxels with equal labels: different tiles give different last bits, which decide between near ties, and
random weights give many of these."""

Labels = NDArray[np.uint8]
Way = Callable[[NDArray[np.float32]], tuple[Labels, float]]
"""Function of the first normalised slices ``(z, y, x)`` of the volume that returns their labels and the seconds it took."""
WARMING = 2
"""Number of slices that each variant predicts as a warm-up."""
WAYS = (
    *("bare torch", "emseg torch", "MONAI torch", "map_overlap torch"),
    *("bare OpenVINO", "emseg OpenVINO", "MONAI OpenVINO", "emseg default"),
)


def main(slices: int, side: int, rounds: int, precision: Precision, chosen: Collection[str], picture: Path | None) -> None:
    """Run the benchmark, print the table, and draw it."""
    if precision not in ("float32", *low_precisions("cpu")):
        print(f"this CPU has no fast arithmetic in {precision}")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = texture(slices, side)
        array = zarr.create_array(folder / "volume.zarr", shape=values.shape, chunks=(1, 388, 388), dtype=values.dtype)
        array[...] = values
        torch.manual_seed(0)
        save_model(folder / "model.safetensors", UNet(SPEC), {})
        model = load_model(folder / "model.safetensors")
        predictor, faster = (open_predictor(model, library, precision, 1, "cpu") for library in get_args(Backend))
        source = open_volume(folder / "volume.zarr")
        normalised = survey(source, "volume")[0].apply(values, source.spec.box)
        with local_cluster(1, BLOCKS_IN_FLIGHT) as client:
            ways: dict[str, Way] = {
                "bare torch": partial(clocked, bare, predictor),
                "emseg torch": partial(run, folder, client, "torch", precision),
                "MONAI torch": partial(clocked, monai, predictor),
                "map_overlap torch": partial(clocked, overlapped, predictor),
                "bare OpenVINO": partial(clocked, bare, faster),
                "emseg OpenVINO": partial(run, folder, client, "openvino", precision),
                "MONAI OpenVINO": partial(clocked, monai, faster),
                "emseg default": partial(run, folder, client, None, None),
            }
            ways = {way: take for way, take in ways.items() if way in chosen}
            compared(ways, normalised[:WARMING], precision)
            turns = [compared(ways, normalised, precision) for _ in range(rounds)]
    seconds = {way: [turn[way] for turn in turns] for way in ways}
    print_table(seconds, values.shape, precision)
    if picture is not None:
        picture.write_text(drawing({way: values.size / median(took) / 1e6 for way, took in seconds.items()}))


def compared(ways: Mapping[str, Way], normalised: NDArray[np.float32], precision: Precision) -> dict[str, float]:
    """Measure the seconds of each variant, and check that its labels are those of the first."""
    seconds, truth = {}, None
    for way, take in ways.items():
        labels, seconds[way] = take(normalised)
        truth = labels if truth is None else truth
        agree = float((labels == truth)[:, CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].mean())
        least = AGREE["bfloat16" if way == "emseg default" else precision]
        assert agree >= least, f"{way} gives {agree:.4%} of the voxels the same label as the first variant"
    return seconds


def texture(slices: int, side: int) -> NDArray[np.uint8]:
    """Make blobs with noise, ``(z, y, x)``."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:side, :side]
    waves = (np.sin(y / (9 + z)) + np.sin(x / (11 + z)) for z in range(slices))
    return np.stack([np.clip(128 + 30 * wave + rng.normal(0, 25, wave.shape), 0, 255).astype(np.uint8) for wave in waves])


def print_table(seconds: dict[str, list[float]], shape: tuple[int, ...], precision: Precision) -> None:
    """Print medians, and the medians of the ratios within each round, to the same library and to torch."""
    (slices, side, _), voxels = shape, prod(shape)
    print(f"{processor()}, 1 thread, {precision}, {slices} slices of {side} x {side}, {voxels / 1e6:.1f} Mvoxel")
    whole, windows = side + 2 * CONTEXT, ceil((side + 2 * CONTEXT - WINDOW) / STEP) + 1
    arithmetic = windows**2 * WINDOW**2 / whole**2
    print(f"MONAI uses {windows**2} windows per slice: {arithmetic:.2f} times the arithmetic of whole slices")
    print(f"{'':<18}{'seconds':>9}{'Mvoxel/s':>10}{'of bare':>9}{'of MONAI':>10}{'of bare torch':>15}{'of MONAI torch':>16}")
    for way, took in seconds.items():
        library = "OpenVINO" if way.endswith("OpenVINO") else "torch"
        columns = ""
        for other, width in ((f"bare {library}", 9), (f"MONAI {library}", 10), ("bare torch", 15), ("MONAI torch", 16)):
            ratios = [theirs / ours for theirs, ours in zip(seconds.get(other, ()), took, strict=False)]
            columns += f"{f'{median(ratios):.2f}' if ratios else '':>{width}}"
        print(f"{way:<18}{median(took):>9.2f}{voxels / median(took) / 1e6:>10.3f}{columns}")


def drawing(speeds: dict[str, float]) -> str:
    """Draw a bar per variant, in megavoxels per second, as SVG."""
    rows, most = [], max(speeds.values())
    for number, (way, speed) in enumerate(sorted(speeds.items(), key=lambda item: item[1])):
        y, length = 30 * number + 8, 420 * speed / most
        colour = "#2b7bba" if way.startswith("emseg") else "#b8c4d0"
        rows.append(f'<text x="150" y="{y + 16}" text-anchor="end">{way}</text>')
        rows.append(f'<rect x="160" y="{y}" width="{length:.0f}" height="22" fill="{colour}"/>')
        rows.append(f'<text x="{166 + length:.0f}" y="{y + 16}">{speed:.2f}</text>')
    height = 30 * len(speeds) + 34
    rows.append(f'<text x="160" y="{height - 8}" fill="#667">megavoxels a second, one thread</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{height}" font-family="sans-serif" font-size="14">'
    return "\n".join([head, f'<rect width="660" height="{height}" fill="white"/>', *rows, "</svg>", ""])


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def clocked(predict: Callable[[Predictor, NDArray[np.float32]], Labels], *given: Any) -> tuple[Labels, float]:
    """Call a function, and return its labels and the seconds it took."""
    began = perf_counter()
    labels = predict(*given)
    return labels, perf_counter() - began


def run(
    folder: Path, client: Client, backend: Backend | None, precision: Precision | None, values: NDArray[np.float32]
) -> tuple[Labels, float]:
    """Segment the volume on disk, or its first slices."""
    place = folder / "out.zarr"
    model = folder / "model.safetensors"
    if precision is None:
        precision = (*low_precisions("cpu"), "float32")[0]  # the default for a trained network
    asked = {"model": model, "backend": backend, "precision": precision, "overwrite": True}
    region = ",".join(f"0:{length}" for length in values.shape)
    report = segment(folder / "volume.zarr", place, roi=region, client=client, **asked)  # type: ignore[arg-type]
    assert report.exit_code == 0, report.failures
    return open_output(place).read_labels(Box.of_shape(triple(values.shape))), report.seconds


def mirrored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pad slices by the context of the network, and to the next valid shape."""
    side = values.shape[1]
    more = (CONTEXT, SPEC.next_valid(1, side + 2 * CONTEXT) - side - CONTEXT)
    return np.pad(values, ((0, 0), more, more), mode="reflect")


def bare(predictor: Predictor, values: NDArray[np.float32]) -> Labels:
    """Predict whole slices."""
    inner = (slice(None), slice(None), *map(slice, values.shape[1:]))
    return np.concatenate([classify(predictor.predict(one[None, None])[0][inner]) for one in mirrored(values)])


def monai(predictor: Predictor, values: NDArray[np.float32]) -> Labels:
    """Predict with MONAI, as one would with a network of valid convolutions."""
    valid = slice(CONTEXT, WINDOW - CONTEXT)
    importance = torch.zeros(WINDOW, WINDOW)
    importance[valid, valid] = 1

    def predict(windows: torch.Tensor) -> torch.Tensor:
        logits = torch.from_numpy(predictor.predict(windows.numpy()))[:, :, 0]
        return torch.nn.functional.pad(logits, (CONTEXT,) * 4)

    found, overlap, inner = [], 1 - STEP / WINDOW, slice(CONTEXT, CONTEXT + values.shape[1])
    for one in mirrored(values):
        source = torch.from_numpy(one)[None, None]
        logits = sliding_window_inference(source, (WINDOW, WINDOW), 1, predict, overlap, roi_weight_map=importance)
        assert isinstance(logits, torch.Tensor)
        found.append(logits[0, :, inner, inner].argmax(dim=0).numpy())
    return np.stack(found).astype(np.uint8)


def overlapped(predictor: Predictor, values: NDArray[np.float32]) -> Labels:
    """Predict with Dask's `map_overlap`."""

    def predict(block: NDArray[np.float32]) -> Labels:
        size = [SPEC.next_valid(axis, length) for axis, length in enumerate(block.shape)]
        more = [(0, wanted - length) for wanted, length in zip(size, block.shape, strict=True)]
        logits = predictor.predict(np.pad(block, more, mode="reflect")[None])[0]
        kept = tuple(slice(0, length - 2 * c) for length, c in zip(block.shape, SPEC.context, strict=True))
        return classify(logits[(slice(None), *kept)])

    source = da.from_array(values, chunks=(1, BLOCK, BLOCK))
    depth = dict(enumerate(SPEC.context))
    labels = da.map_overlap(
        predict, source, depth=depth, boundary="reflect", trim=False, dtype=np.uint8, meta=np.empty((0,) * 3, np.uint8)
    )
    with dask.config.set(scheduler="single-threaded"):
        return np.asarray(labels.compute())


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--side", type=int, default=1164)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    main(asked.slices, asked.side, asked.rounds, asked.precision, asked.ways, asked.picture)
