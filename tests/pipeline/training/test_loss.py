"""The weighted cross-entropy against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emseg.training.loss import weighted_cross_entropy

WEIGHTS = torch.tensor([1.0, 3.0])


def some() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32))
    return logits, torch.from_numpy(rng.choice([0, 1, 255], (2, 3, 4, 5)).astype(np.uint8))


def test_against_the_definition() -> None:
    logits, truth = some()
    total = weight = 0.0
    for index in np.ndindex(*truth.shape):
        label = int(truth[index])
        if label != 255:
            scores = logits[(index[0], slice(None), *index[1:])].double()
            total -= float(WEIGHTS[label]) * float(torch.log_softmax(scores, 0)[label])
            weight += float(WEIGHTS[label])
    assert float(weighted_cross_entropy(logits, truth, WEIGHTS)) == pytest.approx(total / weight, rel=1e-5)


def test_ignored_voxels_have_no_part() -> None:
    logits, truth = some()
    changed = logits + 100 * (truth == 255)[:, None] * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    assert torch.equal(weighted_cross_entropy(logits, truth, WEIGHTS), weighted_cross_entropy(changed, truth, WEIGHTS))


def test_nothing_labelled_is_zero_with_zero_gradients() -> None:
    logits, truth = some()
    logits.requires_grad_()
    loss = weighted_cross_entropy(logits, torch.full_like(truth, 255), WEIGHTS)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits, truth = some()
    assert weighted_cross_entropy(logits.bfloat16(), truth, WEIGHTS).dtype == torch.float32
