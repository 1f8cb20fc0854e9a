"""A network with the statistics of a tile, frozen, gives for that tile what it gives by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from foreign import save_exported, save_onnx, state
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from emseg_core.model.external_model import contract_of, opened, read_external
from emseg_core.specs.contract import FrozenNorm


class Whole(nn.Module):
    """Layer normalisation without weights, over all channels and places."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised values."""
        return nn.functional.layer_norm(x, x.shape[1:])


def network_of(norm: nn.Module, rank: int) -> nn.Module:
    torch.manual_seed(2)
    convolution = nn.Conv2d if rank == 2 else nn.Conv3d
    for weight in norm.parameters():
        nn.init.normal_(weight, 1, 0.3)
    return nn.Sequential(convolution(1, 4, 3, padding=1), norm, nn.ReLU(), convolution(4, 2, 1))


def assert_freezes(path: Path, shape: tuple[int, ...]) -> None:
    model, tile = read_external(path), torch.randn(1, 1, *shape)
    network, *_ = opened(model)
    numbers = network.norms(tuple(tile.shape))
    assert numbers == (0,)
    norms = tuple(network.statistics(tile, numbers, []))
    frozen, *_ = opened(replace(model, norms=norms))
    with torch.inference_mode():
        torch.testing.assert_close(frozen(tile), network(tile), rtol=1e-4, atol=1e-5)
    again = network.statistics(tile, numbers, norms)
    np.testing.assert_allclose(again[0].mean, norms[0].mean, atol=1e-6)
    contract = contract_of(replace(model, norms=norms))
    assert (contract.local, contract.reason, contract.norms) == (True, "", norms)


@pytest.mark.parametrize("save", [save_exported, save_onnx])
@pytest.mark.parametrize(
    ("norm", "rank"),
    [
        (lambda: nn.InstanceNorm3d(4, affine=True), 3),
        (lambda: nn.GroupNorm(2, 4), 3),
        (lambda: nn.GroupNorm(4, 4, affine=False), 2),
    ],
)
def test_frozen_statistics_of_a_tile_change_nothing(
    tmp_path: Path, save: Callable[..., Path], norm: Callable[[], nn.Module], rank: int
) -> None:
    shape = (32, 40) if rank == 2 else (16, 16, 24)
    path = tmp_path / ("n.pt2" if save is save_exported else "n.onnx")
    assert_freezes(state(save(path, network_of(norm(), rank), (1, 1, *shape))), shape)


def test_layer_normalisation_over_channels_and_places(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", network_of(Whole(), 2), (1, 1, 32, 40))
    assert_freezes(state(path), (32, 40))


def test_group_normalisation_as_one_operation_of_onnx(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"w": (4, 1, 3, 3), "scale": (4,), "bias": (4,), "last": (2, 4, 1, 1)}
    weights = [numpy_helper.from_array(rng.normal(1, 0.5, size).astype(np.float32), name) for name, size in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["a", "scale", "bias"], ["b"], num_groups=2, epsilon=1e-5),
        helper.make_node("Conv", ["b", "last"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, c, "h", "v"]) for name, c in (("x", 1), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "n.onnx")
    assert_freezes(state(tmp_path / "n.onnx"), (32, 40))


def test_norms_over_channels_alone_are_left_as_they_are(tmp_path: Path) -> None:
    class Channels(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    path = state(save_exported(tmp_path / "n.pt2", network_of(Channels(4), 2), (1, 1, 32, 40)))
    network, *_ = opened(read_external(path))
    assert network.norms((1, 1, 32, 40)) == ()


def test_statistics_of_another_network_are_refused(tmp_path: Path) -> None:
    path = state(save_exported(tmp_path / "n.pt2", network_of(nn.GroupNorm(2, 4), 2), (1, 1, 32, 40)))
    model = replace(read_external(path), norms=(FrozenNorm(0, (0.0, 1.0), (1.0, 1.0)),))
    with pytest.raises(ValueError, match="normalisation 0 has other channels than its frozen statistics"):
        opened(model)


@pytest.mark.parametrize("values", [{"mean": [0.0], "variance": []}, {"mean": [float("nan")], "variance": [1.0]}])
def test_statistics_in_a_recipe_are_checked(values: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="a finite mean and variance for each channel"):
        FrozenNorm.from_json({"number": 0, **values})
