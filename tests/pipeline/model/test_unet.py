"""Test that the torch network matches the arithmetic of `ModelSpec`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_bytes import live_bytes
from networks import random_network, run
from strategies import model_specs, valid_tiles
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from emseg_core.box import Triple
from emseg_core.errors import ModelError
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec

PAPER = ModelSpec.unet(width=64, depth=4)
PLANAR = ModelSpec.unet(width=4, depth=2)
THIRDS = ModelSpec.unet(width=4, depth=1, pooling=(1, 3, 3))
SOLID = ModelSpec.unet(width=4, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
ANISOTROPIC = ModelSpec(4, 2, ("a", "b", "c"), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))


def on_paper(spec: ModelSpec) -> UNet:
    """Return a network with shapes but no numbers."""
    with torch.device("meta"):
        return UNet(spec)


def reference(spec: ModelSpec, weights: dict[str, Tensor], x: Tensor, level: int = 0) -> Tensor:
    """Build the network again, level inside level and always in 3-D. Return the features that leave a level on the way up."""

    def solid(name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return weight[:, :, None] if spec.planar else weight

    def convolve(name: str, x: Tensor) -> Tensor:
        for i in range(2):
            x = functional.conv3d(x, solid(f"{name}.{i}"), weights[f"{name}.{i}.bias"]).clamp(min=0)
        return x

    x = convolve(f"down.{level}", x)
    if level == spec.depth:
        return x
    factor, step = spec.pooling[level], spec.depth - 1 - level
    below = reference(spec, weights, functional.max_pool3d(x, factor), level + 1)
    raised = functional.conv_transpose3d(below, solid(f"up.{step}"), weights[f"up.{step}.bias"], stride=factor)
    z, y, x0 = ((a - b) // 2 for a, b in zip(x.shape[2:], raised.shape[2:], strict=True))
    depth, height, width = raised.shape[2:]
    skip = x[:, :, z : z + depth, y : y + height, x0 : x0 + width]
    x = convolve(f"join.{step}", torch.cat([skip, raised], 1))
    if level == 0:
        return functional.conv3d(x, solid("head"), weights["head.bias"])
    return x


# -- the paper ------------------------------------------------------------------------------------------------------


def test_the_network_of_the_paper() -> None:
    network = on_paper(PAPER)
    assert sum(parameter.numel() for parameter in network.parameters()) == PAPER.parameters == 31_030_658
    assert network(torch.empty(1, 1, 1, 572, 572, device="meta")).shape == (1, 2, 1, 388, 388)
    assert PAPER.output_shape((1, 572, 572)) == (1, 388, 388)


@pytest.mark.parametrize("spec", [PLANAR, THIRDS, SOLID, ANISOTROPIC, ModelSpec.unet(width=4, depth=0)])
def test_the_same_network_written_another_way(spec: ModelSpec) -> None:
    network = random_network(spec)
    z, y, x = spec.tile_for(spec.lattice)
    tiles = torch.randn(2, 1, z + (2 if spec.planar else 0), y, x, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference(spec, dict(network.state_dict()), tiles)
        if spec.depth == 0:
            expected = functional.conv3d(expected, network.head.weight[:, :, None], network.head.bias)
        torch.testing.assert_close(network(tiles), expected, rtol=1e-12, atol=1e-12)


# -- geometry -------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=40)
def test_output_shape(data: st.DataObject) -> None:
    spec = data.draw(model_specs())
    tile = data.draw(valid_tiles(spec))
    logits = on_paper(spec)(torch.empty(2, 1, *tile, device="meta"))
    assert logits.shape == (2, len(spec.classes), *spec.output_shape(tile))


@given(st.data())
@settings(max_examples=15)
def test_valid_sizes_are_those_that_pass_without_loss(data: st.DataObject) -> None:
    """Each length is checked: it is valid if each pooling divides it and each convolution of the network leaves a voxel."""
    spec = data.draw(model_specs(widths=st.just(1), most_flops=10**6))
    axis = data.draw(st.integers(0, 2))
    network, least = UNet(spec), spec.tile_for((1, 1, 1))
    remainders: list[int] = []
    pool = network._pool

    def watched(x: Tensor, factor: tuple[int, ...]) -> Tensor:
        remainders.extend(length % p for length, p in zip(x.shape[2:], factor, strict=True))
        result: Tensor = pool(x, factor)
        return result

    network._pool = watched
    for length in range(1, least[axis] + 2 * spec.lattice[axis] + 1):
        tile = [*least]
        tile[axis] = length
        remainders.clear()
        try:
            network(torch.zeros(1, 1, *tile))
            passes = not any(remainders)
        except RuntimeError:
            passes = False
        try:
            spec.output_shape((tile[0], tile[1], tile[2]))
            valid = True
        except ModelError:
            valid = False
        assert valid == passes, f"length {length} on axis {axis}"


@given(st.data())
@settings(max_examples=30)
def test_context_is_the_same_on_both_sides(data: st.DataObject) -> None:
    """The flipped network maps a flipped tile to the flipped output, so it uses the same context on either side."""
    spec = data.draw(model_specs())
    network = random_network(spec)
    tile = np.random.default_rng(0).normal(size=data.draw(valid_tiles(spec, most_cells=2)))
    straight = run(network, tile)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("weight"):
                weight.copy_(weight.flip(list(range(2, weight.ndim))))
    axes = (1, 2, 3) if not spec.planar else (2, 3)
    turned = run(network, np.flip(tile, tuple(axis - 1 for axis in axes)))
    np.testing.assert_allclose(np.flip(turned, axes), straight, rtol=1e-10, atol=1e-10)


def shifted(network: UNet, axis: int, by: int, values: np.ndarray[Any, Any], tile: Triple) -> tuple[Any, Any]:
    """Return logits of the same voxels from a tile at zero and from a tile shifted by `by` voxels along one axis."""
    first, second = [slice(0, n) for n in tile], [slice(0, n) for n in tile]
    second[axis] = slice(by, tile[axis] + by)
    one, other = run(network, values[tuple(first)]), run(network, values[tuple(second)])
    length = one.shape[axis + 1] - by
    assert length > 0
    return one.take(range(by, by + length), axis + 1), other.take(range(length), axis + 1)


@given(st.data())
@settings(max_examples=30)
def test_it_commutes_with_shifts_by_the_lattice(data: st.DataObject) -> None:
    spec = data.draw(model_specs())
    axis = data.draw(st.integers(0, 2))
    cells = [1, 1, 1]
    cells[axis] = 2
    z, y, x = (cell * lattice for cell, lattice in zip(cells, spec.lattice, strict=True))
    tile = spec.tile_for((z, y, x))
    values = np.random.default_rng(1).normal(
        size=[length + lattice for length, lattice in zip(tile, spec.lattice, strict=True)]
    )
    one, other = shifted(random_network(spec), axis, spec.lattice[axis], values, tile)
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [PLANAR, THIRDS, SOLID, ANISOTROPIC])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_it_does_not_commute_with_smaller_shifts(spec: ModelSpec, axis: int) -> None:
    lattice = spec.lattice[axis]
    z, y, x = (2 * cell for cell in spec.lattice)
    tile = spec.tile_for((z, y, x))
    values = np.random.default_rng(2).normal(size=[length + cell for length, cell in zip(tile, spec.lattice, strict=True)])
    for by in range(1, lattice):
        one, other = shifted(random_network(spec), axis, by, values, tile)
        assert np.abs(one - other).max() > 1e-3, f"a shift by {by} of {lattice}"


# -- cost -----------------------------------------------------------------------------------------------------------


@given(model_specs(widths=st.integers(1, 9)))
@settings(max_examples=60)
def test_parameters(spec: ModelSpec) -> None:
    assert spec.parameters == sum(parameter.numel() for parameter in on_paper(spec).parameters())


@given(st.data())
@settings(max_examples=40)
def test_flops(data: st.DataObject) -> None:
    spec = data.draw(model_specs())
    tile = data.draw(valid_tiles(spec))
    with FlopCounterMode(display=False) as counter:
        on_paper(spec)(torch.empty(1, 1, *tile, device="meta"))
    assert spec.flops(tile) == counter.get_total_flops()


@given(st.data())
@settings(max_examples=60)
def test_activation_bytes(data: st.DataObject) -> None:
    """The result is exactly the predictor's peak memory, including the tile."""
    spec = data.draw(model_specs(widths=st.integers(1, 6)))
    tile = data.draw(valid_tiles(spec))
    assert live_bytes(UNet(spec), tile) == spec.activation_bytes(tile)


@pytest.mark.parametrize("cells", [1, 4, 9])
@pytest.mark.parametrize("spec", [ModelSpec.unet(width=8, depth=3), ModelSpec.unet(width=2, depth=4), ANISOTROPIC, SOLID])
def test_activation_bytes_whichever_layer_is_the_worst(spec: ModelSpec, cells: int) -> None:
    z, y, x = (cells * lattice if axis else lattice for axis, lattice in enumerate(spec.lattice))
    tile = spec.tile_for((z, y, x))
    assert live_bytes(UNet(spec), tile) == spec.activation_bytes(tile)


# -- weights and training ---------------------------------------------------------------------------------------------


def test_a_planar_network_looks_at_each_slice_alone() -> None:
    network = random_network(PLANAR)
    _, y, x = PLANAR.tile_for((1, 4, 4))
    stack = np.random.default_rng(3).normal(size=(3, y, x))
    together = run(network, stack)
    for z in range(3):
        np.testing.assert_allclose(together[:, z : z + 1], run(network, stack[z : z + 1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "spec", [ModelSpec.unet(width=32, depth=2), ModelSpec.unet(width=16, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))]
)
def test_weights_start_with_the_deviation_of_he(spec: ModelSpec) -> None:
    """So the spread of intensities is the same before and after a layer of any size."""
    torch.manual_seed(0)
    for name, parameter in UNet(spec).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 1000:
            terms = parameter.shape[0] if name.startswith("up") else parameter[0].numel()
            assert parameter.std().item() == pytest.approx(math.sqrt(2 / terms), rel=0.06), name
            assert abs(parameter.mean().item()) < 0.1 * math.sqrt(2 / terms), name


def test_dropout_at_the_end_of_the_contracting_path_only_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, float]] = []
    dropout = functional.dropout

    def watched(x: Tensor, p: float, training: bool) -> Tensor:
        if training:
            calls.append((x.shape[1], p))
        return dropout(x, p, training)

    monkeypatch.setattr(functional, "dropout", watched)
    spec = ModelSpec.unet(width=2, depth=3, dropout=0.25)
    network, tile = UNet(spec), torch.randn(1, 1, *spec.tile_for((1, 1, 1)))
    network.eval()
    assert torch.equal(network(tile), network(tile))
    assert calls == []
    network.train()
    network(tile)
    assert calls == [(8, 0.25), (16, 0.25)], "the two lowest levels, of 8 and 16 channels"


def test_training_reaches_every_weight() -> None:
    network = random_network(ANISOTROPIC, dtype=torch.float32)
    network(torch.randn(1, 1, *ANISOTROPIC.tile_for((2, 4, 4)))).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
