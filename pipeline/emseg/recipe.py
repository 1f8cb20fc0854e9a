"""The recipe of a run: everything that decides its output bytes, and nothing that does not.

It is stored in the output's attributes when the output is created. A later run on the same output must have the same
recipe; how many workers there are, where, and in what order blocks are done is *placement*, and free to change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from emseg.box import Triple, triple
from emseg.grid.plan import Plan
from emseg.normalise import Normalisation
from emseg.specs.numerics import Accuracy, Numerics
from emseg.specs.volume import VolumeSpec


@dataclass(frozen=True, slots=True)
class Empty:
    """A declaration: where all that a block sees has one value, it is not predicted but gets one class."""

    value: float
    """In grey values."""
    label: int
    """The class, in the order of the label values from 0."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Volume, model, normalisation, geometry and numerics of a run."""

    volume: VolumeSpec
    volume_digest: str
    """SHA-256 of the raw voxels that the normalisation was measured on; never a path."""
    model_digest: str
    """SHA-256 of the model file."""
    normalisation: Normalisation
    plan: Plan
    numerics: Numerics
    probabilities: bool
    """Whether quantised probabilities are stored beside the labels."""
    accuracy: Accuracy | None = None
    """How far the run's low precision is from float32; None if it computes in that."""
    tta: bool = False
    """Test-time augmentation: whether probabilities are means over the symmetries of the image plane."""
    steps: tuple[Triple, ...] = ()
    """Step (z, y, x) of each coarser level, in voxels of the next finer one."""
    mask: str | None = None
    """SHA-256 of which blocks a mask leaves out; None without one."""
    empty: Empty | None = None
    """What is declared of blocks that see a single value; None if these are predicted as all others."""
    predictor: str | None = None
    """Name and version of the class of the user's own that predicted; None for a model in a file."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Recipe) -> Iterator[str]:
        """Each item in which another recipe differs, with this recipe's value first: ``plan.tile: [..] / [..]``."""
        mine, theirs = (dict(_flatten({**recipe.to_json(), "tta": recipe.tta})) for recipe in (self, other))
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                yield f"{name}: {_short(mine.get(name))} / {_short(theirs.get(name))}"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; some only where they are used: older fingerprints hold."""
        return {
            "volume": self.volume.to_json(),
            "volume_digest": self.volume_digest,
            "model_digest": self.model_digest,
            "normalisation": self.normalisation.to_json(),
            "plan": self.plan.to_json(),
            "numerics": self.numerics.to_json(),
            "probabilities": self.probabilities,
            **({} if self.accuracy is None else {"accuracy": asdict(self.accuracy)}),
            **({"tta": True} if self.tta else {}),
            **({"levels": [list(step) for step in self.steps]} if self.steps else {}),
            **({} if self.mask is None else {"mask": self.mask}),
            **({} if self.empty is None else {"empty": asdict(self.empty)}),
            **({} if self.predictor is None else {"predictor": self.predictor}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that `to_json` wrote."""
        return cls(
            volume=VolumeSpec.from_json(data["volume"]),
            volume_digest=str(data["volume_digest"]),
            model_digest=str(data["model_digest"]),
            normalisation=Normalisation.from_json(data["normalisation"]),
            plan=Plan.from_json(data["plan"]),
            numerics=Numerics.from_json(data["numerics"]),
            probabilities=bool(data["probabilities"]),
            accuracy=Accuracy.from_json(data["accuracy"]) if "accuracy" in data else None,
            tta=bool(data.get("tta", False)),
            steps=tuple(triple(step) for step in data.get("levels", ())),
            mask=data.get("mask"),
            empty=Empty(float(data["empty"]["value"]), int(data["empty"]["label"])) if "empty" in data else None,
            predictor=data.get("predictor"),
        )


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value)


def _short(text: str | None) -> str:
    return "nothing" if text is None else text if len(text) <= 60 else f"{text[:57]}..."
