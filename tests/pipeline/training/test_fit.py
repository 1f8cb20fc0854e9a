"""The training loop on a made-up volume and a tiny network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emseg.errors import InputError
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.training.fit import Sample, fit
from emseg.training.spec import AugmentSpec, FitSpec, Progress
from emseg.truth import membrane_truth

SPEC = ModelSpec.unet(width=6, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2), dropout=0.2)
SETTINGS = FitSpec(steps=40, output=(8, 8, 8), warmup=4, rate=5e-3, validate_every=10, precision="float32", seed=3)


@pytest.fixture(scope="module")
def sample() -> Sample:
    """Dark walls between bright cells."""
    places = np.indices((24, 24, 24)) // 12
    ids = places[0] * 4 + places[1] * 2 + places[2] + 1
    truth = membrane_truth(ids)
    raw = 1.0 - 2.0 * (truth == 1) + np.random.default_rng(0).normal(0, 0.3, ids.shape)
    return Sample(raw.astype(np.float32), truth)


def same(one: UNet, other: UNet) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns(sample: Sample, precision: str) -> None:
    reports: list[Progress] = []
    settings = replace(SETTINGS, steps=80, precision=precision)
    network, f1 = fit(SPEC, settings, sample, sample, on_progress=reports.append)
    assert [report.step for report in reports] == list(range(1, 81))
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert reports[0].f1 is None
    assert reports[-1].f1 is not None
    assert f1 >= reports[-1].f1  # the bias was chosen for it
    assert f1 > 0.8
    assert reports[-1].seconds_left == 0
    assert not network.training
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_planar_network_learns_too(sample: Sample) -> None:
    spec = ModelSpec.unet(width=4, depth=1)
    settings = replace(SETTINGS, output=(1, 16, 16), precision="bfloat16")
    reports: list[Progress] = []
    fit(spec, settings, sample, sample, on_progress=reports.append)
    assert reports[-1].loss < reports[0].loss


def test_same_seed_same_weights(sample: Sample) -> None:
    short = replace(SETTINGS, steps=6)
    torch.manual_seed(1)
    one, _ = fit(SPEC, short, sample, sample)
    torch.manual_seed(2)
    two, _ = fit(SPEC, short, sample, sample)
    other, _ = fit(SPEC, replace(short, seed=4), sample, sample)
    assert same(one, two)
    assert not same(one, other)


def test_it_leaves_the_global_generator_alone(sample: Sample) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(SPEC, replace(SETTINGS, steps=5), sample, sample)
    assert torch.equal(torch.rand(3), expected)


class StoppedError(Exception):
    """Stands for whatever ends a training early."""


def test_resumed_is_as_if_never_stopped(sample: Sample, tmp_path: Path) -> None:
    straight, f1 = fit(SPEC, SETTINGS, sample, sample)
    checkpoint = tmp_path / "training.safetensors"
    steps: list[int] = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 25:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(SPEC, SETTINGS, sample, sample, checkpoint=checkpoint, on_progress=stop)
    steps.clear()
    resumed, again = fit(
        SPEC, SETTINGS, sample, sample, checkpoint=checkpoint, resume=True, on_progress=lambda p: steps.append(p.step)
    )
    assert steps[0] == 21
    assert same(straight, resumed)
    assert f1 == again
    finished, once_more = fit(SPEC, SETTINGS, sample, sample, checkpoint=checkpoint, resume=True)
    assert same(finished, resumed)
    assert once_more == f1


def test_without_resume_it_starts_anew(sample: Sample, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.safetensors"
    fit(SPEC, SETTINGS, sample, sample, checkpoint=checkpoint)
    steps: list[int] = []
    fit(SPEC, SETTINGS, sample, sample, checkpoint=checkpoint, on_progress=lambda p: steps.append(p.step))
    assert steps[0] == 1


def test_a_checkpoint_of_another_training_is_refused(sample: Sample, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.safetensors"
    short = replace(SETTINGS, steps=5)
    fit(SPEC, short, sample, sample, checkpoint=checkpoint, identity={"data": "a"})

    def refused(spec: ModelSpec, settings: FitSpec, identity: dict[str, str]) -> str:
        with pytest.raises(InputError) as caught:
            fit(spec, settings, sample, sample, checkpoint=checkpoint, resume=True, identity=identity)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "data a is now b" in refused(SPEC, short, {"data": "b"})
    assert "fit.rate 0.005 is now 0.02;" in refused(SPEC, replace(short, rate=2e-2), {"data": "a"})
    assert "fit.augment.noise 0.1 is now 0;" in refused(SPEC, replace(short, augment=AugmentSpec(noise=0)), {"data": "a"})
    assert "model.width 6 is now 5;" in refused(replace(SPEC, width=5), short, {"data": "a"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_checkpoint_is_refused(sample: Sample, tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "training.safetensors"
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=r"not a checkpoint.*without --resume"):
        fit(SPEC, SETTINGS, sample, sample, checkpoint=checkpoint, resume=True)
