"""Frozen normalisations over space make a network local: tiles, workers, resumes and repairs give the bytes of one pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from foreign import save_exported, save_onnx, state
from numpy.typing import NDArray
from runs import PLANAR, bytes_of, save_random_model, save_volume, shards, texture
from torch import Tensor, nn

import emseg_core.model.frozen_norms
from emseg import plan, segment
from emseg.flows.repair import repair
from emseg.flows.verify import verify
from emseg.runs.events import Event, Noticed
from emseg_core.errors import InputError
from emseg_core.model.external_model import contract_of, read_external
from emseg_core.normalise import survey
from emseg_core.recipe import Recipe
from emseg_core.store.volumes.volume import open_volume

SHAPE = (6, 93, 150)
CONTEXT = 5
"""Of the networks here, in voxels, once their normalisations are frozen."""
Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {
    "instance": nn.InstanceNorm2d,
    "affine instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(2, channels),
    "one group": lambda channels: nn.GroupNorm(1, channels),
}


class Normalised(nn.Module):
    """A small U-Net with padding and pooling by two, and a normalisation after each convolution."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 2, 3, padding=1)
        self.norms = nn.ModuleList([norm(4), norm(8), norm(4)])
        for weight in self.norms.parameters():
            nn.init.normal_(weight, 1, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits in the shape of the image."""
        fine = torch.relu(self.norms[0](self.first(x)))
        coarse = torch.relu_(self.norms[1](self.second(torch.max_pool2d(fine, 2))))
        given: Tensor = self.last(torch.cat([fine, self.norms[2](self.up(coarse))], 1))
        return given


class Affine(nn.Module):
    """A normalisation with these statistics, as a product and a sum."""

    def __init__(self, norm: nn.Module, mean: tuple[float, ...], variance: tuple[float, ...]) -> None:
        super().__init__()
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        count = len(mean) if weight is None else len(weight)
        self.mean, self.variance = (torch.tensor(part).repeat_interleave(count // len(part)) for part in (mean, variance))
        self.weight = torch.ones(count) if weight is None else weight.detach()
        self.bias = torch.zeros(count) if bias is None else bias.detach()
        self.eps = float(norm.eps)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised values."""
        mean, scale, shift = (part[:, None, None] for part in (self.mean, self.weight, self.bias))
        return (x - mean) / torch.sqrt(self.variance[:, None, None] + self.eps) * scale + shift


def save(path: Path, network: nn.Module) -> Path:
    return state((save_onnx if path.suffix == ".onnx" else save_exported)(path, network, (1, 1, 64, 64)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume whose contrast changes from place to place, and networks in both formats."""
    folder = tmp_path_factory.mktemp("inputs")
    save_volume(folder / "v.zarr", (texture(SHAPE) * np.linspace(0.3, 1, SHAPE[2])).astype(np.uint8))
    for name, norm in NORMS.items():
        for suffix in ("pt2", "onnx"):
            save(folder / f"{name}.{suffix}", Normalised(norm))
    return folder


def recipe_in(output: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = json.loads((output / "zarr.json").read_text())["attributes"]["emseg"]["recipe"]
    return recipe


def labels(output: Path) -> NDArray[Any]:
    return np.asarray(zarr.open_array(output / "labels" / "classes" / "0", mode="r")[...])


def oracle(folder: Path, network: Normalised, norms: list[dict[str, Any]]) -> Tensor:
    """Return logits of one pass over each whole slice, in plain torch; the volume is mirrored beyond its faces."""
    assert [norm["number"] for norm in norms] == [0, 1, 2]
    affine = [Affine(norm, tuple(n["mean"]), tuple(n["variance"])) for norm, n in zip(network.norms, norms, strict=True)]
    network.norms = nn.ModuleList(affine)
    source = open_volume(folder / "v.zarr")
    values = survey(source, "volume")[0].apply(source.read(source.spec.box), source.spec.box)
    before = CONTEXT + 28  # a multiple of the lattice more than the context: pooling starts where that of tiles does
    wide = np.pad(values, ((0, 0), (before, before - 1), (before, before)), mode="reflect")
    with torch.inference_mode():
        logits: Tensor = network(torch.from_numpy(wide)[:, None])
    return logits[..., before : before + SHAPE[1], before : before + SHAPE[2]]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("name", NORMS)
def test_tiles_give_one_pass_of_affine_operations_with_the_recipes_numbers(
    folder: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    output = tmp_path / "o.zarr"
    asked: dict[str, Any] = {"model": folder / f"{name}.{suffix}", "norms": "frozen", "tile": (1, 48, 48)}
    assert segment(folder / "v.zarr", output, workers=0, **asked).exit_code == 0
    contract = recipe_in(output)["plan"]["model"]["contract"]
    assert (contract["local"], contract["lattice"], contract["context"]) == (True, [1, 2, 2], [0, CONTEXT, CONTEXT])
    logits = oracle(folder, Normalised(NORMS[name]), contract["norms"])
    margin = (logits[:, 1] - logits[:, 0]).numpy()
    wrong = labels(output) != (margin > 0)
    assert not (wrong & (np.abs(margin) > 1e-4)).any()
    assert 0.02 < (margin > 0).mean() < 0.98
    assert verify(output, boxes=3).holds


def test_statistics_are_those_of_all_tiles_with_earlier_norms_frozen(folder: Path) -> None:
    """The sample is the whole volume: the first norm has its mean and variance over all tiles side by side."""
    source = open_volume(folder / "v.zarr")
    normalisation = survey(source, "volume")[0]
    for suffix in ("pt2", "onnx"):
        model = read_external(folder / f"instance.{suffix}")
        frozen = emseg_core.model.frozen_norms.freeze(model, source, normalisation)
        boxes = list(emseg_core.model.frozen_norms.sample_boxes(source, (1, 96, 160), 64))
        assert len(boxes) == SHAPE[0]
        tiles = [emseg_core.block.read_seen(source, normalisation, box) for box in boxes]
        values = np.stack([(seen.voxels - seen.mean[:, None, None]) / seen.deviation[:, None, None] for seen in tiles])
        network = Normalised(NORMS["instance"])
        x = torch.from_numpy(values.astype(np.float32))
        with torch.inference_mode():
            for norm, made in zip(frozen.norms, _inputs_of_norms(network, x, frozen.norms), strict=True):
                variance, mean = torch.var_mean(made.double(), (0, 2, 3), correction=0)
                np.testing.assert_allclose(norm.mean, mean, rtol=2e-3, atol=2e-3)
                np.testing.assert_allclose(norm.variance, variance, rtol=2e-3)
        assert contract_of(frozen).norms == frozen.norms


def _inputs_of_norms(network: Normalised, x: Tensor, norms: Any) -> list[Tensor]:
    """Return what each normalisation normalises, with all of them frozen."""
    seen: list[Tensor] = []

    class Watched(Affine):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    network.norms = nn.ModuleList([Watched(n, m.mean, m.variance) for n, m in zip(network.norms, norms, strict=True)])
    network(x)
    return seen


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_workers_resumes_and_repairs_take_the_numbers_of_the_recipe(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.zarr", tmp_path / "two.zarr"
    asked: dict[str, Any] = {"model": folder / f"instance.{suffix}", "tile": (1, 48, 48)}
    assert segment(folder / "v.zarr", one, workers=0, norms="frozen", **asked).exit_code == 0
    assert segment(folder / "v.zarr", two, workers=2, norms="frozen", **asked).exit_code == 0
    sound = bytes_of(one)
    assert bytes_of(two) == sound
    monkeypatch.setattr(emseg_core.model.frozen_norms, "freeze", None)
    told: list[Event] = []
    shards(two)[0].unlink()
    assert segment(folder / "v.zarr", two, workers=0, on_event=told.append, **asked).done == 1
    assert any("those that the output was started with" in event.message for event in told if isinstance(event, Noticed))
    shards(two)[1].unlink()
    assert repair(two, workers=0).holds
    assert bytes_of(two) == sound
    with pytest.raises(InputError, match="started with norms='frozen', not tile: leave it out"):
        segment(folder / "v.zarr", two, workers=0, norms="tile", **asked)


def test_statistics_are_those_of_the_volume_whatever_the_region(folder: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": folder / "group.pt2", "norms": "frozen", "workers": 0}
    segment(folder / "v.zarr", tmp_path / "whole.zarr", **asked)
    segment(folder / "v.zarr", tmp_path / "part.zarr", roi="1:4,8:60,30:110", **asked)
    np.testing.assert_array_equal(labels(tmp_path / "part.zarr"), labels(tmp_path / "whole.zarr")[1:4, 8:60, 30:110])


def test_statistics_are_those_of_the_mask(folder: Path, tmp_path: Path) -> None:
    inside = np.zeros(SHAPE, np.uint8)
    inside[:2] = 1
    save_volume(tmp_path / "m.zarr", inside)
    asked: dict[str, Any] = {"model": folder / "instance.pt2", "norms": "frozen", "mask": tmp_path / "m.zarr"}
    segment(folder / "v.zarr", tmp_path / "o.zarr", workers=0, **asked)
    found = recipe_in(tmp_path / "o.zarr")["plan"]["model"]["contract"]["norms"]
    source = open_volume(folder / "v.zarr")
    model, normalisation = read_external(folder / "instance.pt2"), survey(source, "volume")[0]
    masked = emseg_core.model.frozen_norms.freeze(model, source, normalisation, open_volume(tmp_path / "m.zarr"))
    whole = emseg_core.model.frozen_norms.freeze(model, source, normalisation)
    assert [tuple(norm["mean"]) for norm in found] == [norm.mean for norm in masked.norms]
    assert masked.norms != whole.norms


def test_a_recipe_without_frozen_norms_does_not_mention_them(folder: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    report = segment(folder / "v.zarr", tmp_path / "o.zarr", model=folder / "group.onnx", workers=0, on_event=told.append)
    assert report.exit_code == 0
    recipe = recipe_in(tmp_path / "o.zarr")
    assert "norms" not in json.dumps(recipe)
    assert any("norms='frozen'" in event.message for event in told if isinstance(event, Noticed))
    segment(folder / "v.zarr", tmp_path / "p.zarr", model=folder / "group.onnx", workers=0, norms="tile")
    assert recipe_in(tmp_path / "p.zarr") == recipe
    with pytest.raises(InputError, match="started with norms='tile', not frozen"):
        segment(folder / "v.zarr", tmp_path / "o.zarr", model=folder / "group.onnx", workers=0, norms="frozen")


def test_a_recipe_with_frozen_norms_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    segment(folder / "v.zarr", tmp_path / "o.zarr", model=folder / "group.onnx", workers=0, norms="frozen")
    stored = recipe_in(tmp_path / "o.zarr")
    assert json.loads(json.dumps(Recipe.from_json(stored).to_json())) == stored


def test_plans_are_those_of_the_frozen_network(folder: Path) -> None:
    planned = plan(folder / "v.zarr", model=folder / "instance.pt2", norms="frozen")
    assert dict(planned.plan.model.remarks())["norms"].startswith("frozen: 3 normalisations")
    told = dict(plan(folder / "v.zarr", model=folder / "instance.pt2").plan.model.remarks())
    assert told["norms"].startswith("statistics of each tile")
    assert told["exact"].startswith("NO, because of instance normalisation")


@pytest.mark.parametrize("norms", ["frozen", "tile"])
@pytest.mark.parametrize("kind", ["native", "foreign"])
def test_networks_without_such_norms_refuse_the_setting(folder: Path, tmp_path: Path, norms: Any, kind: str) -> None:
    if kind == "native":
        model = save_random_model(tmp_path / "n.safetensors", PLANAR)
    else:
        model = save(tmp_path / "n.pt2", nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    with pytest.raises(InputError, match="has no instance, group or layer norm over space that is known: leave it out"):
        segment(folder / "v.zarr", tmp_path / "o.zarr", model=model, workers=0, norms=norms)
    assert not (tmp_path / "o.zarr").exists()
