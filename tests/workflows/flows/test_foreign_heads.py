"""Test runs with networks of others that have several outputs, and heads that are told in a file beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import AXES, save_exported, save_onnx, save_package
from numpy.typing import NDArray
from runs import save_volume, texture
from torch import Tensor, nn

from emseg import segment
from emseg.flows.verify import verify
from emseg_core.errors import ModelError
from emseg_core.grid.stitch import quantise
from emseg_core.model.external_model import contract_of, read_external
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (4, 50, 60)
VALUES = texture(SHAPE)
TABLES = """
[[heads]]
name = "descriptors"
kind = "values"
output = 0

[[heads]]
name = "affinities"
kind = "affinities"
output = 1
channels = [2, 1]
activation = "sigmoid logits"
offsets = [[0, 0, -1], [0, -1, 0]]
anchor = "destination"

[[heads]]
name = "organelles"
kind = "independent"
output = 1
channels = [0]
names = ["mito"]
activation = "sigmoid logits"
threshold = 0.51

[[heads]]
kind = "classes"
output = 2
names = ["outside", "inside", "edge"]
activation = "logits"
"""
THREE = 'activation = "sigmoid"\noffsets = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]'


class Three(nn.Module):
    """A 2-D network with three outputs of 4, 3 and 3 channels, which do not mean the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.ReLU())
        self.ends = nn.ModuleList(nn.Conv2d(5, channels, 1) for channels in (4, 3, 3))

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        seen = self.body(tiles)
        return tuple(end(seen) for end in self.ends)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, and one network in two formats."""
    folder = tmp_path_factory.mktemp("heads")
    save_volume(folder / "v.zarr", VALUES)
    for path in (
        save_exported(folder / "n.pt2", Three().eval(), (1, 1, 32, 32)),
        save_onnx(folder / "n.onnx", Three().eval(), (1, 1, 32, 32)),
    ):
        path.with_name(f"{path.name}.toml").write_text(TABLES)
    return folder


def in_one_pass() -> list[NDArray[np.float32]]:
    """Return the outputs of the network on the whole mirrored volume, each ``(channel, z, y, x)``."""
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    padded = np.pad(normalised, [(0, 0), (2, 2), (2, 2)], mode="reflect")
    with torch.inference_mode():
        outputs = [Three().eval()(torch.from_numpy(section)[None, None]) for section in padded]
    return [np.stack([slices[number][0].numpy() for slices in outputs], 1) for number in range(3)]


@pytest.mark.parametrize("name", ["n.pt2", "n.onnx"])
def test_each_head_is_what_one_pass_gives(name: str, folder: Path, tmp_path: Path) -> None:
    assert segment(folder / "v.zarr", tmp_path / "o.zarr", model=folder / name, workers=0).exit_code == 0
    stored, (descriptors, several, logits) = open_output(tmp_path / "o.zarr"), in_one_pass()
    shares = torch.from_numpy(several).sigmoid().numpy()
    for image, values in (("descriptors", descriptors), ("affinities", 254 * shares[[2, 1]])):
        found = stored.read(image, stored.region).astype(np.float32)
        allowed = 0.51 if image == "affinities" else 2e-3 * np.abs(values).max()
        np.testing.assert_allclose(found, values, rtol=0, atol=allowed)
        assert found.std() > allowed
    labels, mito = stored.read_labels(stored.region), stored.read("mito", stored.region)
    top = np.sort(logits, axis=0)
    assert ((labels == logits.argmax(0)) | (top[-1] - top[-2] < 1e-4)).all()
    assert ((mito == (shares[0] >= 0.51)) | (np.abs(shares[0] - 0.51) < 1e-4)).all()
    assert min(len(np.unique(labels)), len(np.unique(mito))) > 1
    assert verify(tmp_path / "o.zarr", boxes=3).holds


def test_only_one_of_several_outputs(folder: Path, tmp_path: Path) -> None:
    """Heads may leave outputs out, and the other way to name one still holds."""
    path = tmp_path / "n.pt2"
    path.write_bytes((folder / "n.pt2").read_bytes())
    beside = path.with_name("n.pt2.toml")
    beside.write_text('[[heads]]\nname = "affs"\nkind = "affinities"\noutput = 1\nactivation = "sigmoid logits"\n'
                      "offsets = [[0, 0, -1], [0, -1, 0], [0, -3, 0]]\n")  # fmt: skip
    assert segment(folder / "v.zarr", tmp_path / "o.zarr", model=path, workers=0).exit_code == 0
    stored = open_output(tmp_path / "o.zarr")
    assert [image.name for image in stored.images] == ["affs"]
    shares = torch.from_numpy(in_one_pass()[1]).sigmoid().numpy()
    assert np.abs(stored.read("affs", stored.region).astype(int) - quantise(shares)).max() <= 1
    beside.write_text('output = 2\nactivation = "logits"\n')
    assert contract_of(read_external(path)).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('name = "a"\nkind = "values"', "the head 'a' names none of the outputs"),
        ('name = "a"\nkind = "values"\noutput = 7', "the head 'a' has the output 7, but there are"),
        ('name = "a"\nkind = "values"\noutput = 0\nscales = [0, 1]', "a head has the unknown key 'scales'"),
        ('name = "a"\nkind = "affinities"\noutput = 1\nactivation = "sigmoid"', "gives? 0 channels|names 0 channels"),
        ('name = "a"\nkind = "independent"\noutput = 1', "the head 'a' has no activation"),
        ('name = "a"\nkind = "values"\noutput = 1\nchannels = [3]', r"the head 'a' takes the channels \[3\], but there are 3"),
        ('name = "labels"\nkind = "values"\noutput = 0', "a head is named 'labels'"),
        ('name = "a"\nkind = "values"\noutput = 0\nscale = [1, 1]', r"the head 'a' has the scale \[1.0, 1.0\]"),
        ('name = "a"\nkind = "values"\noutput = 0\nnames = ["x"]', "the head 'a' has 1 channels, but .* gives 4"),
        ('name = "a"\nkind = "values"\noutput = 0\nthreshold = 0.5', "of kind values has thresholds"),
        ('name = "a"\nkind = "values"\noutput = 0\nanchor = "destination"', "of kind values has anchor"),
        ('name = "a"\nkind = "values"\noutput = 0\nchannels = [0.9]', r"channels = \[0.9\], not a list of whole numbers"),
        ('name = "a"\nkind = "values"\noutput = 0\nchannels = [true]', r"channels = \[True\], not a list of whole numbers"),
        ('name = "a"\nkind = "values"\noutput = 0\nnames = "four"', "names = 'four', not a list of texts"),
        ('name = "a"\nkind = "values"\noutput = true', "output = True, not a name or a whole number"),
        ('name = "a"\nkind = "values"\noutput = [0]', r"output = \[0\], not a name or a whole number"),
        (
            f'name = "a"\nkind = "affinities"\noutput = 1\nrepulsive = "false"\n{THREE}',
            "repulsive = 'false', not true or false",
        ),
        (
            'name = "a"\nkind = "affinities"\noutput = 1\noffsets = [[0, 0, 1.5]]',
            "not a list with three whole numbers for each",
        ),
        ('name = "a"\nkind = "values"\noutput = 0\nscale = [1.0, 1.00000001]', "differ in float32"),
        ('name = "a"\nkind = "values"\noutput = 0\nscale = [-3e38, 3e38]', "differ in float32"),
        ('name = "Raw"\nkind = "values"\noutput = 0', "a head is named 'Raw'"),
        (
            'name = "a"\nkind = "values"\noutput = 0\n[[heads]]\nname = "A"\nkind = "values"\noutput = 1',
            "two heads or independent classes are named 'a'",
        ),
        (
            'name = "a"\nkind = "values"\noutput = 0\n[[heads]]\nname = "b"\nkind = "values"\noutput = 1\nchannels = [-1]',
            r"the head 'b' takes the channels \[-1\], but there are 3, counted from 0: correct",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: str, message: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    path.write_bytes((folder / "n.pt2").read_bytes())
    path.with_name("n.pt2.toml").write_text(f"[[heads]]\n{table}\n")
    with pytest.raises(ModelError, match=message) as caught:
        contract_of(read_external(path))
    assert "\n" not in str(caught.value)


def test_what_heads_would_hide_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "n.pt2"
    path.write_bytes((folder / "n.pt2").read_bytes())
    more: dict[str, Any] = {"output": "output = 1", "activation": 'activation = "logits"', "classes": 'classes = ["a", "b"]'}
    for name, line in more.items():
        path.with_name("n.pt2.toml").write_text(f"{line}\n{TABLES}")
        with pytest.raises(ModelError, match=f"has both heads and {name}"):
            read_external(path)


def test_a_package_with_several_outputs_has_heads(folder: Path, tmp_path: Path) -> None:
    """Tables name outputs as the package does, and replace its postprocessing, whatever that is."""
    outputs = [{"id": name, "axes": AXES, "postprocessing": [{"id": "scale_linear"}]} for name in ("far", "near", "kinds")]
    path = save_package(
        tmp_path / "p.zip",
        {"w.onnx": (folder / "n.onnx").read_bytes()},
        outputs=outputs,
        weights={"onnx": {"source": "w.onnx"}},
    )
    tables = TABLES.replace("output = 0", 'output = "far"').replace("output = 1", 'output = "near"')
    path.with_name("p.zip.toml").write_text(tables.replace("output = 2", 'output = "kinds"'))
    assert contract_of(read_external(path)).heads == contract_of(read_external(folder / "n.onnx")).heads
    path.with_name("p.zip.toml").write_text(TABLES.replace("output = 0", 'output = "farther"'))
    with pytest.raises(ModelError, match="has the output 'farther', but there are far, near, kinds"):
        read_external(path)
