"""Test runs with networks that take several input channels: neighbouring slices, or copies of the grey values."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import save_exported, save_onnx
from numpy.typing import NDArray
from runs import bytes_of, save_volume, texture
from torch import Tensor, nn

from emseg import segment
from emseg.flows.verify import verify
from emseg_core.errors import ModelError
from emseg_core.model.external_model import contract_of, read_external
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (9, 61, 67)
VALUES = texture(SHAPE)
SAVE = {"pt2": save_exported, "onnx": save_onnx}
KINDS = pytest.mark.parametrize("kind", SAVE)


class Flat(nn.Module):
    """A 2-D network with several input channels, a reach of 3 pixels and a stride of 2."""

    def __init__(self, count: int, *, deep: bool = False, kept: bool = False) -> None:
        super().__init__()
        torch.manual_seed(count)
        self.first = nn.Conv2d(count, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 3, 3, padding=1)
        self.deep, self.kept = deep, kept

    def forward(self, x: Tensor) -> Tensor:
        """Return three channels."""
        x = x[:, 0] if self.deep else x
        inner = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        output = nn.functional.interpolate(self.second(inner), scale_factor=2)
        return output[:, :, None] if self.kept else output


def one_pass(network: nn.Module, count: int, *, copies: bool = False) -> NDArray[np.uint8]:
    """Return the labels of each slice of the mirrored volume, from one call of the network for each."""
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    n, pad = (0 if copies else count // 2), 8
    whole = np.pad(normalised, ((n, n), (pad, pad + 1), (pad, pad + 1)), mode="reflect")
    labels = []
    with torch.inference_mode():
        for z in range(SHAPE[0]):
            window = torch.from_numpy(np.repeat(whole[z : z + 1], count, 0) if copies else whole[z : z + count])[None]
            output = network(window[None] if getattr(network, "deep", False) else window)
            output = output[:, :, 0] if output.dim() == 5 else output
            labels.append(output[0, :, pad : pad + SHAPE[1], pad : pad + SHAPE[2]].argmax(0).numpy())
    return np.stack(labels).astype(np.uint8)


def saved(folder: Path, kind: str, network: nn.Module, shape: tuple[int, ...], told: str) -> Path:
    path = SAVE[kind](folder / f"theirs.{kind}", network, shape)
    path.with_name(f"{path.name}.toml").write_text(f'activation = "logits"\n{told}\n')
    return path


def labels_of(folder: Path, model: Path, name: str = "out.zarr", workers: int = 0) -> NDArray[np.uint8]:
    if not (folder / "volume.zarr").exists():
        save_volume(folder / "volume.zarr", VALUES)
    report = segment(folder / "volume.zarr", folder / name, model=model, workers=workers)
    assert (report.exit_code, report.left) == (0, 0)
    output = open_output(folder / name)
    return output.read_labels(output.region)


@KINDS
@pytest.mark.parametrize("count", [3, 5])
def test_each_slice_with_its_neighbours_is_what_one_pass_gives(kind: str, count: int, tmp_path: Path) -> None:
    network = Flat(count)
    model = saved(tmp_path, kind, network, (1, count, 32, 32), 'input = "slices"')
    contract = contract_of(read_external(model))
    assert (contract.planar, contract.local) == (False, True)
    assert contract.context[0] == count // 2
    assert contract.lattice == (1, 2, 2)
    labels = labels_of(tmp_path, model)
    np.testing.assert_array_equal(labels, one_pass(network, count))
    assert len(np.unique(labels)) > 1
    assert verify(tmp_path / "out.zarr", boxes=4).holds
    labels_of(tmp_path, model, "by-two.zarr", workers=2)
    assert bytes_of(tmp_path / "by-two.zarr") == bytes_of(tmp_path / "out.zarr")


@KINDS
@pytest.mark.parametrize("kept", [False, True], ids=["without z", "with one slice"])
def test_slices_may_lie_along_a_third_axis(kind: str, kept: bool, tmp_path: Path) -> None:
    network = Deep(kept=kept)
    save = {"pt2": save_exported, "onnx": partial(save_onnx, fixed=1)}[kind]
    model = save(tmp_path / f"theirs.{kind}", network, (1, 1, 5, 32, 32))  # type: ignore[operator]
    model.with_name(f"{model.name}.toml").write_text('activation = "logits"\ninput = "slices"\n')
    assert contract_of(read_external(model)).lattice == (1, 2, 2)
    np.testing.assert_array_equal(labels_of(tmp_path, model), one_pass(network, 5))


class Deep(Flat):
    """The same with five slices along a third axis, whose number is fixed."""

    def __init__(self, *, kept: bool) -> None:
        super().__init__(5, deep=True, kept=kept)


@KINDS
def test_grey_values_are_copied_if_that_is_told(kind: str, tmp_path: Path) -> None:
    network = Flat(3)
    model = saved(tmp_path, kind, network, (1, 3, 32, 32), 'input = "copies"')
    assert contract_of(read_external(model)).planar
    np.testing.assert_array_equal(labels_of(tmp_path, model), one_pass(network, 3, copies=True))


def test_a_3d_network_takes_copies_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    model = saved(tmp_path, "pt2", network, (1, 2, 16, 16, 16), 'input = "copies"')
    labels = labels_of(tmp_path, model)
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    whole = torch.from_numpy(np.pad(normalised, 2, mode="reflect"))[None, None].expand(-1, 2, -1, -1, -1)
    with torch.inference_mode():
        expected = network(whole)[0, :, 2:-2, 2:-2, 2:-2].argmax(0).numpy()
    assert (labels != expected).mean() < 1e-4


@pytest.mark.parametrize(
    ("count", "told", "message"),
    [
        (
            3,
            "",
            r'takes 3 channels, but a volume gives 1: write input = "slices" if these are a slice and the 1 before and after',
        ),
        (
            4,
            "",
            r'takes 4 channels, but a volume gives 1: write input = "copies" if it takes the same grey values in each, into ',
        ),
        (4, 'input = "slices"', "takes 4 channels, of which none is in the middle"),
        (1, 'input = "slices"', r'says input = "slices", but .* takes an input of 1 x 1 x any x any: remove that line'),
        (1, 'input = "copies"', r'says input = "copies", but .* takes an input of 1 x 1 x any x any: remove that line'),
        (3, 'input = "colours"', r"is 'colours', not slices or copies"),
        (3, 'input = "slices"\ncontext = [2, 8, 8]', r"says context = \[2, 8, 8\], but the network takes 3 slices: .* is 1$"),
    ],
)
def test_what_cannot_be_meant_is_refused(count: int, told: str, message: str, tmp_path: Path) -> None:
    model = saved(tmp_path, "pt2", Flat(count), (1, count, 32, 32), told)
    with pytest.raises(ModelError, match=message):
        contract_of(read_external(model))


@KINDS
def test_slices_along_a_third_axis_are_asked_about(kind: str, tmp_path: Path) -> None:
    save = {"pt2": save_exported, "onnx": partial(save_onnx, fixed=1)}[kind]
    model = save(tmp_path / f"theirs.{kind}", Deep(kept=False), (1, 1, 5, 32, 32))  # type: ignore[operator]
    model.with_name(f"{model.name}.toml").write_text('activation = "logits"\n')
    asks = r'or if it gives the middle one of 5 slices, write input = "slices" into theirs'
    with pytest.raises(ModelError, match=asks):
        contract_of(read_external(model))


def test_what_is_told_of_slices_holds(tmp_path: Path) -> None:
    model = saved(tmp_path, "pt2", Flat(3), (1, 3, 32, 32), 'input = "slices"\ncontext = [1, 8, 8]\nlattice = [1, 4, 4]')
    contract = contract_of(read_external(model))
    assert (contract.context, contract.lattice) == ((1, 8, 8), (1, 4, 4))
