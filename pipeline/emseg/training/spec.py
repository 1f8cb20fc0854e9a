"""How a network is trained: the numbers, and the learning rate that follows from them; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from emseg.box import Triple
from emseg.errors import InputError

Precision = Literal["bfloat16", "float32"]
"""Type of the activations in training; weights and validation are float32 always."""


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """How strongly crops are varied. A strength of zero leaves that variation out."""

    displacement: float = 2.0
    """Standard deviation of the random displacements, in voxels."""
    spacing: int = 16
    """Distance between the points that are displaced at random, in voxels; between them the field is smooth."""
    gain: float = 0.3
    """Grey values are multiplied by ``exp(g)``, g uniform within plus and minus this."""
    offset: float = 0.3
    """Grey values are shifted by up to plus and minus this, in standard deviations of the volume."""
    noise: float = 0.1
    """Most standard deviation of the noise added to each voxel, in standard deviations of the volume."""

    def __post_init__(self) -> None:
        for option in fields(self):
            if (value := getattr(self, option.name)) < 0:
                raise InputError(
                    f"the augmentation's {option.name} is {value}, but a strength cannot be negative: use 0 or more"
                )
        if self.spacing < 1:
            raise InputError(f"the augmentation's spacing is {self.spacing}, but points are at least 1 voxel apart")


@dataclass(frozen=True, slots=True)
class FitSpec:
    """How a network is trained; the same numbers and the same machine give the same weights.

    Raises
    ------
    InputError
        If a field is out of range.
    """

    steps: int
    """Number of optimiser steps."""
    output: Triple = (44, 44, 44)
    """Shape (z, y, x) in voxels that the network makes of each tile; rounded up to the next that fits."""
    batch: int = 1
    """Tiles per step."""
    rate: float = 3e-3
    """Highest learning rate: reached after the warm-up, then falling to zero along half a cosine."""
    warmup: int = 100
    """Steps in which the learning rate rises from zero."""
    decay: float = 1e-2
    """Weight decay of AdamW (Loshchilov and Hutter, arXiv:1711.05101)."""
    class_weights: tuple[float, ...] = (1.0, 2.0)
    """How much a voxel of each class counts in the loss."""
    precision: Precision = "bfloat16"
    """Type of the activations in training."""
    seed: int = 0
    """Seed of everything drawn at random."""
    validate_every: int = 500
    """Steps between validations."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """How strongly crops are varied."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"training needs {name} >= 1, not {value}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"the warm-up takes {self.warmup} of {self.steps} steps: make it shorter, or train for longer")
        if not self.rate > 0 or self.decay < 0 or self.seed < 0:
            raise InputError(
                f"training needs rate > 0, decay >= 0 and seed >= 0, not {self.rate}, {self.decay} and {self.seed}"
            )
        if min(self.output) < 1 or len(self.output) != 3:
            raise InputError(f"the training output must be three positive lengths (z, y, x), not {self.output}")
        if not all(weight > 0 for weight in self.class_weights):
            raise InputError(f"class weights must be positive, not {self.class_weights}")
        if self.precision not in get_args(Precision):
            raise InputError(f"the precision must be one of {get_args(Precision)}, not {self.precision!r}")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear warm-up, then half a cosine to zero.

        Examples
        --------
        >>> spec = FitSpec(steps=10, warmup=2, rate=1.0)
        >>> [round(spec.rate_at(step), 2) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]
        """
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    """Mean loss over the latest steps, the recent ones counting more."""
    f1: float | None
    """F1 of the membrane at the latest validation; None before the first."""
    seconds_left: float
    """Estimate from the time of the steps so far, in seconds."""


def to_json(spec: FitSpec) -> dict[str, Any]:
    """The fields as JSON values."""
    data = {option.name: getattr(spec, option.name) for option in fields(spec)}
    data["augment"] = {option.name: getattr(spec.augment, option.name) for option in fields(spec.augment)}
    return data
