"""Ensembles: models in several files, whose predictions are averaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.errors import ModelError
from emseg_core.grid.averaging import mean_prediction, shares_of
from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.external_model import ExternalModel
from emseg_core.specs.ensemble import EnsembleSpec
from emseg_core.specs.heads import parts_of
from emseg_core.specs.numerics import Backend, Precision

if TYPE_CHECKING:
    from emseg_core.model.file import ModelFile


@dataclass(frozen=True, slots=True)
class EnsemblePlace:
    """Files of the members, in their order."""

    paths: tuple[Path, ...]

    def absolute(self) -> EnsemblePlace:
        """Return the same files by their absolute paths."""
        return EnsemblePlace(tuple(path.absolute() for path in self.paths))

    def __str__(self) -> str:
        return " + ".join(map(str, self.paths))


@dataclass(frozen=True, slots=True)
class EnsembleModel:
    """Members in memory, used like a `emseg_core.model.file.ModelFile`."""

    members: tuple[ModelFile | ExternalModel, ...]
    spec: EnsembleSpec

    @property
    def digest(self) -> str:
        """SHA-256 of the members' digests, in hexadecimal."""
        return ensemble_digest([member.digest for member in self.members])

    @property
    def card(self) -> dict[str, str]:
        """Origin of the models."""
        return ensemble_card([member.card for member in self.members])


def ensemble_digest(digests: Sequence[str]) -> str:
    """Return the SHA-256 of an ensemble, which depends on the order of its members.

    Parameters
    ----------
    digests
        Those of the members, in their order.

    Returns
    -------
    str
        The digest in hexadecimal.
    """
    return hashlib.sha256(json.dumps({"ensemble": list(digests)}).encode()).hexdigest()


def ensemble_card(cards: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the card of an ensemble: what all members say, or what each of them says.

    Parameters
    ----------
    cards
        Those of the members, in their order.

    Returns
    -------
    dict of str to str
        Origin of the models.

    Raises
    ------
    ModelError
        If two were trained on voxels of different sizes.
    """
    said = {name: [card.get(name) for card in cards] for card in cards for name in card}
    sizes = [(number, size) for number, size in enumerate(said.get("voxel_size", ()), 1) if size]
    for (first, mine), (second, theirs) in pairwise(sizes):
        if _size(mine) != _size(theirs):
            raise ModelError(
                f"model {first} was trained on voxels of {mine} (z y x), model {second} on voxels of {theirs}: give models of "
                "one voxel size"
            )
    card = {}
    for name, values in said.items():
        each = "; ".join(f"model {number}: {value}" for number, value in enumerate(values, 1) if value is not None)
        card[name] = str(values[0]) if len({*values}) == 1 else each
    if sizes:
        card["voxel_size"] = sizes[0][1]
    return card


def _size(text: str) -> tuple[float, ...] | str:
    """Return the numbers at the start of a text, and its unit."""
    try:
        return tuple(map(float, text.split()[:3]))
    except ValueError:
        return text


class EnsemblePredictor(BasePredictor):
    """Predictor of the mean of other predictors, in the order of the members; see `emseg_core.grid.averaging`.

    Parameters
    ----------
    predictors
        Those of the members, in their order.
    spec
        The ensemble.
    backend
        Library that runs those members that several libraries can run.
    precision
        Type of the activations.
    threads
        Number of threads that predict.
    """

    def __init__(
        self, predictors: Sequence[BasePredictor], spec: EnsembleSpec, backend: Backend, precision: Precision, threads: int
    ) -> None:
        libraries = dict.fromkeys(predictor.backend for predictor in predictors)
        named = sorted(libraries, key=lambda library: not library.startswith(backend))  # `Numerics.library` is the first
        hardware = dict.fromkeys(predictor.hardware for predictor in predictors)
        super().__init__(" + ".join(named), " + ".join(hardware), precision, threads)
        self.spec: EnsembleSpec = spec
        self._predictors = tuple(predictors)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the mean predictions of tiles.

        Parameters
        ----------
        tiles
            Grey values as each member wants them normalised, ``(n, members, z, y, x) float32``; or ``(n, z, y, x)``, the same
            for all.

        Returns
        -------
        NDArray
            Channels of all heads, ``(n, channels, z', y', x') float32``; NaN where a member's class is not finite.

        Raises
        ------
        MemoryShortageError
            If there is too little memory.
        """
        shape = triple(tiles.shape[-3:])
        return mean_prediction(self._members(tiles, shape), self.spec.heads)

    def _members(self, tiles: NDArray[np.float32], shape: Triple) -> Iterator[NDArray[np.float32]]:
        """Yield what each member predicts, with the heads in the order of the ensemble's."""
        output = self.spec.output_shape(shape)
        for number, (predictor, (start, length)) in enumerate(zip(self._predictors, self.spec.parts(shape), strict=True)):
            seen = tiles[:, number] if tiles.ndim == 5 else tiles
            part = seen[(slice(None), *(slice(a, a + n) for a, n in zip(start, length, strict=True)))]
            found = predictor.predict(np.ascontiguousarray(part))[(slice(None), slice(None), *(slice(n) for n in output))]
            of_head = {head.name: channels for head, channels in parts_of(predictor.spec.heads)}
            ordered = [found[:, of_head[head.name]] for head in self.spec.heads]
            yield shares_of(np.concatenate(ordered, axis=1), self.spec.heads)
