"""Networks from other tools: exported by torch, in ONNX, or as a BioImage.IO package."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from networks import random_network
from torch import Tensor, nn

from emseg_core.box import Triple
from emseg_core.specs.model import ModelSpec


class Bare(nn.Module):
    """A U-Net for images ``(1, 1, y, x)`` or ``(1, 1, z, y, x)``, followed by another module."""

    def __init__(self, spec: ModelSpec, last: Callable[[Tensor], Tensor] = nn.Identity(), seed: int = 3) -> None:
        super().__init__()
        self.network, self.last, self.planar = random_network(spec, seed, torch.float32), last, spec.planar

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        return self.last(self.network(x[:, :, None])[:, :, 0] if self.planar else self.network(x))


class Padded(nn.Module):
    """A U-Net with padding, pooling by two, and batch normalisation with known statistics."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.norm, self.up, self.last = nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, channels, 3, padding=1)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        fine = torch.relu(self.first(x))
        coarse = torch.relu_(self.norm(self.second(torch.max_pool2d(fine, 2))))
        given: Tensor = self.last(torch.cat([fine, self.up(coarse)], 1))
        return given


def save_exported(path: Path, network: nn.Module, shape: tuple[int, ...], *, fixed: bool = False, first: int = 2) -> Path:
    """Export a network for images of any length from the first of these axes on, or of this shape only."""
    any_length = dict.fromkeys(range(first, len(shape)), torch.export.Dim.AUTO)
    program = torch.export.export(network.eval(), (torch.randn(shape),), dynamic_shapes=None if fixed else (any_length,))
    torch.export.save(program, path)
    return path


def save_onnx(path: Path, network: nn.Module, shape: tuple[int, ...], *, first: int = 2) -> Path:
    """Save a network for images of any length from the first of these axes on as ONNX."""
    lengths = {"x": {axis: f"axis{axis}" for axis in range(first, len(shape))}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter needs one package less, but is deprecated
        torch.onnx.export(
            network.eval(),
            (torch.randn(shape),),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=lengths,
        )
    return path


def state(path: Path, *lines: str) -> Path:
    """Write settings beside a network, by default that its channels exclude one another."""
    path.with_name(f"{path.name}.toml").write_text("\n".join(lines or ('activation = "logits"',)) + "\n")
    return path


AXES: list[dict[str, Any]] = [
    {"type": "batch"},
    {"type": "channel", "channel_names": ["inside", "membrane"]},
    {"type": "space", "id": "y"},
    {"type": "space", "id": "x"},
]


def save_package(path: Path, files: dict[str, bytes], **described: Any) -> Path:
    """Save a BioImage.IO package, format 0.5, with these files; by default, its network gives logits of two classes."""
    text = {
        "type": "model",
        "format_version": "0.5.3",
        "name": "somebody's network",
        "inputs": [{"id": "raw", "preprocessing": [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}}]}],
        "outputs": [{"id": "out", "axes": AXES, "postprocessing": [{"id": "softmax"}]}],
        **described,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rdf.yaml", yaml.safe_dump(text))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tile_of(spec: ModelSpec) -> tuple[int, ...]:
    """Return the shape of a tile as an image of one channel."""
    shape: Triple = spec.tile_for((1, 24, 24) if spec.planar else (9, 9, 9))
    return (1, 1, *shape[spec.planar :])


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> Path:
    """Return a copy of an exported program with some of its files changed, removed or added."""
    copy = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as other:
        for name in archive.namelist():
            data = change(name, archive.read(name))
            if data is not None:
                other.writestr(name, data)
        for name, data in added.items():
            other.writestr(name, data)
    return copy


def with_program(path: Path, change: Callable[[Any], None]) -> Path:
    """Return a copy of an exported program with a changed document."""

    def act(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return rewritten(path, act)
