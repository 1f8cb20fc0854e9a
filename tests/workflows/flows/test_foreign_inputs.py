"""Test runs with networks of others whose channels are slices of the volume, or copies of its grey values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from foreign import AXES, save_exported, save_onnx, save_package
from numpy.typing import NDArray
from runs import assert_same_labels, bytes_of, save_volume, shards, texture
from torch import Tensor, nn

from emseg import segment
from emseg.cli import cli
from emseg.flows.repair import repair
from emseg.flows.verify import verify
from emseg.runs.events import Event, Noticed
from emseg_core.errors import ModelError
from emseg_core.model.external_model import contract_of, read_external
from emseg_core.recipe import Recipe
from emseg_core.specs.contract import Contract
from emseg_core.specs.inputs import Inputs
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (7, 46, 58)
VALUES = texture(SHAPE)
SLICES, COPIES = ('activation = "logits"', 'inputs = "slices"'), ('activation = "logits"', 'inputs = "copies"')


class Flat(nn.Module):
    """A 2-D network for several channels, which pads and pools; the weights of its channels add up to almost nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(6, 6, 2, 2), nn.Conv2d(12, 3, 1)
        self.first.weight.data -= self.first.weight.data.mean(1, keepdim=True) * 0.9
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.first(x))
        coarse = torch.relu(self.second(torch.max_pool2d(fine, 2)))
        given: Tensor = self.last(torch.cat([fine, self.up(coarse)], 1))
        return given


class Collapsing(nn.Module):
    """A network that labels the middle one of three slices, ``(1, 1, 3, y, x)`` to ``(1, 3, y, x)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.last = nn.Conv3d(1, 6, 3, padding=(0, 1, 1)), nn.Conv2d(6, 3, 3, padding=1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.last(torch.relu(self.first(x))[:, :, 0])
        return given


class Solid(nn.Module):
    """A 3-D network for three channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 3, 3, padding=1)).eval()

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.body(x)
        return given


def in_one_pass(network: nn.Module, kind: str, count: int) -> NDArray[np.float32]:
    """Return probabilities ``(class, z, y, x)`` that the network gives for the whole mirrored volume."""
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    width = 16
    padded = torch.from_numpy(np.pad(normalised, width_of(kind, count, width), mode="reflect"))
    with torch.inference_mode():
        if isinstance(network, Solid):
            output = network(padded.expand(1, 3, *padded.shape))[0, :, width:-width]
        elif kind == "copies":
            output = torch.stack([network(section.expand(1, count, *section.shape))[0] for section in padded], 1)
        else:
            stacks = [padded[z : z + count] for z in range(SHAPE[0])]
            single = isinstance(network, Collapsing)
            output = torch.stack([network(stack[None, None] if single else stack[None])[0] for stack in stacks], 1)
    found: NDArray[np.float32] = output[..., width:-width, width:-width].softmax(0).numpy()
    return found


def width_of(kind: str, count: int, width: int) -> list[tuple[int, int]]:
    along_z = count // 2 if kind == "slices" else width if kind == "solid" else 0
    return [(along_z, along_z), (width, width), (width, width)]


def recipe_of(output: Path) -> Recipe:
    return Recipe.from_json(json.loads((output / "zarr.json").read_text())["attributes"]["emseg"]["recipe"])


def stated(path: Path, *lines: str) -> Path:
    path.with_name(f"{path.name}.toml").write_text("\n".join(lines) + "\n")
    return path


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    "five slices": (lambda: Flat(5), (1, 5, 32, 32), "slices", 5),
    "three slices, one channel": (Collapsing, (1, 1, 3, 32, 32), "slices", 3),
    "three copies": (lambda: Flat(3), (1, 3, 32, 32), "copies", 3),
    "three copies, 3-D": (Solid, (1, 3, 16, 16, 16), "solid", 3),
}


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_those_of_one_pass(name: str, suffix: str, tmp_path: Path) -> None:
    make, shape, kind, count = NETWORKS[name]
    network = make()
    save = save_exported if suffix == "pt2" else save_onnx
    first = 3 if isinstance(network, Collapsing) else 2
    path = stated(save(tmp_path / f"n.{suffix}", network, shape, first=first), *(SLICES if kind == "slices" else COPIES))
    tile = {"slices": (count, 36, 36), "copies": (1, 36, 36), "solid": (7, 20, 20)}[kind]
    save_volume(tmp_path / "v.zarr", VALUES)
    for output, asked in (("chosen", None), ("small", tile)):
        report = segment(tmp_path / "v.zarr", tmp_path / output, model=path, workers=0, probabilities=True, tile=asked)
        assert report.exit_code == 0
        stored = open_output(tmp_path / output)
        assert_same_labels(stored.read("classes", stored.region), in_one_pass(network, kind, count))
    assert verify(tmp_path / "small", boxes=3).holds


def test_workers_repair_and_resume_give_the_same_bytes(tmp_path: Path) -> None:
    path = stated(save_exported(tmp_path / "n.pt2", Flat(3), (1, 3, 32, 32)), *SLICES)
    save_volume(tmp_path / "v.zarr", VALUES)
    asked: dict[str, Any] = {"model": path, "tile": (4, 28, 28)}
    for output, workers in (("one", 0), ("two", 2)):
        assert segment(tmp_path / "v.zarr", tmp_path / output, workers=workers, **asked).exit_code == 0
    sound = bytes_of(tmp_path / "one")
    assert bytes_of(tmp_path / "two") == sound
    shards(tmp_path / "one")[0].unlink()
    assert repair(tmp_path / "one", workers=0).holds
    shards(tmp_path / "one")[1].unlink()
    assert segment(tmp_path / "v.zarr", tmp_path / "one", workers=0, **asked).done == 1
    assert bytes_of(tmp_path / "one") == sound


def test_the_choice_is_in_the_recipe_and_is_shown(tmp_path: Path) -> None:
    path = stated(save_exported(tmp_path / "n.pt2", Flat(5), (1, 5, 32, 32)), *SLICES)
    save_volume(tmp_path / "v.zarr", VALUES)
    told: list[Event] = []
    assert segment(tmp_path / "v.zarr", tmp_path / "o.zarr", model=path, workers=0, on_event=told.append).exit_code == 0
    notes = [event.message for event in told if isinstance(event, Noticed)]
    assert any("the input of the network is taken for: 5 channels, which are neighbouring z" in note for note in notes), notes
    recipe = recipe_of(tmp_path / "o.zarr")
    assert isinstance(recipe.plan.model, Contract)
    assert recipe.plan.model.inputs == Inputs("slices", 5)
    assert (recipe.plan.model.context[0], recipe.plan.model.lattice[0], recipe.plan.model.local) == (2, 1, True)
    shown = CliRunner().invoke(cli, ["models", "show", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "input: 5 channels, which are neighbouring z slices; the middle one is labelled" in shown.output
    stated(path, *COPIES)
    again = segment(tmp_path / "v.zarr", tmp_path / "other.zarr", model=path, workers=0)
    assert again.exit_code == 0
    assert recipe_of(tmp_path / "other.zarr").plan.model.inputs == Inputs("copies", 5)  # type: ignore[attr-defined]


def test_a_network_of_one_channel_has_the_recipe_that_it_had(tmp_path: Path) -> None:
    path = stated(save_exported(tmp_path / "n.pt2", Flat(1), (1, 1, 32, 32)), 'activation = "logits"')
    assert "inputs" not in contract_of(read_external(path)).to_json()["contract"]


def test_cost_of_slices_is_that_of_the_slices_computed(tmp_path: Path) -> None:
    """A longer tile along z does not compute a slice twice, and holds the activations of one slice at a time."""
    path = stated(save_exported(tmp_path / "n.pt2", Flat(5), (1, 5, 32, 32)), *SLICES)
    contract = contract_of(read_external(path))
    assert contract.flops((14, 64, 64)) == 10 * contract.flops((5, 64, 64)) > 0
    another = contract.activation_bytes((15, 64, 64)) - contract.activation_bytes((14, 64, 64))
    assert another == 4 * (1 + 2 * 3) * 64 * 64  # its grey values, and its outputs twice


@pytest.mark.parametrize(
    ("make", "shape", "lines", "said"),
    [
        (
            lambda: Flat(3),
            (1, 3, 32, 32),
            (),
            r'takes 3 channels, and nothing says what they are: write into n.pt2.toml beside it inputs = "slices" \(3 '
            r'neighbouring z slices, of which the middle one is labelled\) or inputs = "copies" \(the grey value in each\)',
        ),
        (lambda: Flat(4), (1, 4, 32, 32), (), r'toml beside it inputs = "copies" \(the grey value in each\)'),
        (Solid, (1, 3, 16, 16, 16), (), r'toml beside it inputs = "copies" \(the grey value in each\)'),
        (lambda: Flat(4), (1, 4, 32, 32), SLICES[1:], r'says inputs = "slices", but .* takes 4 channels: export it for an odd'),
        (Solid, (1, 3, 16, 16, 16), SLICES[1:], r'says inputs = "slices", but .* is three-dimensional and takes 3 channels'),
        (lambda: Flat(1), (1, 1, 32, 32), SLICES[1:], r'says inputs = "slices", but .* takes 1 channel: leave it out'),
        (lambda: Flat(1), (1, 1, 32, 32), COPIES[1:], r'says inputs = "copies", but .* takes 1 channel: leave it out'),
        (Collapsing, (1, 1, 3, 32, 32), (), r'labels one slice of several.*write inputs = "slices" into n.pt2.toml'),
        (Collapsing, (1, 1, 3, 32, 32), COPIES[1:], r'says inputs = "copies", but .* takes 1 channel: leave it out'),
        (lambda: Flat(3), (1, 3, 32, 32), ('inputs = "rgb"',), r"inputs in .* is 'rgb', not slices or copies: correct it"),
        (lambda: Flat(3), (1, 3, 32, 32), (*SLICES[1:], "context = [0, 4, 4]"), r"context = \[0, 4, 4\], but .* along z, is 1"),
        (lambda: Flat(3), (1, 3, 32, 32), (*SLICES[1:], "lattice = [2, 2, 2]"), r"lattice = \[2, 2, 2\], but .* along z, is 1"),
        (lambda: Flat(3), (1, 3, 32, 32), (*SLICES[1:], "only_tile = [1, 32, 32]"), r"only_tile = .* along z, is 3"),
    ],
)
def test_unclear_inputs_are_refused(
    make: Callable[[], nn.Module], shape: tuple[int, ...], lines: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    first = 3 if make is Collapsing else 2
    path = stated(save_exported(tmp_path / "n.pt2", make(), shape, first=first), 'activation = "logits"', *lines)
    with pytest.raises(ModelError, match=said):
        contract_of(read_external(path))


def test_what_is_told_of_tiles_is_used(tmp_path: Path) -> None:
    lines = (*SLICES, "context = [1, 6, 6]", "only_tile = [3, 32, 32]")
    path = stated(save_exported(tmp_path / "n.pt2", Flat(3), (1, 3, 32, 32)), *lines)
    contract = contract_of(read_external(path))
    assert (contract.context, contract.only_tile, contract.local) == ((1, 6, 6), (3, 32, 32), True)


def test_a_package_for_slices(tmp_path: Path) -> None:
    """The statement beside a package counts, too, and its test tensors are reproduced."""
    network = Flat(3)
    source = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        output = network(source)
    files = {"n.onnx": save_onnx(tmp_path / "n.onnx", network, (1, 3, 32, 32)).read_bytes()}
    for name, tensor in (("in.npy", source), ("out.npy", output)):
        np.save(tmp_path / name, tensor.numpy())
        files[name] = (tmp_path / name).read_bytes()
    axes = [{"type": "batch"}, {"type": "channel"}, {"type": "space", "id": "y"}, {"type": "space", "id": "x"}]
    steps = [{"id": "scale_linear", "kwargs": {"gain": 1.0, "offset": 0.0}}]
    path = save_package(
        tmp_path / "package.zip",
        files,
        weights={"onnx": {"source": "n.onnx"}},
        inputs=[{"id": "raw", "axes": axes, "preprocessing": steps, "test_tensor": {"source": "in.npy"}}],
        outputs=[{"id": "out", "axes": [AXES[0], {"type": "channel"}, *AXES[2:]], "test_tensor": {"source": "out.npy"}}],
    )
    stated(path, *SLICES)
    assert contract_of(read_external(path)).inputs == Inputs("slices", 3)
    checked = CliRunner().invoke(cli, ["models", "check", str(path)])
    assert checked.exit_code == 0, checked.output
    stated(path, *COPIES)
    checked = CliRunner().invoke(cli, ["models", "check", str(path)])
    assert isinstance(checked.exception, ModelError)
    assert "channels that differ" in str(checked.exception)
