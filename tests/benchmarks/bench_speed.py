"""How close a run comes to the bare network, beside what users run today: the same weights and the same precision.

    python tests/benchmarks/bench_speed.py [--slices N] [--side N] [--rounds N] [--precision P] [--ways WAY ...] [--picture F]

A volume of some slices of 1164 x 1164 voxels, or of another side, and the 2-D network of width 16 and depth 4 with weights
that are drawn. In each round, turn by turn, with one thread for the network:

*bare* the network alone on whole mirrored slices, read from memory, in torch (channels last) and in OpenVINO;
*emseg* a run with one worker process, from the first block that is handed out to the last that is written, with each, and
once with nothing chosen by hand but that these random weights may label fewer voxels as float32 does;
*MONAI* `sliding_window_inference` with windows of 572 x 572 that step 384, whose predictions are padded with zeros to the
window, and an importance map that is 1 where they are valid, with each; it takes as many windows as cover a slice, which
three of them do where the side is 1152, and four from there to 1536: what their overlap costs in arithmetic is told;
*map_overlap* `dask.array.map_overlap` of blocks of 768 x 768 with the context as depth, on one thread, in torch.

All give the same labels, or the script ends; but nobody looks near the faces, where Dask mirrors otherwise. Start-up is
left out: models are loaded, and each has predicted some slices before.
Eight slices by default, three rounds, float32, all ways; the picture, of the speeds, is drawn if it is named. Needs MONAI:
``pip install 'emseg[bench]'``.
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

from emseg.box import Box, triple
from emseg.grid.cost import BLOCKS_IN_FLIGHT
from emseg.grid.stitch import classify
from emseg.model.backend import low_precisions, open_predictor
from emseg.model.file import load_model, save_model
from emseg.model.unet import UNet
from emseg.normalise import survey
from emseg.ports import Predictor
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Backend, Precision
from emseg.store.output import open_output
from emseg.store.volume import open_volume
from emseg_workflows.clusters.local import local_cluster
from emseg_workflows.flows.segment import segment

SPEC = ModelSpec.unet(width=16, depth=4)
WINDOW, STEP = 572, 384
BLOCK = 768
CONTEXT = SPEC.context[1]
AGREE: dict[Precision, float] = {"float32": 0.9999, "bfloat16": 0.99}
"""Least part of voxels that all must label alike: other tiles give other last bits, which decide between near ties, of which
drawn weights give many."""

Labels = NDArray[np.uint8]
Way = Callable[[NDArray[np.float32]], tuple[Labels, float]]
"""Takes normalised slices ``(z, y, x)``, the first ones of the volume; gives their labels, and the seconds it took."""
WARMING = 2
"""Slices that each way predicts before any clock counts."""
WAYS = (
    *("bare torch", "emseg torch", "MONAI torch", "map_overlap torch"),
    *("bare OpenVINO", "emseg OpenVINO", "MONAI OpenVINO", "emseg default"),
)


def main(slices: int, side: int, rounds: int, precision: Precision, chosen: Collection[str], picture: Path | None) -> None:
    """Print the table, and draw it."""
    if precision not in ("float32", *low_precisions("cpu")):
        print(f"this CPU does not compute fast in {precision}")
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
    tell(seconds, values.shape, precision)
    if picture is not None:
        picture.write_text(drawing({way: values.size / median(took) / 1e6 for way, took in seconds.items()}))


def compared(ways: Mapping[str, Way], normalised: NDArray[np.float32], precision: Precision) -> dict[str, float]:
    """Seconds that each way takes, one after the other; ends the script if one labels otherwise than the first."""
    seconds, truth = {}, None
    for way, take in ways.items():
        labels, seconds[way] = take(normalised)
        truth = labels if truth is None else truth
        agree = float((labels == truth)[:, CONTEXT:-CONTEXT, CONTEXT:-CONTEXT].mean())
        least = AGREE["bfloat16" if way == "emseg default" else precision]
        assert agree >= least, f"{way} labels {agree:.4%} of the voxels as the first way does"
    return seconds


def texture(slices: int, side: int) -> NDArray[np.uint8]:
    """Blobs with noise ``(z, y, x)``."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:side, :side]
    waves = (np.sin(y / (9 + z)) + np.sin(x / (11 + z)) for z in range(slices))
    return np.stack([np.clip(128 + 30 * wave + rng.normal(0, 25, wave.shape), 0, 255).astype(np.uint8) for wave in waves])


def tell(seconds: dict[str, list[float]], shape: tuple[int, ...], precision: Precision) -> None:
    """The table: medians, and the medians of the ratios within each round, to the same library and to torch."""
    (slices, side, _), voxels = shape, prod(shape)
    print(f"{processor()}, 1 thread, {precision}, {slices} slices of {side} x {side}, {voxels / 1e6:.1f} Mvoxel")
    whole, windows = side + 2 * CONTEXT, ceil((side + 2 * CONTEXT - WINDOW) / STEP) + 1
    print(f"MONAI takes {windows**2} windows a slice: {windows**2 * WINDOW**2 / whole**2:.2f} times what whole slices compute")
    print(f"{'':<18}{'seconds':>9}{'Mvoxel/s':>10}{'of bare':>9}{'of MONAI':>10}{'of bare torch':>15}{'of MONAI torch':>16}")
    for way, took in seconds.items():
        library = "OpenVINO" if way.endswith("OpenVINO") else "torch"
        columns = ""
        for other, width in ((f"bare {library}", 9), (f"MONAI {library}", 10), ("bare torch", 15), ("MONAI torch", 16)):
            ratios = [theirs / ours for theirs, ours in zip(seconds.get(other, ()), took, strict=False)]
            columns += f"{f'{median(ratios):.2f}' if ratios else '':>{width}}"
        print(f"{way:<18}{median(took):>9.2f}{voxels / median(took) / 1e6:>10.3f}{columns}")


def drawing(speeds: dict[str, float]) -> str:
    """A bar for each way, in megavoxels a second, as SVG."""
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
    """What the system calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def clocked(predict: Callable[[Predictor, NDArray[np.float32]], Labels], *given: Any) -> tuple[Labels, float]:
    """What a function finds, and the seconds it took."""
    began = perf_counter()
    labels = predict(*given)
    return labels, perf_counter() - began


def run(
    folder: Path, client: Client, backend: Backend | None, precision: Precision | None, values: NDArray[np.float32]
) -> tuple[Labels, float]:
    """A run on the volume on the disk, or on its first slices."""
    place = folder / "out.zarr"
    model = folder / "model.safetensors"
    if precision is None:
        precision = (*low_precisions("cpu"), "float32")[0]  # what a trained network would get
    asked = {"model": model, "backend": backend, "precision": precision, "overwrite": True}
    region = ",".join(f"0:{length}" for length in values.shape)
    report = segment(folder / "volume.zarr", place, region=region, client=client, **asked)  # type: ignore[arg-type]
    assert report.exit_code == 0, report.failures
    return open_output(place).read_labels(Box.of_shape(triple(values.shape))), report.seconds


def mirrored(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Slices with as much around them as the network looks at, and a little more so that it fits."""
    side = values.shape[1]
    more = (CONTEXT, SPEC.next_valid(1, side + 2 * CONTEXT) - side - CONTEXT)
    return np.pad(values, ((0, 0), more, more), mode="reflect")


def bare(predictor: Predictor, values: NDArray[np.float32]) -> Labels:
    """Whole slices."""
    inner = (slice(None), slice(None), *map(slice, values.shape[1:]))
    return np.concatenate([classify(predictor.predict(one[None, None])[0][inner]) for one in mirrored(values)])


def monai(predictor: Predictor, values: NDArray[np.float32]) -> Labels:
    """As a user of MONAI with a valid network does it."""
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
    """As a user of Dask does it."""

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
