"""Test losses against their definitions, and gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emseg_core.specs.model import ModelSpec
from emseg_core.training.loss import affinity_loss, affinity_offsets, binary_cross_entropy, weighted_cross_entropy

WEIGHTS = torch.tensor([1.0, 3.0])
OFFSETS = [(0, 1, 0), (1, 0, 2), (0, 9, 0)]
"""Offsets, the last of which is longer than the tile."""


def some() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32))
    return logits, torch.from_numpy(rng.choice([0, 1, 255], (2, 3, 4, 5)).astype(np.uint8))


def pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 3, 3, 4, 5)).astype(np.float32))
    segments = torch.from_numpy(rng.integers(0, 3, (2, 3, 4, 5)).astype(np.int32))
    return logits, some()[1], segments


@pytest.mark.parametrize("border", [False, True])
def test_cross_entropy_against_the_definition(border: bool) -> None:
    logits, truth = some()
    more = torch.from_numpy(np.random.default_rng(2).uniform(0, 10, truth.shape).astype(np.float32)) if border else None
    total = weight = 0.0
    for index in np.ndindex(*truth.shape):
        label = int(truth[index])
        if label != 255:
            scores = logits[(index[0], slice(None), *index[1:])].double()
            counts = float(WEIGHTS[label]) + (float(more[index]) if more is not None else 0)
            total -= counts * float(torch.log_softmax(scores, 0)[label])
            weight += counts
    found = weighted_cross_entropy(logits, truth, WEIGHTS, more)
    assert float(found.mean) == pytest.approx(total / weight, rel=1e-5)
    assert float(found.counted) == pytest.approx(weight, rel=1e-5)


def test_affinities_against_the_definition() -> None:
    logits, truth, segments = pairs()
    total, counted = 0.0, 0
    for channel, offset in enumerate(OFFSETS):
        for n, *far in np.ndindex(*truth.shape):
            near = [place - shift for place, shift in zip(far, offset, strict=True)]
            if min(near) < 0 or truth[(n, *far)] == 255 or truth[(n, *near)] == 255:
                continue
            together = segments[(n, *far)] == segments[(n, *near)] != 0
            logit = float(logits[(n, channel, *far)])
            total += np.log1p(np.exp(-logit if together else logit))
            counted += 1
    found = affinity_loss(logits, truth, segments, OFFSETS)
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.counted) == counted


def test_halves_of_a_batch_add_up() -> None:
    logits, truth = some()
    whole = weighted_cross_entropy(logits, truth, WEIGHTS)
    parts = [weighted_cross_entropy(logits[n : n + 1], truth[n : n + 1], WEIGHTS) for n in range(2)]
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-6)
    assert float(sum(part.counted for part in parts)) == float(whole.counted)


def test_gradients_against_differences() -> None:
    logits, truth = (tensor[:1, ..., :2, :3] for tensor in some())
    more = torch.rand(truth.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = logits.double().requires_grad_()

    def cross(values: torch.Tensor) -> torch.Tensor:
        return weighted_cross_entropy(values, truth, WEIGHTS.double(), more).mean

    assert torch.autograd.gradcheck(cross, exact)
    found, known, segments = (tensor[:1, ..., :2, :3] for tensor in pairs())

    def affinities(values: torch.Tensor) -> torch.Tensor:
        return affinity_loss(values, known, segments, OFFSETS).total

    assert torch.autograd.gradcheck(affinities, found.double().requires_grad_())


def test_ignored_voxels_have_no_part() -> None:
    logits, truth = some()
    changed = logits + 100 * (truth == 255)[:, None] * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    one, other = (weighted_cross_entropy(each, truth, WEIGHTS).mean for each in (logits, changed))
    assert torch.equal(one, other)


def test_nothing_labelled_is_zero_with_zero_gradients() -> None:
    logits, truth = some()
    logits.requires_grad_()
    loss = weighted_cross_entropy(logits, torch.full_like(truth, 255), WEIGHTS).mean
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, truth = some()
    assert weighted_cross_entropy(logits.bfloat16(), truth, WEIGHTS).total.dtype == torch.float32


def test_offsets_reach_along_the_axes_that_are_seen() -> None:
    cubic = ModelSpec.unet(width=1, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
    assert affinity_offsets(cubic, (2, 5)) == [(2, 0, 0), (0, 2, 0), (0, 0, 2), (5, 0, 0), (0, 5, 0), (0, 0, 5)]


def test_binary_cross_entropy_against_the_definition() -> None:
    logits, truth = some()
    truth = torch.stack([truth, truth.flip(3)], dim=1)
    found = binary_cross_entropy(logits, truth)
    likely = logits.double().sigmoid()
    losses = [-(likely if value else 1 - likely).log()[truth == value].sum() for value in (0, 1)]
    assert float(found.total) == pytest.approx(float(losses[0] + losses[1]), rel=1e-5)
    assert int(found.counted) == int((truth != 255).sum())
