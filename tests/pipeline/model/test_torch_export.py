"""Test exported torch programs: they compute what torch computes, and no code in the file is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Bare, Padded, rewritten, save_exported, tile_of, with_program
from torch import nn

from emseg_core.errors import ModelError
from emseg_core.model.torch_export import OPERATIONS, read_exported
from emseg_core.specs.model import ModelSpec

SPECS = [ModelSpec.unet(width=3, depth=2), ModelSpec(2, 1, ("a", "b"), ((3, 3, 3), (3, 3, 3)), ((2, 2, 2),))]


def read(path: Path) -> Any:
    """Return the network in a file."""
    return read_exported(path.read_bytes(), str(path))[0].eval()


class Varied(nn.Module):
    """A network with many of the common operations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2))
        self.second = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(8, 16, 3, groups=2), nn.InstanceNorm2d(16), nn.LeakyReLU(0.1)
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.last = nn.Conv2d(24, 3, 1)
        self.register_buffer("shift", torch.randn(1, 8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.first(x) + self.shift
        deep = self.second(fine)
        one, other = (deep * self.gate(deep)).chunk(2, dim=1)
        up = nn.functional.interpolate(torch.cat([one, other, fine], 1), scale_factor=2, mode="bilinear", align_corners=False)
        return torch.softmax(self.last(up), dim=1)[..., : x.shape[-1]]


@pytest.mark.parametrize(
    "network", [Bare(SPECS[0]), Bare(SPECS[1]), Padded(), Varied()], ids=["planar", "cubic", "padded", "varied"]
)
def test_a_program_computes_what_its_network_does(tmp_path: Path, network: nn.Module) -> None:
    """This also holds for other shapes than the exported one. Pooled maxima and skips are freed on the way."""
    shape = tile_of(network.network.spec) if isinstance(network, Bare) else (1, 1, 32, 48)
    program = read(save_exported(tmp_path / "n.pt2", network, shape))
    for longer in (0, 8):
        x = torch.randn([length + longer if axis > 1 else length for axis, length in enumerate(shape)])
        with torch.inference_mode():
            torch.testing.assert_close(program(x), network(x), rtol=1e-5, atol=1e-5)


def test_what_a_program_costs_is_known_without_computing(tmp_path: Path) -> None:
    spec = SPECS[0]
    shape = tile_of(spec)
    network, *_ = read_exported(save_exported(tmp_path / "n.pt2", Bare(spec), shape).read_bytes(), "n")
    flops, alive = network.cost(shape)
    tile = (1, shape[2], shape[3])
    assert 0.9 < flops / spec.flops(tile) < 1.3  # torch counts each tap of an up-convolution
    assert 0.5 < alive / spec.activation_bytes(tile) < 2


# -- malice ---------------------------------------------------------------------------------------------------------


class Malice:
    """Object that runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the content of a valid file."""
    return save_exported(tmp_path_factory.mktemp("taken") / "n.pt2", Padded(), (1, 1, 32, 32)).read_bytes()


@pytest.fixture
def program(taken: bytes, tmp_path: Path) -> Path:
    """Return a copy of the valid file."""
    path = tmp_path / "n.pt2"
    path.write_bytes(taken)
    return path


def test_the_pickle_of_sample_inputs_is_never_opened(program: Path, tmp_path: Path) -> None:
    """torch itself writes one into each file; torch.export.load would unpickle it."""
    mark = tmp_path / "was here"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malice(mark)))
        archive.writestr("archive/version", "3")
    changed = rewritten(program, lambda name, data: stream.getvalue() if "sample_inputs" in name else data)
    read(changed)
    assert not mark.exists()


def test_pickled_weights_are_refused(program: Path) -> None:
    changed = rewritten(program, lambda name, data: data.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(ModelError, match=r"is a pickle, which can run code; export it again"):
        read(changed)


class Rare(nn.Module):
    """A network with operations of transformers and of rare layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.order = nn.Buffer(torch.tensor([2, 0, 3, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = nn.functional.dropout2d(self.first(x), 0.5, self.training, inplace=True)
        mask = torch.zeros(4, device=x.device).fill_(1).masked_fill(torch.tensor([True, False, False, True]), 0.5)
        picked = torch.einsum("nchw,c->nchw", fine[:, self.order], mask)
        rows = torch.empty((1, 4, 1, 1), device=x.device).fill_(2).to(torch.device("cpu"), torch.float32)
        return torch.cat([picked * rows, torch.square(picked), picked.new_zeros(picked.shape)], 1)


def test_operations_of_transformers_compute_what_they_do(tmp_path: Path) -> None:
    network = Rare().eval()
    program = read(save_exported(tmp_path / "n.pt2", network, (1, 1, 16, 16), fixed=True))
    x = torch.randn(1, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(program(x), network(x))


def test_uninitialised_memory_is_never_read(tmp_path: Path) -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.first(x), torch.empty(x.shape), torch.empty_like(x), x.new_empty(x.shape)], 1)

    program = read(save_exported(tmp_path / "n.pt2", Empty(), (1, 1, 64, 64), fixed=True))
    for _ in range(3):
        left = torch.full((1, 1, 64, 64), 7.0)
        del left
        with torch.inference_mode():
            assert not program(torch.randn(1, 1, 64, 64))[:, 2:].any()


def test_neither_weights_nor_the_input_are_changed(program: Path, tmp_path: Path) -> None:
    """A program that changes its weights would give something else each time."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.first(x[:, :, 1:].relu_())
            return given

    path = save_exported(tmp_path / "first.pt2", First(), (1, 1, 16, 16), fixed=True)
    document = json.loads(zipfile.ZipFile(path).read("first/models/model.json"))
    assert any("relu_" in node["target"] for node in document["graph_module"]["graph"]["nodes"])
    x = torch.full((1, 1, 16, 16), -1.0)
    with torch.inference_mode():
        read(path)(x)
    assert (x == -1).all()

    def change(document: Any) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        node = next(node for node in nodes if "relu_" in node["target"])
        node["inputs"][0]["arg"] = {"as_tensor": {"name": "p_first_weight"}}

    with pytest.raises(ModelError, match=r"changes its own weights \(p_first_weight\): export it to ONNX"):
        read(with_program(program, change))


@pytest.mark.parametrize(
    "target",
    [
        "torch.serialization.os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.higher_order.cond",
        "torch.ops.emseg_test.anything.default",
        "torch.hub.load",
        "math.sqrt",
        "_operator.methodcaller",
        "torch.ops.aten.conv2d.default.__class__",
        "#my_function",
        "",
    ],
)
def test_nothing_but_arithmetic_is_called(program: Path, target: str) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(ModelError, match=r"it calls '.*', which is not an operation .*; export it to ONNX instead"):
        read(with_program(program, change))


def test_texts_that_torch_would_evaluate_are_not_looked_at(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    evil = f"__import__('os').mkdir({str(mark)!r})"

    def change(document: Any) -> None:
        document["guards_code"] = [evil]
        for value in document["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = evil

    network = read(with_program(program, change))
    assert network(torch.zeros(1, 1, 16, 16)).shape == (1, 2, 16, 16)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["as_graph", "as_custom_obj", "as_operator", "as_complex"])
def test_other_arguments_are_refused(program: Path, kind: str) -> None:
    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {kind: {"name": "x"}}

    with pytest.raises(ModelError, match=f"an argument has the unknown kind '{kind}'"):
        read(with_program(program, change))


def test_a_network_in_training_mode_is_refused(tmp_path: Path) -> None:
    network = Padded().train()
    torch.export.save(torch.export.export(network, (torch.randn(1, 1, 32, 32),)), tmp_path / "n.pt2")
    with pytest.raises(ModelError, match="exported in training mode"):
        read(tmp_path / "n.pt2")


def test_what_is_damaged_is_refused_in_one_line(program: Path) -> None:
    data = program.read_bytes()
    cases = {
        "empty": b"",
        "no zip": b"PK\3\4 and so on",
        "cut": data[: len(data) // 2],
        "no program": rewritten(program, lambda name, data: None if name.endswith("model.json") else data).read_bytes(),
        "no weights": rewritten(program, lambda name, data: None if name.endswith("weight_1") else data).read_bytes(),
        "short weights": rewritten(program, lambda name, data: data[:4] if name.endswith("weight_0") else data).read_bytes(),
        "no JSON": rewritten(program, lambda name, data: b"{" if name.endswith("model.json") else data).read_bytes(),
        "other JSON": rewritten(program, lambda name, data: b"[1]" if name.endswith("model.json") else data).read_bytes(),
    }
    for name, bad in cases.items():
        with pytest.raises(ModelError) as refused:
            read_exported(bad, "n.pt2")
        assert "\n" not in str(refused.value), name
        assert "export it again" in str(refused.value), name


def test_infinite_weights_are_refused(tmp_path: Path) -> None:
    network = Padded()
    with torch.no_grad():
        network.first.weight[0] = np.inf
    with pytest.raises(ModelError, match="its weights are not all finite"):
        read(save_exported(tmp_path / "n.pt2", network, (1, 1, 32, 32)))


def test_all_known_operations_exist() -> None:
    """A name that torch lacks would allow whatever gets that name one day."""
    assert [name for name in OPERATIONS if not hasattr(torch.ops.aten, name)] == []
