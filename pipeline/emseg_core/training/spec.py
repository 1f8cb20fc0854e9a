"""Settings of a training, its learning rate, and its progress; without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args

from emseg_core.box import Triple
from emseg_core.errors import InputError

Precision = Literal["bfloat16", "float32"]
"""Type of the activations in training; weights and validation are always float32."""
Optimizer = Literal["adamw", "sgd"]
"""AdamW (Loshchilov and Hutter, arXiv:1711.05101), or stochastic gradient descent with momentum, as in the paper."""
Aim = Literal["f1", "segments"]
"""Validation score: F1 over voxels, or the mean of V_Rand and V_Info of the segments between membranes."""
NOTABLE_WAITING = 0.1
"""Fraction of the time spent waiting for crops above which it is shown."""


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """Strengths of the augmentations; 0 turns one off.

    Raises
    ------
    InputError
        If a strength is negative, or the spacing is below 1 voxel.
    """

    displacement: float = 2.0
    """Standard deviation of the random displacements, in voxels."""
    spacing: int = 16
    """Distance between the points that are displaced at random, in voxels; between them the field is smooth."""
    rotate: bool = False
    """Rotate crops in the plane by any angle, not only by multiples of 90 degrees."""
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
    """Maximum standard deviation of the noise added to each voxel, in standard deviations of the volume."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise InputError(f"the augmentation's {name} is {value}, but a strength cannot be negative: use 0 or more")
        if self.spacing < 1:
            raise InputError(
                f"the augmentation's spacing is {self.spacing}, but points are at least 1 voxel apart: use 1 or more"
            )


@dataclass(frozen=True, slots=True)
class FitSpec:
    """Settings of a training; on the same machine, equal settings give equal weights.

    Raises
    ------
    InputError
        If a field is out of range.
    """

    steps: int
    """Number of optimiser steps."""
    output: Triple = (44, 44, 44)
    """Shape (z, y, x) in voxels of the network's output for each tile; rounded up to the next possible one."""
    batch: int = 1
    """Tiles per step; divided among the processes of a training on several devices."""
    optimizer: Optimizer = "adamw"
    """Optimiser."""
    rate: float = 3e-3
    """Highest learning rate: reached after the warm-up, then decreasing to zero along half a cosine."""
    warmup: int = 100
    """Number of steps in which the learning rate rises from zero."""
    decay: float = 1e-2
    """Weight decay."""
    momentum: float = 0.99
    """Momentum of ``sgd``."""
    average: float = 0.0
    """Decay of the moving average of the weights, which the model gets; 0 uses the last weights."""
    class_weights: tuple[float, ...] = (1.0, 2.0)
    """Weight of a voxel of each class in the loss."""
    border_weight: float = 0.0
    """Additional weight of voxels on narrow borders between segments: w_0 of the paper, where it is 10."""
    border_width: float = 5.0
    """Width of such a border in voxels, as a standard deviation: sigma of the paper."""
    affinity_weight: float = 0.0
    """Weight in the loss of affinities, i.e. whether two distant voxels lie in the same segment; predicted only in training."""
    affinity_reach: tuple[int, ...] = (3, 9, 27)
    """Distances of these voxels along each axis, in voxels; z is left out for a planar network."""
    precision: Precision = "bfloat16"
    """Type of the activations in training."""
    seed: int = 0
    """Seed of all random choices."""
    validate_every: int = 500
    """Number of steps between validations."""
    aim: Aim = "f1"
    """Score of validations, for which the biases are also optimised at the end."""
    patience: int = 0
    """Number of consecutive validations without improvement after which training stops with the best weights; 0 never stops."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """Strengths of the augmentations."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch", "validate_every"), 1)
        least |= dict.fromkeys(("decay", "seed", "border_weight", "affinity_weight", "patience"), 0)
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                raise InputError(f"training needs {name} >= {bound}, not {value}")
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
        """Compute the learning rate of a step: a linear warm-up, then half a cosine to zero.

        Parameters
        ----------
        step
            Number of the step, counted from 0.

        Returns
        -------
        float
            The learning rate.

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
    """Progress of a training."""

    step: int
    """Number of steps done."""
    steps: int
    """Total number of steps."""
    loss: float
    """Exponential moving average of the loss."""
    score: float | None
    """Score of the latest validation, by the training's aim; None before the first."""
    rate: float
    """Learning rate of the latest step."""
    tiles_per_second: float
    """Average since the training was started or resumed."""
    waiting: float
    """Fraction of that time spent waiting for crops."""
    seconds_left: float
    """Estimated remaining time in seconds."""

    def __str__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.4f}"
        waiting = f" ({100 * self.waiting:.0f} % of the time waiting for data)" if self.waiting > NOTABLE_WAITING else ""
        return (
            f"step {self.step} of {self.steps}, loss {self.loss:.4f}{score}, {self.tiles_per_second:.2f} tiles/s{waiting}, "
            f"{timedelta(seconds=round(self.seconds_left))} left"
        )


def to_json(spec: FitSpec) -> dict[str, Any]:
    """Convert settings to JSON values.

    Returns
    -------
    dict of str to Any
        Values by the names of the fields.
    """
    return asdict(spec)
