"""Test runs with networks of others whose channels are slices of the volume, copies of its grey values, or its channels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from foreign import AXES, save_exported, save_onnx, save_package
from numpy.typing import NDArray
from runs import assert_same_labels, bytes_of, save_volume, shards, texture
from torch import Tensor, nn

from emseg import report, segment
from emseg.cli import cli
from emseg.flows.repair import repair
from emseg.flows.verify import verify
from emseg.runs.events import Event, Noticed
from emseg_core.errors import InputError, ModelError, PlanError
from emseg_core.grid.cost import cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.model.external_model import contract_of, read_external
from emseg_core.recipe import Recipe
from emseg_core.specs.contract import Contract
from emseg_core.specs.inputs import Inputs
from emseg_core.specs.volume import Selection
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume

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
            r'neighbouring z slices, of which the middle one is labelled\) or inputs = "copies" \(the grey value in each\), '
            r"or inputs = \[0, 1, 2\] \(channels",
        ),
        (lambda: Flat(4), (1, 4, 32, 32), (), r'toml beside it inputs = "copies" \(the grey value in each\)'),
        (Solid, (1, 3, 16, 16, 16), (), r'toml beside it inputs = "copies" \(the grey value in each\)'),
        (lambda: Flat(4), (1, 4, 32, 32), SLICES[1:], r'says inputs = "slices", but .* takes 4 channels: export it for an odd'),
        (Solid, (1, 3, 16, 16, 16), SLICES[1:], r'says inputs = "slices", but .* is three-dimensional and takes 3 channels'),
        (lambda: Flat(1), (1, 1, 32, 32), SLICES[1:], r'says inputs = "slices", but .* takes 1 channel: leave it out'),
        (lambda: Flat(1), (1, 1, 32, 32), COPIES[1:], r'says inputs = "copies", but .* takes 1 channel: leave it out'),
        (Collapsing, (1, 1, 3, 32, 32), (), r'labels one slice of several.*write inputs = "slices" into n.pt2.toml'),
        (Collapsing, (1, 1, 3, 32, 32), COPIES[1:], r'says inputs = "copies", but .* takes 1 channel: leave it out'),
        (
            lambda: Flat(3),
            (1, 3, 32, 32),
            ('inputs = "rgb"',),
            r"inputs in .* is 'rgb', not slices or copies, or a list",
        ),
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


# -- channels of the volume ---------------------------------------------------------------------------------------------

CHANNELS = np.stack([texture(SHAPE, seed=seed) // (1 + seed) + 10 * seed for seed in range(4)])
"""A volume of four channels of different brightness, ``(c, z, y, x)``."""
TAKEN = (3, 0)


class Two(nn.Module):
    """A network of two channels, 2-D or 3-D."""

    def __init__(self, planar: bool) -> None:
        super().__init__()
        torch.manual_seed(8)
        kind = nn.Conv2d if planar else nn.Conv3d
        self.body = nn.Sequential(kind(2, 6, 3, padding=1), nn.ReLU(), kind(6, 3, 3, padding=1)).eval()

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.body(x)
        return given


def save_channels(path: Path, values: NDArray[Any] = CHANNELS) -> Path:
    """Save a volume of several channels, which share chunks."""
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space", "unit": "nanometer"} for name in "zyx")]
    scale = {"type": "scale", "scale": [1, 8, 8, 8]}
    described = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group = zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": [described]}})
    group.create_array("0", data=values, chunks=(2, 4, 16, 16))
    return path


def of_channels(network: nn.Module, planar: bool) -> NDArray[np.float32]:
    """Return probabilities ``(class, z, y, x)`` that the network gives for the whole mirrored channels."""
    normalised = []
    for channel in TAKEN:
        numbers = CHANNELS[channel].astype(np.float64)
        grey = (CHANNELS[channel].astype(np.float32) - np.float32(numbers.mean())) / np.float32(numbers.std())
        normalised.append(np.pad(grey, width_of("copies" if planar else "solid", 2, 6), mode="reflect"))
    source = torch.from_numpy(np.stack(normalised))
    with torch.inference_mode():
        if planar:
            output = torch.stack([network(source[None, :, z])[0] for z in range(SHAPE[0])], 1)
        else:
            output = network(source[None])[0, :, 6:-6]
    found: NDArray[np.float32] = output[..., 6:-6, 6:-6].softmax(0).numpy()
    return found


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("planar", [True, False])
def test_channels_of_the_volume_are_those_of_one_pass(planar: bool, suffix: str, tmp_path: Path) -> None:
    network, save = Two(planar), save_exported if suffix == "pt2" else save_onnx
    path = save(tmp_path / f"n.{suffix}", network, (1, 2, 32, 32) if planar else (1, 2, 16, 16, 16))
    stated(path, 'activation = "logits"', "inputs = [3, 0]")
    save_channels(tmp_path / "v.zarr")
    asked: dict[str, Any] = {"model": path, "tile": (1, 28, 28) if planar else (7, 20, 20)}
    for output, workers in (("one", 0), ("two", 2) if planar else ("again", 0)):
        assert segment(tmp_path / "v.zarr", tmp_path / output, workers=workers, **asked).exit_code == 0
    stored = open_output(tmp_path / "one")
    assert_same_labels(stored.read("classes", stored.region), of_channels(network, planar))
    sound = bytes_of(tmp_path / "one")
    assert bytes_of(tmp_path / ("two" if planar else "again")) == sound
    assert verify(tmp_path / "one", boxes=3).holds
    shards(tmp_path / "one")[0].unlink()
    assert repair(tmp_path / "one", workers=0).holds
    shards(tmp_path / "one")[0].unlink()
    assert segment(tmp_path / "v.zarr", tmp_path / "one", workers=0, **asked).done == 1
    assert bytes_of(tmp_path / "one") == sound


def test_test_tensors_of_a_package_are_normalised_by_channel(tmp_path: Path) -> None:
    network, source = Two(planar=True), torch.from_numpy(CHANNELS[None, :2, 0].astype(np.float32))
    with torch.inference_mode():
        deviation, mean = torch.std_mean(source.double(), (2, 3), correction=0, keepdim=True)
        output = network(((source - mean) / deviation).float())
    files = {"n.onnx": save_onnx(tmp_path / "n.onnx", network, (1, 2, 32, 32)).read_bytes()}
    for name, tensor in (("in.npy", source), ("out.npy", output)):
        np.save(tmp_path / name, tensor.numpy())
        files[name] = (tmp_path / name).read_bytes()
    path = save_package(
        tmp_path / "package.zip",
        files,
        weights={"onnx": {"source": "n.onnx"}},
        inputs=[{"id": "raw", "axes": [AXES[0], {"type": "channel"}, *AXES[2:]], "test_tensor": {"source": "in.npy"}}],
        outputs=[{"id": "out", "axes": [AXES[0], {"type": "channel"}, *AXES[2:]], "test_tensor": {"source": "out.npy"}}],
    )
    stated(path, 'activation = "logits"', "inputs = [1, 0]", 'normalise = "volume"')
    checked = CliRunner().invoke(cli, ["models", "check", str(path)])
    assert checked.exit_code == 0, (checked.output, checked.exception)


def two_channels(folder: Path, inputs: str = "inputs = [3, 0]") -> Path:
    """Save a network of two channels, and a volume."""
    save_channels(folder / "v.zarr")
    return stated(save_exported(folder / "n.pt2", Two(planar=True), (1, 2, 32, 32)), 'activation = "logits"', inputs)


def test_the_recipe_keeps_the_channels_and_their_normalisation(tmp_path: Path) -> None:
    path = two_channels(tmp_path)
    assert segment(tmp_path / "v.zarr", tmp_path / "o.zarr", model=path, workers=0).exit_code == 0
    recipe = recipe_of(tmp_path / "o.zarr")
    assert (recipe.volume.channels, recipe.volume.channel) == (TAKEN, None)
    kept = (recipe.normalisation, *recipe.normalisation.others)
    for channel, one in zip(TAKEN, kept, strict=True):
        np.testing.assert_allclose(one.mean + one.deviation, (CHANNELS[channel].mean(), CHANNELS[channel].std()))
    for command in ("preview", "report", "status"):
        done = CliRunner().invoke(cli, [command, str(tmp_path / "o.zarr")])
        assert done.exit_code == 0, done.output
    page = report(tmp_path / "o.zarr").read_text()
    first, second = (f"once per volume: mean {one.mean[0]:.6g}, deviation {one.deviation[0]:.6g}" for one in kept)
    assert f"for each channel: {first}; {second}<" in page
    planned = CliRunner().invoke(cli, ["plan", str(tmp_path / "v.zarr"), "--model", str(path)])
    assert planned.exit_code == 0, planned.output
    shown = CliRunner().invoke(cli, ["models", "show", str(path)])
    assert "input: 2 channels, which are the channels 3, 0 of the volume" in shown.output


def test_memory_and_reading_count_all_channels(tmp_path: Path) -> None:
    path = two_channels(tmp_path)
    one = open_volume(tmp_path / "v.zarr", part=Selection(0)).spec
    two = open_volume(tmp_path / "v.zarr", part=Selection(channels=TAKEN)).spec
    contract = contract_of(read_external(path))
    plan = plan_volume(two, contract)
    assert cost_of(plan, two, False).bytes_needed == 2 * plan.region.voxels * one.itemsize
    with pytest.raises(PlanError, match="the model needs 2 channels, but a volume has 1"):
        plan_volume(one, contract)


@pytest.mark.parametrize(
    ("inputs", "asked", "said"),
    [
        ("inputs = [3, 4]", {}, r"takes the channels 3, 4 of a volume, counted from 0, but this one has 4: correct inputs"),
        ("inputs = [0, 1]", {"channel": 2}, r"`channel` names the channel 2, but the model takes the channels 0, 1"),
        (
            "inputs = [0, 1, 2]",
            {},
            r"says inputs = \[0, 1, 2\], 3 channels of the volume, but .* takes 2 channels: name as many",
        ),
        ("inputs = [0, 0]", {}, r"inputs in .* is \[0, 0\], not two or more different channels"),
        ("inputs = [1]", {}, r"a single channel is chosen with `channel`"),
    ],
)
def test_wrong_channels_are_refused(inputs: str, asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = two_channels(tmp_path, inputs)
    with pytest.raises(InputError, match=said):
        segment(tmp_path / "v.zarr", tmp_path / "o.zarr", model=path, workers=0, **asked)
    assert not (tmp_path / "o.zarr").exists()
