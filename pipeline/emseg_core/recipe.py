"""The recipe of a run: everything that decides its output bytes, and nothing else.

It is stored in the output's attributes when the output is created. A later run on the same output must have the same
recipe. The number of workers, where they run and the order of blocks are *placement*, and may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from emseg_core.box import Triple, triple
from emseg_core.grid.plan import Plan
from emseg_core.normalise import Normalisation
from emseg_core.specs.heads import Head, StoredImage, chosen_heads, images_of
from emseg_core.specs.numerics import Accuracy, Numerics
from emseg_core.specs.volume import VolumeSpec


@dataclass(frozen=True, slots=True)
class Empty:
    """Declaration that blocks which see a single grey value are not predicted but given one class."""

    value: float
    """The grey value."""
    label: int
    """The class, by its position among the classes, from 0."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Volume, model, normalisation, geometry and numerics of a run."""

    volume: VolumeSpec
    """Description of the volume."""
    volume_digest: str
    """SHA-256 of the raw voxels on which the normalisation was measured; never depends on a path."""
    model_digest: str
    """SHA-256 of the model file."""
    normalisation: Normalisation
    """Mean and deviation of grey values."""
    plan: Plan
    """How the volume is divided into blocks and tiles."""
    numerics: Numerics
    """What decides the last bits of a prediction."""
    probabilities: bool
    """Whether quantised probabilities are stored beside the labels."""
    accuracy: Accuracy | None = None
    """Accuracy of the run's precision relative to float32; None for a run in float32."""
    tta: bool = False
    """Whether probabilities are means over the symmetries of the image plane (test-time augmentation)."""
    steps: tuple[Triple, ...] = ()
    """Step (z, y, x) of each coarser pyramid level, in voxels of the next finer level."""
    mask: str | None = None
    """SHA-256 of the array of blocks that a mask leaves out; None without a mask."""
    empty: Empty | None = None
    """Declaration for blocks that see a single grey value; None if they are predicted like all others."""
    heads: tuple[str, ...] = ()
    """Names of the heads that are stored, in the order of writing; empty for a network of classes alone."""
    predictor: str | None = None
    """Name and version of the user's own predictor class; None for a model in a file."""

    @property
    def stored_heads(self) -> tuple[Head, ...]:
        """The heads that are stored."""
        return chosen_heads(self.plan.model.heads, self.heads or None)

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images that are stored, in the order of writing."""
        return images_of(self.stored_heads, self.probabilities)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the recipe, in hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Recipe) -> Iterator[str]:
        """List the fields in which another recipe differs.

        Parameters
        ----------
        other
            The other recipe.

        Yields
        ------
        str
            Name of a field with this recipe's value first, such as ``plan.tile was [..], now [..]``.
        """
        mine, theirs = (
            {name: json.dumps(value) for name, value in flattened({**recipe.to_json(), "tta": recipe.tta})}
            for recipe in (self, other)
        )
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                yield f"{name} was {_short(mine.get(name))}, now {_short(theirs.get(name))}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Optional fields are written only where they are used, so that fingerprints of older runs stay the same.
        """
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
            **({"heads": list(self.heads)} if self.heads else {}),
            **({} if self.predictor is None else {"predictor": self.predictor}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the recipe that `to_json` wrote."""
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
            heads=tuple(map(str, data.get("heads", ()))),
            predictor=data.get("predictor"),
        )


def flattened(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over nested settings by their full names, such as ``plan.model.width``.

    Yields
    ------
    tuple of str and Any
        Full name and value.
    """
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(text: str | None) -> str:
    return "not set" if text is None else text if len(text) <= 60 else f"{text[:57]}..."
