"""Test what is found out about the tiles of networks with the structure of common ones, and what is told of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Padded, save_exported, save_onnx
from structured import Attentive, Chain, Cropped, Resized, Squeezed, Styled
from torch import nn

import emseg_core.model.receptive_field
from emseg_core.errors import ModelError
from emseg_core.model.backend import backend_of, open_predictor
from emseg_core.model.model_place import describe, load
from emseg_core.model.receptive_field import Told, probe
from emseg_core.specs.contract import Contract

SIDE = (1, 1, 32, 32)


def contract(path: Path, **told: Any) -> Contract:
    """Return the contract of a file with these settings, of logits unless told otherwise."""
    told = {"activation": "logits", **told}
    path.with_name(f"{path.name}.toml").write_text("\n".join(f"{name} = {value!r}" for name, value in told.items()))
    spec, _ = describe(path)
    assert isinstance(spec, Contract)
    return spec


def exact(spec: Contract) -> str:
    """Return what is shown on exactness."""
    return dict(spec.remarks())["exact"]


def logits(path: Path, spec: Contract, tiles: np.ndarray) -> np.ndarray:
    """Return the logits of tiles."""
    return np.asarray(open_predictor(load(path, spec), backend_of(path, "cpu"), "float32", 1, "cpu").predict(tiles))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_eight_stages_have_a_lattice_of_128(tmp_path: Path, kind: str) -> None:
    """The plan of nnU-Net for patches of 512 x 512."""
    shape = (1, 1, 256, 256)
    network = Chain(8)
    path = (
        save_exported(tmp_path / "n.pt2", network, shape) if kind == "pt2" else save_onnx(tmp_path / "n.onnx", network, shape)
    )
    spec = contract(path, activation="logits")
    assert (spec.lattice, spec.local, spec.only_tile) == ((1, 128, 128), True, None)
    assert spec.context[1] == spec.context[2] == 255  # 1 + 2 + ... + 128
    assert exact(spec).startswith("found by arithmetic on the operations of the network, and confirmed by experiment")


def test_the_lattice_does_not_depend_on_how_strong_deep_levels_are(tmp_path: Path) -> None:
    network = Chain(5)
    with torch.no_grad():
        for up in network.up:
            up.weight.mul_(1e-3)  # type: ignore[operator]
    spec = contract(save_exported(tmp_path / "n.pt2", network, (1, 1, 64, 64)), activation="logits")
    assert (spec.lattice, spec.local) == ((1, 16, 16), True)


def test_statistics_of_the_tile_are_named_and_the_lattice_is_that_of_the_strides(tmp_path: Path) -> None:
    network = Chain(4, lambda width: nn.InstanceNorm2d(width, affine=True))
    spec = contract(save_exported(tmp_path / "n.pt2", network, (1, 1, 64, 64)), activation="logits")
    assert (spec.lattice, spec.context, spec.least) == ((1, 8, 8), (0, 15, 15), (1, 64, 64))
    assert exact(spec).startswith("NO, because of instance normalisation (aten.instance_norm)")
    spec = contract(save_exported(tmp_path / "s.pt2", Squeezed(), SIDE), activation="logits")
    assert (spec.lattice, spec.local) == ((1, 2, 2), False)
    assert exact(spec) == "NO, because of global pooling (aten.adaptive_avg_pool2d): labels depend on tiles"


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_size_that_is_written_down_makes_the_only_tile(tmp_path: Path, mode: str) -> None:
    """Other lengths run and give nonsense, or fail late: that it ran proves nothing."""
    network = Resized(mode)
    path = save_exported(tmp_path / "n.pt2", network, SIDE, fixed=True)
    spec = contract(path, activation="logits")
    assert (spec.only_tile, spec.least, spec.lattice, spec.local) == ((1, 32, 32), (1, 32, 32), (1, 4, 4), True)
    tile = np.random.default_rng(1).standard_normal((1, 1, 32, 32), np.float32)
    crop = spec.crop[1]
    with torch.inference_mode():
        truth = network(torch.from_numpy(tile))[0, :, crop:-crop, crop:-crop].numpy()
    np.testing.assert_allclose(logits(path, spec, tile)[0, :, 0], truth, atol=1e-5)
    free = contract(save_exported(tmp_path / "free.pt2", network, SIDE), activation="logits")
    assert (free.only_tile, free.context, free.lattice) == (None, spec.context, spec.lattice)


def test_a_tile_that_is_shorter_than_what_the_network_sees_is_said_to_be(tmp_path: Path) -> None:
    class Deep(Resized):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Sequential(nn.Conv2d(4, 4, 9, 2, 4), nn.Conv2d(4, 2, 9, padding=4))  # type: ignore[assignment]

    spec = contract(save_exported(tmp_path / "n.pt2", Deep(), SIDE, fixed=True), activation="logits")
    assert (spec.only_tile, spec.lattice, spec.local) == ((1, 32, 32), (1, 4, 4), False)
    assert "the only tile, of 1 x 32 x 32 voxels, which is shorter than the" in exact(spec)
    assert 32 - 2 * spec.context[1] >= 4


class Deep(nn.Module):
    """A network whose deepest pooling takes in all of a tile of 16 voxels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits in the shape of the image."""
        fine = self.first(x)
        coarse = fine
        for _ in range(4):
            coarse = nn.functional.max_pool2d(coarse, 2)
        given: torch.Tensor = self.last(torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=16)], 1))
        return given


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_pooling_of_a_short_tile_is_not_one_of_the_whole_tile(tmp_path: Path, kind: str) -> None:
    """Nothing says for which tiles it was made, or it was exported with the shortest one."""
    shape = (1, 1, 16, 16)
    path = save_exported(tmp_path / "n.pt2", Deep(), shape) if kind == "pt2" else save_onnx(tmp_path / "n.onnx", Deep(), shape)
    spec = contract(path)
    assert (spec.lattice, spec.only_tile, spec.local, spec.reason) == ((1, 16, 16), None, True, "")


def test_valid_networks_that_crop_their_skips(tmp_path: Path) -> None:
    shape = (1, 1, 20, 20, 20)
    free, fixed = (
        contract(save_exported(tmp_path / f"{fixed}.pt2", Cropped(), shape, fixed=fixed), activation="logits")
        for fixed in (False, True)
    )
    assert (free.context, free.lattice, free.local, free.only_tile) == ((4, 4, 4), (2, 2, 2), True, None)
    assert (fixed.context, fixed.crop, fixed.local, fixed.only_tile) == ((4, 4, 4), (0, 0, 0), True, (20, 20, 20))


def test_a_network_that_fails_on_other_lengths_runs_on_its_own(tmp_path: Path) -> None:
    spec = contract(save_exported(tmp_path / "n.pt2", Styled(), SIDE, fixed=True), activation="logits")
    assert (spec.only_tile, spec.local) == ((1, 32, 32), False)
    assert "global pooling (aten.avg_pool2d)" in exact(spec)


def test_attention_is_the_reason(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", Attentive(), SIDE, fixed=True)
    spec = contract(path, activation="logits")
    assert (spec.only_tile, spec.lattice, spec.context, spec.local) == ((1, 32, 32), (1, 8, 8), (0, 8, 8), False)
    assert "attention (aten.matmul)" in exact(spec)


class Mixed(Attentive):
    """Attention in the middle of a network, which goes on with a stride of two and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.lift = nn.Conv2d(8, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits in the shape of the image."""
        patches = self.patch(x)
        query, key, value = self.mix(patches.view(1, 8, -1).transpose(1, 2)).chunk(3, dim=-1)
        mixed = (torch.softmax(query @ key.transpose(1, 2), -1) @ value).transpose(1, 2).reshape(patches.shape)
        given: torch.Tensor = 5 * self.up(mixed + self.lift(self.down(mixed)))
        return given


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_strides_after_attention_count_for_the_lattice(tmp_path: Path, kind: str) -> None:
    """Tiles of other shapes fit, too. ONNX does not say for which it was made, so they are as large as usual."""
    network = Mixed()
    path = save_exported(tmp_path / "n.pt2", network, SIDE) if kind == "pt2" else save_onnx(tmp_path / "n.onnx", network, SIDE)
    spec = contract(path)
    assert (spec.only_tile, spec.lattice, spec.local) == (None, (1, 16, 16), False)
    assert (spec.context, spec.least) == (((0, 8, 8), (1, 32, 32)) if kind == "pt2" else ((0, 128, 128), (1, 272, 272)))


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [True, False])
def test_an_output_of_half_the_resolution_is_refused_for_that(tmp_path: Path, fixed: bool) -> None:
    path = save_exported(tmp_path / "n.pt2", nn.Conv2d(1, 2, 3, 2, 1), SIDE, fixed=fixed)
    with pytest.raises(ModelError, match="one value for every 2 voxels of its input, so its output"):
        contract(path)


def test_an_output_of_half_the_resolution_is_noticed_by_experiment() -> None:
    with pytest.raises(ModelError, match=r"turns 16 voxels along y into 8, as if its output had another resolution"):
        probe(lambda tiles: tiles[:, None, :, ::2, ::2], planar=True)


def test_slices_as_depth_are_refused_at_once(tmp_path: Path) -> None:
    class Slab(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(1, 2, (5, 3, 3), padding=(0, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            given: torch.Tensor = self.first(x)[:, :, 0]
            return given

    path = save_exported(tmp_path / "n.pt2", Slab(), (1, 1, 5, 32, 32))
    with pytest.raises(ModelError, match=r"labels one slice of several, .*: write inputs = \"slices\" into"):
        contract(path)


def test_experiments_are_limited_by_what_they_cost() -> None:
    """No experiment beyond the limit is begun. The message says what to write."""
    sizes = []

    def run(tiles: Any) -> Any:
        sizes.append(tiles.size)
        raise RuntimeError("does not fit")

    with pytest.raises(ModelError, match=r"write context = .* lattice = .* only_tile = .* into n.toml"):
        probe(run, planar=False, told=Told(place="n.toml"))
    each = emseg_core.model.receptive_field.OPERATIONS_PER_VOXEL
    assert sum(sizes) * each <= emseg_core.model.receptive_field.MAX_OPERATIONS
    assert max(sizes) * emseg_core.model.receptive_field.BYTES_PER_VOXEL <= emseg_core.model.receptive_field.MAX_BYTES


def test_what_is_known_needs_no_experiment_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_exported(tmp_path / "n.pt2", Padded(), SIDE)
    monkeypatch.setattr(emseg_core.model.receptive_field, "MAX_OPERATIONS", 150_000)
    spec = contract(path)
    assert (spec.basis, spec.local) == ("graph", True)
    assert exact(spec).startswith("found by arithmetic on the operations of the network: ")
    monkeypatch.setattr(emseg_core.model.receptive_field, "MAX_OPERATIONS", 1000)
    spec = contract(path)
    assert (spec.basis, spec.local, len(spec.classes)) == ("graph", True, 2)


def test_what_a_refusal_at_the_limit_asks_for_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile is run, as a run does; nothing is tried on it."""
    monkeypatch.setattr(emseg_core.model.receptive_field, "MAX_OPERATIONS", 1000)
    sizes = []

    def run(tiles: Any) -> Any:
        sizes.append(tiles.size)
        return np.stack([tiles, -tiles], 1)[..., 2:-2, 2:-2]

    with pytest.raises(ModelError, match=r"experiments may take 1e\+03 in all .* write context = .* lattice = .* only_tile = "):
        probe(run, planar=True, declared=(1, 32, 32))
    with pytest.raises(ModelError, match=r"write context = \[z, y, x\] and lattice = \[z, y, x\], in voxels, into n.toml"):
        probe(run, planar=True, told=Told(only_tile=(1, 32, 32), place="n.toml"))
    assert not sizes
    found = probe(run, planar=True, declared=(1, 32, 32), told=Told(context=(0, 4, 4), lattice=(1, 2, 2)))
    assert (found.context, found.crop, found.lattice, found.channels) == ((0, 4, 4), (0, 2, 2), (1, 2, 2), 2)
    assert (found.basis, found.local) == ("told", False)
    assert sizes == [32 * 32]


# -- what is told ---------------------------------------------------------------------------------------------------


def test_a_tile_that_is_told_is_used(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", Padded(), SIDE)
    spec = contract(path, only_tile=[1, 64, 96])
    assert (spec.only_tile, spec.least, spec.local) == ((1, 64, 96), (1, 64, 96), True)


def test_a_context_that_is_told_is_used_and_said_to_be_inexact(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", Padded(), SIDE)
    spec = contract(path, context=[0, 2, 2])
    assert (spec.context, spec.crop, spec.lattice, spec.local) == ((0, 2, 2), (0, 2, 2), (1, 2, 2), False)
    assert exact(spec).startswith("NO, because of the context, which is told; the network sees 5 voxels")
    wide = contract(path, context=[0, 10, 7], lattice=[1, 4, 2])
    assert (wide.context, wide.lattice, wide.local) == ((0, 10, 7), (1, 4, 2), True)


def test_what_is_told_of_a_network_that_is_not_known_is_tried() -> None:
    with torch.inference_mode():
        network = Padded()

        def run(tiles: Any) -> Any:
            return network(torch.from_numpy(tiles))[:, :, None].numpy()

        good = probe(run, planar=True, told=Told(context=(0, 6, 6), lattice=(1, 2, 2)))
        assert (good.context, good.lattice, good.local, good.basis) == ((0, 6, 6), (1, 2, 2), True, "experiment")
        bad = probe(run, planar=True, told=Told(context=(0, 1, 1), lattice=(1, 2, 2)))
        assert (bad.context, bad.local) == ((0, 1, 1), False)
        assert "does not move with its input as told" in bad.reason


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"context": [4, 8, 8]}, "context = .* but the network is two-dimensional: its first number, along z, is 0"),
        ({"only_tile": [4, 32, 32]}, "only_tile = .* is two-dimensional: its first number, along z, is 1"),
        ({"only_tile": [1, 33, 33]}, r"says only_tile = \[1, 33, 33\], but the network rejects it"),
        ({"lattice": [1, 3, 3]}, r"says lattice = \[1, 3, 3\], but along y the network accepts 32 voxels and not 3 more"),
        ({"context": [0, 16, 16], "only_tile": [1, 32, 32]}, "a context of 16 on each side leaves 0, less than its lattice, 2"),
        ({"context": [0, 8]}, r"context in .* is \[0, 8\], not three whole numbers"),
        ({"lattice": [1, 0, 2]}, "lattice in .* of at least 1"),
    ],
)
def test_what_is_told_and_cannot_be_is_refused(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    path = save_exported(tmp_path / "n.pt2", Padded(), SIDE)
    with pytest.raises(ModelError, match=said) as refused:
        contract(path, **told)
    assert "\n" not in str(refused.value)


def test_less_context_than_a_valid_network_takes_is_refused(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", Cropped(), (1, 1, 20, 20, 20))
    with pytest.raises(ModelError, match="the network itself removes 4 voxels on each side"):
        contract(path, context=[3, 4, 4])


def test_another_size_than_the_one_written_down_is_refused(tmp_path: Path) -> None:
    path = save_exported(tmp_path / "n.pt2", Resized(), SIDE, fixed=True)
    with pytest.raises(ModelError, match=r"upsample_bilinear2d in the network fixes its size at \[1, 32, 32\]"):
        contract(path, only_tile=[1, 64, 64])


def test_a_contract_is_kept_with_what_it_rests_on(tmp_path: Path) -> None:
    spec = contract(save_exported(tmp_path / "n.pt2", Squeezed(), SIDE), activation="logits")
    assert Contract.from_json(spec.to_json()) == spec
    older = spec.to_json()
    del older["contract"]["basis"], older["contract"]["reason"]
    assert Contract.from_json(older).basis == "experiment"


def test_memory_stays_within_the_limit(tmp_path: Path) -> None:
    """A network for slabs once took several gigabytes before it was refused."""
    path = save_exported(tmp_path / "n.pt2", nn.Conv3d(1, 32, 3, padding=1), (1, 1, 16, 16, 16))
    path.with_name("n.pt2.toml").write_text('activation = "logits"\n')
    script = f"""
import resource
from pathlib import Path
from emseg_core.model.model_place import describe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
describe(Path({str(path)!r}))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert int(done.stdout) < 1000
