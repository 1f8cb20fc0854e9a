"""Test what experiments find out about networks with known properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign import Bare, Padded
from numpy.typing import NDArray
from torch import nn

from emseg_core.errors import ModelError
from emseg_core.model.adapter import apply_network
from emseg_core.model.receptive_field import ProbeResult, probe
from emseg_core.specs.model import ModelSpec

Array = NDArray[np.float32]


def found(network: nn.Module, *, planar: bool = True, **known: object) -> ProbeResult:
    """Return what a probe finds out about a torch network."""

    def run(tiles: Array) -> Array:
        with torch.inference_mode():
            return apply_network(network, torch.from_numpy(tiles)[:, None], planar=planar).numpy()

    return probe(run, planar=planar, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec.unet(width=2, depth=0),
        ModelSpec.unet(width=2, depth=2),
        ModelSpec.unet(width=2, depth=3, classes=("a", "b", "c")),
        ModelSpec(2, 1, ("a", "b"), ((1, 5, 3), (1, 3, 3)), ((1, 2, 3),)),
        ModelSpec(2, 1, ("a", "b"), ((3, 3, 3), (3, 3, 3)), ((2, 2, 2),)),
        ModelSpec(2, 2, ("a", "b"), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2))),
    ],
    ids=str,
)
def test_a_valid_network_is_found_as_its_description_says(spec: ModelSpec) -> None:
    known = found(Bare(spec), planar=spec.planar)
    assert (known.context, known.lattice, known.crop) == (spec.context, spec.lattice, (0, 0, 0))
    assert (known.channels, known.local, known.only_tile) == (len(spec.classes), True, None)
    assert all(spec.fits(axis, length) for axis, length in enumerate(known.least))


def test_of_a_network_that_pads_as_much_is_cropped_as_saw_the_padding() -> None:
    """Three convolutions, one of them at half the resolution: 1 + 2 + 1 voxels, rounded up to a lattice cell at most."""
    known = found(Padded())
    assert (known.lattice, known.local) == ((1, 2, 2), True)
    assert known.context == known.crop
    assert 4 <= known.context[1] == known.context[2] <= 6


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)], ids=["instance", "group"])
def test_statistics_of_a_tile_are_found(norm: nn.Module) -> None:
    torch.manual_seed(1)
    assert not found(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.Conv2d(4, 2, 1))).local


def test_what_depends_on_places_is_found() -> None:
    """The network uses the position within a tile."""

    class Placed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x + torch.arange(x.shape[-1])], 1)

    assert not found(Placed()).local


def test_the_only_tile_that_fits_is_used() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Padded()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-2:] == (104, 72)
            given: torch.Tensor = self.network(x)
            return given

    with pytest.raises(ModelError, match="rejects every tile of 16 to 292 voxels"):
        found(One())
    known = found(One(), declared=(1, 104, 72))
    assert (known.only_tile, known.local, known.lattice) == ((1, 104, 72), True, (1, 2, 2))
    assert known.context == found(Padded()).context


def test_a_network_whose_output_is_not_in_the_middle_is_refused() -> None:
    with pytest.raises(ModelError, match="the network turns 16 voxels along y into 13, but must crop"):
        found(nn.Conv2d(1, 2, 4))
