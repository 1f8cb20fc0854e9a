"""Test the training loop on a made-up volume and a tiny network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from trainings import cells

from emseg_core.errors import InputError
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from emseg_core.training import fit as module
from emseg_core.training.network import MovingAverage
from emseg_core.training.ranks import Ranks
from emseg_core.training.spec import AugmentSpec, FitSpec, Progress
from emseg_core.training.truth_reader import ValidationVolume

SPEC = ModelSpec.unet(width=6, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2), dropout=0.2)
SETTINGS = FitSpec(
    steps=40,
    output=(8, 8, 8),
    warmup=4,
    rate=5e-3,
    validate_every=10,
    precision="float32",
    seed=3,
    average=0.9,
    border_weight=2.0,
    affinity_weight=0.5,
    affinity_reach=(1, 3),
)
CELLS = cells()


def fit(spec: ModelSpec, settings: FitSpec, **options: Any) -> tuple[UNet, float]:
    """Train on the volume that is used for validation."""
    network, score = module.fit(spec, settings, [CELLS], [ValidationVolume.of(CELLS)], **options)
    assert network is not None
    return network, score


def same(one: UNet, other: UNet) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns(precision: Literal["bfloat16", "float32"]) -> None:
    reports: list[Progress] = []
    settings = replace(SETTINGS, steps=80, precision=precision)
    network, f1 = fit(SPEC, settings, on_progress=reports.append)
    assert [report.step for report in reports] == list(range(1, 81))
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert reports[0].score is None
    assert reports[-1].score is not None
    assert f1 >= reports[-1].score  # the bias was chosen for it
    assert f1 > 0.8
    assert reports[-1].seconds_left == 0
    assert not network.training
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_planar_network_learns_too() -> None:
    spec = ModelSpec.unet(width=4, depth=1)
    settings = replace(SETTINGS, output=(1, 16, 16), precision="bfloat16")
    reports: list[Progress] = []
    fit(spec, settings, on_progress=reports.append)
    assert reports[-1].loss < reports[0].loss


def test_same_seed_same_weights() -> None:
    short = replace(SETTINGS, steps=6)
    torch.manual_seed(1)
    one, _ = fit(SPEC, short)
    torch.manual_seed(2)
    two, _ = fit(SPEC, short)
    other, _ = fit(SPEC, replace(short, seed=4))
    assert same(one, two)
    assert not same(one, other)


def test_it_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(SPEC, replace(SETTINGS, steps=5))
    assert torch.equal(torch.rand(3), expected)


class StoppedError(Exception):
    """Represents anything that ends a training early."""


def test_resumed_is_as_if_never_stopped(tmp_path: Path) -> None:
    straight, f1 = fit(SPEC, SETTINGS)
    checkpoint = tmp_path / "training.safetensors"
    steps: list[int] = []

    def stop(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 25:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(SPEC, SETTINGS, checkpoint=checkpoint, on_progress=stop)
    steps.clear()
    resumed, again = fit(SPEC, SETTINGS, checkpoint=checkpoint, resume=True, on_progress=lambda p: steps.append(p.step))
    assert steps[0] == 21
    assert same(straight, resumed)
    assert f1 == again
    finished, once_more = fit(SPEC, SETTINGS, checkpoint=checkpoint, resume=True)
    assert same(finished, resumed)
    assert once_more == f1


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.safetensors"
    fit(SPEC, SETTINGS, checkpoint=checkpoint)
    steps: list[int] = []
    fit(SPEC, SETTINGS, checkpoint=checkpoint, on_progress=lambda p: steps.append(p.step))
    assert steps[0] == 1


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.safetensors"
    short = replace(SETTINGS, steps=5)
    fit(SPEC, short, checkpoint=checkpoint, identity={"data": "a"})

    def refused(spec: ModelSpec, settings: FitSpec, identity: dict[str, str]) -> str:
        with pytest.raises(InputError) as caught:
            fit(spec, settings, checkpoint=checkpoint, resume=True, identity=identity)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "(data was a, now b): " in refused(SPEC, short, {"data": "b"})
    assert "(fit.rate was 0.005, now 0.02): " in refused(SPEC, replace(short, rate=2e-2), {"data": "a"})
    assert "(fit.augment.noise was 0.1, now 0): " in refused(SPEC, replace(short, augment=AugmentSpec(noise=0)), {"data": "a"})
    assert "(model.width was 6, now 5): " in refused(replace(SPEC, width=5), short, {"data": "a"})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    checkpoint = tmp_path / "training.safetensors"
    checkpoint.write_bytes(content)
    with pytest.raises(InputError, match=r"not a training checkpoint.*without --resume"):
        fit(SPEC, SETTINGS, checkpoint=checkpoint, resume=True)


def test_the_paper_s_optimiser_is_resumed_too(tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer="sgd", momentum=0.9, rate=1e-2, average=0.0, steps=12, validate_every=6)
    straight, _ = fit(SPEC, settings)
    checkpoint = tmp_path / "training.safetensors"

    def stop(progress: Progress) -> None:
        if progress.step == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(SPEC, settings, checkpoint=checkpoint, on_progress=stop)
    resumed, _ = fit(SPEC, settings, checkpoint=checkpoint, resume=True)
    assert same(straight, resumed)


def test_it_ends_early_with_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    monkeypatch.setattr(module, "score_labels", lambda *_: next(scores))
    settings = replace(SETTINGS, validate_every=2, patience=2)
    steps: list[int] = []
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def note(progress: Progress) -> None:
        steps.append(progress.step)

    class Noting(MovingAverage):
        def network(self, spec: ModelSpec) -> UNet:
            kept[len(steps) + 1] = {name: value.clone() for name, value in self.weights.items()}
            return super().network(spec)

    monkeypatch.setattr(module, "MovingAverage", Noting)
    network, _ = fit(SPEC, settings, on_progress=note)
    assert steps[-1] == 8  # the fourth validation was the second without an improvement
    trained = network.state_dict()
    assert all(torch.equal(trained[name], value) for name, value in kept[4].items() if name != "head.bias")
    assert not torch.equal(trained["head.weight"], kept[8]["head.weight"])


def test_the_mean_of_the_weights_is_what_is_trained() -> None:
    last, _ = fit(SPEC, replace(SETTINGS, average=0.0, steps=10))
    mean, _ = fit(SPEC, replace(SETTINGS, average=0.9, steps=10))
    assert not same(last, mean)


def test_a_batch_is_shared_evenly() -> None:
    with pytest.raises(InputError, match=r"a batch of 3 tiles .* 2 processes"):
        Ranks(1, 2).share(3)
    assert [list(Ranks(rank, 2).share(4)) for rank in range(2)] == [[0, 2], [1, 3]]


def test_processes_that_do_not_see_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "broadcast", lambda self, value: value + 7)
    with pytest.raises(InputError, match=r"resumes from step 7, this one from step 0: put .*training.safetensors where all"):
        fit(SPEC, SETTINGS, checkpoint=tmp_path / "training.safetensors", resume=True)
