"""Test that a training on a GPU learns as one on the CPU does, and can be resumed there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import cells

from emseg_core.model.device import Device
from emseg_core.specs.model import ModelSpec
from emseg_core.training.fit import fit
from emseg_core.training.spec import AugmentSpec, FitSpec, Precision, Progress
from emseg_core.training.truth_reader import ValidationVolume

pytestmark = pytest.mark.gpu

SPEC = ModelSpec.unet(width=4, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2), dropout=0.0)
SETTINGS = FitSpec(
    steps=12,
    output=(8, 8, 8),
    warmup=2,
    validate_every=4,
    precision="float32",
    border_weight=3.0,
    affinity_weight=0.5,
    affinity_reach=(1, 3),
    average=0.9,
    augment=AugmentSpec(displacement=1.0, rotate=True),
)


def losses(device: Device, precision: Precision = "float32") -> list[float]:
    """Return the loss after each step."""
    told: list[float] = []
    settings = replace(SETTINGS, precision=precision)
    network, _ = fit(
        SPEC,
        settings,
        [cells()],
        [ValidationVolume.of(cells(1))],
        device=device,
        on_progress=lambda progress: told.append(progress.loss),
    )
    assert network is not None
    assert next(network.parameters()).device == torch.device("cpu")
    return told


def test_the_same_losses_as_on_the_cpu() -> None:
    assert np.allclose(losses("cuda"), losses("cpu"), rtol=1e-3)


def test_bfloat16_is_near() -> None:
    assert np.allclose(losses("cuda", "bfloat16"), losses("cuda"), rtol=0.05)


def test_resumed_there(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 6:
            raise StoppedError

    place = tmp_path / "training.checkpoint"
    sample = [ValidationVolume.of(cells(1))]
    with pytest.raises(StoppedError):
        fit(SPEC, SETTINGS, [cells()], sample, device="cuda", checkpoint=place, on_progress=stop)
    steps: list[int] = []
    resumed, _ = fit(
        SPEC,
        SETTINGS,
        [cells()],
        sample,
        device="cuda",
        checkpoint=place,
        resume=True,
        on_progress=lambda progress: steps.append(progress.step),
    )
    straight, _ = fit(SPEC, SETTINGS, [cells()], sample, device="cuda")
    assert steps[0] == 5
    assert resumed is not None
    assert straight is not None
    pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in pairs)
