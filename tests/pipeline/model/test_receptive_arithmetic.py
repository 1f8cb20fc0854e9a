"""Test the arithmetic on operations against what networks compute, in both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Bare, Padded, save_exported, save_onnx
from structured import Attentive, Chain, Cropped, Resized, Squeezed
from torch import nn

from emseg_core.model.onnx import OnnxNetwork
from emseg_core.model.receptive_arithmetic import Trace
from emseg_core.model.torch_export import read_exported
from emseg_core.specs.model import ModelSpec

VALID = ModelSpec.unet(width=2, depth=2)


class Positive(nn.Module):
    """A network whose weights are positive, so that no effect cancels another."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.rand_like(parameter) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.layers(x)
        return given


class Repeated(nn.Module):
    """Repeat the channels of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 2, 1, 1)


def up(**options: Any) -> nn.Upsample:
    return nn.Upsample(scale_factor=2, **options)


def traced(path: Path, shape: tuple[int, ...]) -> Trace:
    """Return what arithmetic says about a file."""
    if path.suffix == ".pt2":
        return read_exported(path.read_bytes(), str(path))[0].trace(shape)
    return OnnxNetwork(path.read_bytes(), str(path), 1).trace(shape)


def save(folder: Path, kind: str, network: nn.Module, shape: tuple[int, ...]) -> Path:
    return save_exported(folder / "n.pt2", network, shape) if kind == "pt2" else save_onnx(folder / "n.onnx", network, shape)


def differing(network: nn.Module, period: int) -> tuple[int, int]:
    """Return how many voxels at the start and the end of an output differ from those of a much longer tile."""
    cells = -(-64 // period)
    torch.manual_seed(2)
    long = torch.rand((1, 1, 32 * period if period > 8 else 96, 3 * cells * period), dtype=torch.float64)
    with torch.inference_mode():
        whole = network.double()(long)
        part = network(long[..., cells * period : 2 * cells * period])
    network.float()
    lost = (long.shape[-1] - whole.shape[-1]) // 2
    same = (part == whole[..., cells * period : cells * period + part.shape[-1]]).all(dim=0).all(dim=0).all(dim=0)
    if lost:
        assert same.all()
    places = np.flatnonzero(same.numpy())
    return int(places[0]), len(same) - 1 - int(places[-1])


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("layers", "period"),
    [
        ([nn.Conv2d(1, 2, 5, padding=2)], 1),
        ([nn.Conv2d(1, 2, 3, padding=4, dilation=4)], 1),
        ([nn.Conv2d(1, 2, 3, 2, 1), up(mode="nearest")], 2),
        ([nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, padding=1), up(mode="bilinear", align_corners=False)], 2),
        ([nn.Conv2d(1, 2, 3, 2, 1), nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1), nn.Conv2d(2, 1, 3, padding=1)], 2),
        ([nn.MaxPool2d(3, 2, 1), nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.ConvTranspose2d(2, 1, 4, 4)], 4),
        ([nn.ReflectionPad2d(3), nn.Conv2d(1, 2, 7), nn.Conv2d(2, 8, 3, 2, 1), nn.PixelShuffle(2)], 2),
        ([nn.Conv2d(1, 2, 3, 3), nn.Upsample(scale_factor=3, mode="nearest"), nn.ZeroPad2d(2), nn.Conv2d(2, 1, 5)], 3),
        ([nn.Conv2d(1, 2, 3)], 1),
        ([nn.Conv2d(1, 2, 3, padding=1), Repeated(), nn.Conv2d(4, 1, 3, padding=1)], 1),
    ],
    ids=["conv", "dilated", "strided", "bilinear", "transposed", "pools", "padded", "by three", "valid", "repeated"],
)
def test_as_many_voxels_depend_on_the_end_of_a_tile(tmp_path: Path, kind: str, layers: list[nn.Module], period: int) -> None:
    torch.manual_seed(1)
    network = Positive(*layers).eval()
    trace = traced(save(tmp_path, kind, network, (1, 1, 48, 48)), (1, 1, 48, 48))
    axis = trace.output.axes[-1]
    assert axis is not None
    assert (int(axis.step), axis.period) == (1, period)
    assert not trace.notes.reasons
    assert not trace.notes.fixed
    assert (axis.before, axis.after) == differing(network, period)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize(
    ("network", "shape", "reason", "period"),
    [
        (Chain(3, lambda width: nn.InstanceNorm2d(width, affine=True)), (1, 1, 32, 32), "instance normalisation", 4),
        (Chain(3, lambda width: nn.GroupNorm(1, width)), (1, 1, 32, 32), "normalisation", 4),
        (Squeezed(), (1, 1, 32, 32), "global pooling", 2),
        (Resized(corners=True), (1, 1, 32, 32), "align_corners=True", 4),
    ],
    ids=["instance", "group", "squeeze", "corners"],
)
def test_what_makes_labels_depend_on_tiles_is_named(
    tmp_path: Path, kind: str, network: nn.Module, shape: tuple[int, ...], reason: str, period: int
) -> None:
    trace = traced(save(tmp_path, kind, network, shape), shape)
    assert reason in " ".join(trace.notes.reasons)
    assert trace.notes.periods == {0: period, 1: period}
    assert not trace.output.lost


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_attention_is_named(tmp_path: Path, kind: str) -> None:
    trace = traced(save(tmp_path, kind, Attentive(), (1, 1, 32, 32)), (1, 1, 32, 32))
    assert "attention" in " ".join(trace.notes.reasons)
    assert trace.output.lost
    assert trace.notes.periods == {0: 8, 1: 8}


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_networks_with_batch_normalisation_are_exact(tmp_path: Path, kind: str) -> None:
    trace = traced(save(tmp_path, kind, Padded(), (1, 1, 32, 32)), (1, 1, 32, 32))
    axis = trace.output.axes[3]
    assert axis is not None
    assert (axis.before, axis.after, axis.period, trace.notes.reasons) == (5, 5, 2, {})


def test_sizes_that_are_written_down_are_found(tmp_path: Path) -> None:
    for network, shape in ((Resized(), (1, 1, 32, 32)), (Cropped(), (1, 1, 20, 20, 20))):
        for fixed in (True, False):
            path = save_exported(tmp_path / "n.pt2", network, shape, fixed=fixed)
            assert bool(traced(path, shape).notes.fixed) == fixed


def test_valid_networks_crop_nothing(tmp_path: Path) -> None:
    shape = (1, 1, *VALID.tile_for((1, 24, 24))[1:])
    axis = traced(save_exported(tmp_path / "n.pt2", Bare(VALID), shape), shape).output.axes[2]
    assert axis is not None
    assert (axis.before, axis.after, axis.period) == (0, 0, VALID.lattice[1])
