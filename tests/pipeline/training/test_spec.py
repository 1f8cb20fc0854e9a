"""Test that invalid training settings are rejected in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emseg_core.errors import InputError
from emseg_core.training.spec import AugmentSpec, FitSpec, to_json


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0, "warmup": 0}, "steps >= 1"),
        ({"batch": 0}, "batch >= 1"),
        ({"validate_every": 0}, "validate_every >= 1"),
        ({"warmup": 10}, "10 of 10"),
        ({"rate": 0.0}, "rate > 0"),
        ({"rate": float("nan")}, "rate > 0"),
        ({"decay": -1.0}, "decay"),
        ({"seed": -1}, "seed"),
        ({"output": (0, 1, 1)}, "(0, 1, 1)"),
        ({"class_weights": (1.0, 0.0)}, "class weights"),
        ({"precision": "float16"}, "float16"),
        ({"optimizer": "adam"}, "optimizer must be one of ('adamw', 'sgd'), not 'adam'"),
        ({"aim": "dice"}, "dice"),
        ({"momentum": 1.0}, "momentum from 0 to below 1"),
        ({"average": -0.1}, "average from 0 to below 1"),
        ({"border_weight": -1.0}, "border_weight >= 0"),
        ({"border_width": 0.0}, "border_width > 0"),
        ({"affinity_weight": -1.0}, "affinity_weight >= 0"),
        ({"affinity_reach": (3, 0)}, "at least 1 voxel"),
        ({"patience": -1}, "patience >= 0"),
    ],
)
def test_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError) as caught:
        FitSpec(**{"steps": 10, "warmup": 2, **options})
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"noise": -0.1}, {"spacing": 0}, {"displacement": -1.0}])
def test_augmentation_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        AugmentSpec(**options)


def test_rate_warms_up_and_ends_near_zero() -> None:
    spec = FitSpec(steps=200, warmup=20, rate=0.5)
    rates = [spec.rate_at(step) for step in range(200)]
    assert max(rates) == rates[19] == rates[20] == 0.5
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 1e-3


def test_json() -> None:
    data = json.loads(json.dumps(to_json(FitSpec(steps=10, warmup=1, augment=AugmentSpec(noise=0.5)))))
    assert data["steps"] == 10
    assert data["augment"]["noise"] == 0.5
