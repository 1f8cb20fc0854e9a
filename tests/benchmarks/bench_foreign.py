"""Compare runs of networks made with other libraries with those networks alone, and with MONAI's sliding window.

    python tests/benchmarks/bench_foreign.py [--rounds N] [--size Z Y X]

A MONAI UNet in 3-D with batch normalisation, and where they are installed, a PlainConvUNet of
dynamic-network-architectures and a Unet of segmentation-models-pytorch, each with random weights, exported as `.pt2` and as
ONNX. Each round measures in turn, with one thread for the network:

*bare*: the network itself in torch on one tile of the run's shape in memory; its speed counts the voxels that go in;
*emseg*: a run with one worker process, from the first assigned block to the last written one, in float32 and in the precision
that a run chooses if it agrees; voxels that go in are those of all tiles, context included;
*MONAI*: `sliding_window_inference` with windows of the tile's shape that overlap by twice the context, as emseg's tiles do;
its speed, and emseg's beside it, count the voxels that come out.

Start-up is excluded. The benchmark needs MONAI: ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import tempfile
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import zarr
from bench_speed import processor, texture
from distributed import Client
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets.unet import UNet
from torch import nn

from emseg.clusters.local import local_cluster
from emseg.flows.records.run_log import recipe_of
from emseg.flows.segment import segment
from emseg_core.box import Triple, triple
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.model.backend import low_precisions
from emseg_core.recipe import Recipe
from emseg_core.specs.numerics import Precision
from emseg_core.store.outputs.lifecycle import open_output

PRECISIONS: tuple[Precision, ...] = ("float32", *low_precisions("cpu"))


def main(rounds: int, size: Triple) -> None:
    """Print a table with a row for each network and kind of file."""
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread, {' x '.join(map(str, size))} voxels, median of {rounds}")
    ways = [f"emseg {precision}" for precision in PRECISIONS]
    print(f"{'':<30}{'tile':>16}" + "".join(f"{f'{way} of {other}':>26}" for other in ("bare", "MONAI") for way in ways))
    with tempfile.TemporaryDirectory() as name, local_cluster(1, BLOCKS_IN_FLIGHT) as client:
        folder = Path(name)
        values = texture(size[0], size[1])[:, :, : size[2]]
        array = zarr.create_array(folder / "volume.zarr", shape=values.shape, chunks=(16, 128, 128), dtype=values.dtype)
        array[...] = values
        for title, network, planar in networks():
            for kind in ("pt2", "onnx"):
                path = saved(folder / f"network.{kind}", network, planar)
                measured(f"{title}, {kind}", network, path, folder, client, rounds)
                path.unlink()


def networks() -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield a title, a network, and whether it is 2-D, for each library that is installed."""
    torch.manual_seed(0)
    widths = (16, 32, 64)
    yield "MONAI UNet", UNet(3, 1, 2, widths, (2, 2), num_res_units=1, norm="batch"), False
    if find_spec("dynamic_network_architectures"):
        from dynamic_network_architectures.architectures.unet import PlainConvUNet  # type: ignore[import-not-found]

        plain = PlainConvUNet(1, 3, widths, nn.Conv3d, 3, (1, 2, 2), 2, 2, 2, True, nn.BatchNorm3d, nonlin=nn.ReLU)
        yield "PlainConvUNet", plain, False
    if find_spec("segmentation_models_pytorch"):
        from segmentation_models_pytorch import Unet  # type: ignore[import-not-found]

        yield "smp Unet resnet18", Unet("resnet18", encoder_weights=None, in_channels=1, classes=2), True


def saved(path: Path, network: nn.Module, planar: bool) -> Path:
    """Export a network for images of any shape, and say beside the file what it gives."""
    example = torch.randn((1, 1, 64, 64) if planar else (1, 1, 32, 32, 32))
    axes = range(2, example.dim())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter needs one package less, but is deprecated
        if path.suffix == ".pt2":
            shapes = (dict.fromkeys(axes, torch.export.Dim.AUTO),)
            torch.export.save(torch.export.export(network.eval(), (example,), dynamic_shapes=shapes), path)
        else:
            lengths = {"x": {axis: f"axis{axis}" for axis in axes}}
            torch.onnx.export(network.eval(), (example,), path, dynamo=False, input_names=["x"], dynamic_axes=lengths)
    path.with_name(f"{path.name}.toml").write_text('activation = "logits"\n')
    return path


def measured(title: str, network: nn.Module, path: Path, folder: Path, client: Client, rounds: int) -> None:
    """Print the row of a network."""
    runs: dict[str, Callable[[], float]] = {
        f"emseg {precision}": lambda precision=precision: run(path, folder, client, precision)  # type: ignore[misc]
        for precision in PRECISIONS
    }
    for take in runs.values():
        take()
    recipe = recipe_of(open_output(folder / "out.zarr"))
    seconds: dict[str, list[float]] = {way: [] for way in (*runs, "bare", "MONAI")}
    for _ in range(rounds):
        for way, take in runs.items():
            seconds[way].append(take())
        seconds["bare"].append(bare(network, recipe))
        seconds["MONAI"].append(monai(network, recipe))
    row = [f"{title:<30}{' x '.join(map(str, recipe.plan.tile)):>16}"]
    for other in ("bare", "MONAI"):
        ratios = ([theirs / ours for theirs, ours in zip(seconds[other], seconds[way], strict=True)] for way in runs)
        row += [f"{median(found):>26.2f}" for found in ratios]
    print("".join(row), flush=True)


def run(path: Path, folder: Path, client: Client, precision: Precision) -> float:
    """Segment the volume on disk, and return the seconds it took."""
    settings = {"model": path, "precision": precision, "overwrite": True, "on_event": lambda event: None}
    report = segment(folder / "volume.zarr", folder / "out.zarr", client=client, **settings)  # type: ignore[arg-type]
    assert report.exit_code == 0, report.failures
    return report.seconds


def bare(network: nn.Module, recipe: Recipe) -> float:
    """Return the seconds that the network alone takes for as many voxels as go into it in the run."""
    plan = recipe.plan
    tile = torch.randn(1, 1, *plan.tile)
    source = tile[:, :, 0] if plan.model.planar else tile
    calls = sum(len(list(plan.tiles(block))) for block in plan)
    repeats = max(1, min(8, calls))
    with torch.inference_mode():
        began = perf_counter()
        for _ in range(repeats):
            network(source)
    return (perf_counter() - began) / repeats * calls * (plan.tile[0] if plan.model.planar else 1)


def monai(network: nn.Module, recipe: Recipe) -> float:
    """Return the seconds that MONAI takes for the volume, with windows as large as the run's tiles and as much overlap."""
    plan, contract = recipe.plan, recipe.plan.model
    axes = slice(1 if contract.planar else 0, None)
    tile, context, whole = (list(lengths)[axes] for lengths in (plan.tile, contract.context, plan.region.shape))
    overlap = [2 * c / length for c, length in zip(context, tile, strict=True)]
    volume = torch.randn(1, 1, *(length + 2 * c for length, c in zip(whole, context, strict=True)))
    slices = plan.region.shape[0] if contract.planar else 1
    with torch.inference_mode():
        began = perf_counter()
        for _ in range(slices):
            sliding_window_inference(volume, tile, 1, network, overlap)
    return perf_counter() - began


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=3, default=(64, 256, 256), metavar=("Z", "Y", "X"))
    asked = parser.parse_args()
    main(asked.rounds, triple(asked.size))
