"""How a network is trained: the numbers, and the learning rate that follows from them; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Literal, get_args

from emseg.box import Triple
from emseg.errors import InputError

Precision = Literal["bfloat16", "float32"]
"""Type of the activations in training; weights and validation are float32 always."""
Optimizer = Literal["adamw", "sgd"]
"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), or stochastic gradient descent with momentum, as in the paper."""
Aim = Literal["f1", "segments"]
"""What a network is validated by: F1 voxel for voxel, or the mean of V_Rand and V_Info of the segments between membranes."""


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """How strongly crops are varied. A strength of zero leaves that variation out."""

    displacement: float = 2.0
    """Standard deviation of the random displacements, in voxels."""
    spacing: int = 16
    """Distance between the points that are displaced at random, in voxels; between them the field is smooth."""
    rotate: bool = False
    """Turn crops in the plane by any angle, not by 90 degrees alone."""
    scale: float = 0.0
    """Sizes in the plane are multiplied by ``exp(s)``, s uniform within plus and minus this."""
    blur: float = 0.0
    """Half of the crops are blurred in the plane, by a Gaussian of up to this standard deviation, in voxels."""
    gain: float = 0.3
    """Grey values are multiplied by ``exp(g)``, g uniform within plus and minus this."""
    offset: float = 0.3
    """Grey values are shifted by up to plus and minus this, in standard deviations of the volume."""
    shade: float = 0.0
    """Standard deviation of a gain and an offset that vary smoothly over the plane, as stain and focus do."""
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
    """Tiles per step; shared out among the processes of a training on several devices."""
    optimizer: Optimizer = "adamw"
    """What takes the steps."""
    rate: float = 3e-3
    """Highest learning rate: reached after the warm-up, then falling to zero along half a cosine."""
    warmup: int = 100
    """Steps in which the learning rate rises from zero."""
    decay: float = 1e-2
    """Weight decay."""
    momentum: float = 0.99
    """Momentum of ``sgd``."""
    average: float = 0.0
    """Share that the moving mean of the weights keeps at each step; the model gets that mean. 0 takes the last weights."""
    class_weights: tuple[float, ...] = (1.0, 2.0)
    """How much a voxel of each class counts in the loss."""
    border_weight: float = 0.0
    """How much more a voxel counts that separates two segments closely: w_0 of the paper, there 10."""
    border_width: float = 5.0
    """Standard deviation in voxels within which two segments are close: sigma of the paper."""
    affinity_weight: float = 0.0
    """How much it counts in the loss whether two voxels at a distance lie in one segment; predicted in training alone."""
    affinity_reach: tuple[int, ...] = (3, 9, 27)
    """These distances, in voxels along each axis that the network sees."""
    precision: Precision = "bfloat16"
    """Type of the activations in training."""
    seed: int = 0
    """Seed of everything drawn at random."""
    validate_every: int = 500
    """Steps between validations."""
    aim: Aim = "f1"
    """What is validated, and what the bias of the membrane is chosen for at the end."""
    patience: int = 0
    """Validations in a row without a better one after which the training ends, with the best weights; 0 takes all steps."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """How strongly crops are varied."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"training needs {name} >= 1, not {value}")
        for name in ("decay", "seed", "border_weight", "affinity_weight", "patience"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"training needs {name} >= 0, not {value}")
        for name in ("rate", "border_width"):
            if not (value := getattr(self, name)) > 0:
                raise InputError(f"training needs {name} > 0, not {value}")
        for name in ("momentum", "average"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise InputError(f"training needs {name} from 0 to below 1, not {value}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"the warm-up takes {self.warmup} of {self.steps} steps: make it shorter, or train for longer")
        if min(self.output) < 1 or len(self.output) != 3:
            raise InputError(f"the training output must be three positive lengths (z, y, x), not {self.output}")
        if not all(weight > 0 for weight in self.class_weights):
            raise InputError(f"class weights must be positive, not {self.class_weights}")
        if not all(reach > 0 for reach in self.affinity_reach):
            raise InputError(f"affinities must reach at least 1 voxel, not {self.affinity_reach}")
        for name, kind in (("precision", Precision), ("optimizer", Optimizer), ("aim", Aim)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise InputError(f"the {name} must be one of {get_args(kind)}, not {value!r}")

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
    score: float | None
    """The latest validation, by the training's aim; None before the first."""
    rate: float
    """Learning rate of the step."""
    tiles_per_second: float
    """Since the training began, or was resumed."""
    waiting: float
    """Share of that time in which no crop was ready."""
    seconds_left: float
    """Estimate from the time of the steps so far, in seconds."""

    def __str__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.4f}"
        return (
            f"step {self.step} of {self.steps}, loss {self.loss:.4f}{score}, {self.tiles_per_second:.2f} tiles/s, "
            f"{100 * self.waiting:.0f} % of the time waiting for them, {timedelta(seconds=round(self.seconds_left))} left"
        )


def to_json(spec: FitSpec) -> dict[str, Any]:
    """The fields as JSON values."""
    data = {option.name: getattr(spec, option.name) for option in fields(spec)}
    data["augment"] = {option.name: getattr(spec.augment, option.name) for option in fields(spec.augment)}
    return data
