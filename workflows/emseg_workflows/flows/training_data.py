"""The volumes that a training's configuration names, checked before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emseg.box import Box
from emseg.errors import InputError, VolumeError
from emseg.normalise import refuse_nonfinite, survey
from emseg.ports import VolumeReader
from emseg.specs.volume import DTYPES, TRUTH_DTYPES
from emseg.store.source import open_sections
from emseg.training.source import ClassValues, InstanceIds, Kind, Source
from emseg_workflows.config import DataConfig, Part, TrainConfig, data_path

SLAB = 16
"""Slices that are looked at together when truth is checked."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a training learns from, is tuned and reported on."""

    sources: Mapping[Part, Sequence[Source]]
    """By what they serve for."""
    identity: list[dict[str, Any]] = field(default_factory=list)
    """What a checkpoint must agree on to be resumed, as JSON values, for each volume."""


def open_training_data(config: TrainConfig, config_path: Path) -> TrainingData:
    """The data of a training; each part of each volume is normalised by itself, as in a run.

    Raises
    ------
    InputError
        If something is missing, damaged, or does not fit together: shapes, slices, values that stand for nothing, classes
        without a voxel, grey values that are no numbers.
    """
    sources: dict[Part, list[Source]] = {"train": [], "tune": [], "report": []}
    identity = []
    for data in config.data:
        readers = [
            open_sections(data_path(name, config_path), data.parts, dtypes)
            for name, dtypes in ((data.raw, DTYPES), (data.truth, TRUTH_DTYPES))
        ]
        known: dict[str, Any] = {"data": asdict(data)}
        for part in data.parts:
            raw, truth = (sections[part] for sections in readers)
            _check_shapes(data, raw, truth)
            with _named(part, data):
                normalisation, digest = survey(raw, config.normalise)
            known[part] = {"digest": digest, "mean": normalisation.mean[0], "deviation": normalisation.deviation[0]}
            sources[part].append(Source(raw, truth, _kind(data, config), normalisation, data.weight))
        identity.append(known)
    for part, volumes in sources.items():
        if volumes:
            of_part = [known[part] for known in identity if part in known]
            for known, digest in zip(of_part, _check_truth(part, volumes, config), strict=True):
                known["truth"] = digest
    return TrainingData(sources, identity)


def _kind(data: DataConfig, config: TrainConfig) -> Kind:
    planar = data.neighbours == "plane"
    if data.ids:
        return InstanceIds(planar, data.ignore)
    return ClassValues(data.values, config.model.classes, data.ignore, planar)


def _check_shapes(data: DataConfig, raw: VolumeReader, truth: VolumeReader) -> None:
    ours, theirs = raw.spec.shape, truth.spec.shape
    if ours != theirs:
        raise InputError(
            f"slices of {data.raw} have shape {ours[1:]}, but those of {data.truth} {theirs[1:]}: give the truth of that volume"
        )


def _check_truth(part: Part, sources: Sequence[Source], config: TrainConfig) -> list[str]:
    """A digest of the truth of each volume, of which each voxel was looked at.

    What is wrong with the last one would else end a training hours after its start.
    """
    classes = config.model.classes
    found, digests = np.zeros(256, np.int64), []
    for source, data in zip(sources, (data for data in config.data if part in data.parts), strict=True):
        digest = hashlib.sha256()
        for box in _slabs(source.raw):
            with _named(part, data):
                refuse_nonfinite(source.raw.read(box), box, VolumeError)
                labels = source.kind.classes(source.kind.numbers(source.truth.read(box)))
            found += np.bincount(labels.ravel(), minlength=256)
            digest.update(labels.tobytes())
        digests.append(digest.hexdigest())
    needed = classes if part == "train" else classes[1:2]
    if missing := [name for label, name in enumerate(classes) if name in needed and not found[label]]:
        truths = ", ".join(data.truth for data in config.data if part in data.parts)
        raise InputError(f"data.{part} has no {missing[0]} in {truths}: choose other slices, or leave the class out")
    return digests


@contextmanager
def _named(part: Part, data: DataConfig) -> Iterator[None]:
    """Whatever is refused in the ``with`` says of which data."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data.{part} of {data.raw}, {data.truth}: {error}") from error


def _slabs(volume: VolumeReader) -> Iterator[Box]:
    depth, height, width = volume.spec.shape
    for first in range(0, depth, SLAB):
        yield Box((first, 0, 0), (min(first + SLAB, depth), height, width))
