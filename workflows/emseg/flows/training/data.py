"""Open and check the volumes of a training's configuration before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.settings.training import DataConfig, Split, TrainConfig, data_path
from emseg_core.box import Box
from emseg_core.errors import InputError, VolumeError
from emseg_core.normalise import refuse_nonfinite, survey
from emseg_core.ports import VolumeReader
from emseg_core.specs.volume import DTYPES, TRUTH_DTYPES
from emseg_core.store.stacks.source import open_sections
from emseg_core.training.truth_reader import ClassValues, Edges, IndependentValues, InstanceIds, TrainingVolume, TruthKind

SLICES_PER_READ = 16
"""Slices that are read together when truth is checked."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Volumes for training, validation and the final score."""

    sources: Mapping[Split, Sequence[TrainingVolume]]
    """Volumes of each split."""
    identity: list[dict[str, Any]] = field(default_factory=list)
    """Properties of each volume that must be unchanged to resume from a checkpoint, as JSON values."""


def open_training_data(config: TrainConfig, config_path: Path) -> TrainingData:
    """Open the data of a training. Each split of each volume is normalised separately, as a run would.

    Parameters
    ----------
    config
        Configuration of the training.
    config_path
        Path of its file.

    Returns
    -------
    TrainingData
        The volumes.

    Raises
    ------
    InputError
        If data are missing or damaged or do not fit together: different shapes, slices out of range, values without a meaning,
        classes without a voxel, or grey values that are not finite.
    """
    sources: dict[Split, list[TrainingVolume]] = {"train": [], "tune": [], "report": []}
    identity = []
    for data in config.data:
        readers = [
            open_sections(data_path(name, config_path), data.splits, dtypes)
            for name, dtypes in ((data.raw, DTYPES), (data.truth, TRUTH_DTYPES))
        ]
        known: dict[str, Any] = {"data": asdict(data)}
        for split in data.splits:
            raw, truth = (sections[split] for sections in readers)
            _check_shapes(data, raw, truth)
            with _errors_named(split, data):
                normalisation, digest = survey(raw, config.normalise)
            known[split] = {"digest": digest, "mean": normalisation.mean[0], "deviation": normalisation.deviation[0]}
            sources[split].append(TrainingVolume(raw, truth, _kind(data, config), normalisation, data.weight))
        identity.append(known)
    for split, volumes in sources.items():
        if volumes:
            of_split = [known[split] for known in identity if split in known]
            for known, digest in zip(of_split, _check_truth(split, volumes, config), strict=True):
                known["truth"] = digest
    return TrainingData(sources, identity)


def _kind(data: DataConfig, config: TrainConfig) -> TruthKind:
    planar, head = data.neighbours == "plane", config.model.spec.heads[0]
    if head.kind == "affinities":
        return Edges(head, data.ignore, data.background)
    if head.kind == "independent":
        return IndependentValues(data.values, head.channels, data.ignore)
    if data.ids:
        return InstanceIds(planar, data.ignore)
    return ClassValues(data.values, config.model.classes, data.ignore, planar)


def _check_shapes(data: DataConfig, raw: VolumeReader, truth: VolumeReader) -> None:
    raw_shape, truth_shape = raw.spec.shape, truth.spec.shape
    if raw_shape != truth_shape:
        raise InputError(
            f"slices of {data.raw} have shape {raw_shape[1:]}, but those of {data.truth} {truth_shape[1:]}: give the "
            "truth of that volume"
        )


def _check_truth(split: Split, sources: Sequence[TrainingVolume], config: TrainConfig) -> list[str]:
    """Check each voxel of the truth, and return its digest for each volume.

    Otherwise an error in the last voxel could end a training hours after its start.
    """
    spec = config.model.spec
    found, digests = np.zeros((max(1, spec.logits - len(spec.classes)), 256), np.int64), []
    for source, data in zip(sources, (data for data in config.data if split in data.splits), strict=True):
        digest = hashlib.sha256()
        for box in _slabs(source.raw):
            with _errors_named(split, data):
                refuse_nonfinite(source.raw.read(box), box, VolumeError)
                labels = source.kind.classes(source.kind.numbers(source.truth.read(box)))
            channels = labels if labels.ndim == 4 else labels[None]
            found += np.stack([np.bincount(channel.ravel(), minlength=256) for channel in channels])
            digest.update(labels.tobytes())
        digests.append(digest.hexdigest())
    if missing := _missing(split, config, found):
        truths = ", ".join(data.truth for data in config.data if split in data.splits)
        raise InputError(f"data.{split} has no {missing[0]} in {truths}: choose other slices, or omit the class")
    return digests


def _missing(split: Split, config: TrainConfig, found: NDArray[np.int64]) -> list[str]:
    """Return what the truth of a split lacks; `found` counts the values of each channel of its truth."""
    spec = config.model.spec
    if spec.classes:
        needed = spec.classes if split == "train" else spec.classes[1:2]
        return [name for label, name in enumerate(spec.classes) if name in needed and not found[0, label]]
    head = spec.heads[0]
    if head.kind == "affinities":  # long edges between slabs are not counted, so all offsets are taken together
        same, other = found[:, [0, 1] if head.repulsive else [1, 0]].sum(axis=0)
        return [name for name, count in (("edge in an object", same), ("edge between objects", other)) if not count]
    missing = [name for name, counts in zip(head.channels, found, strict=True) if not counts[1]]
    return missing + [f"voxel outside {name}" for name, counts in zip(head.channels, found, strict=True) if not counts[0]]


@contextmanager
def _errors_named(split: Split, data: DataConfig) -> Iterator[None]:
    """Add the split and the paths of the data to errors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data.{split} of {data.raw}, {data.truth}: {error}") from error


def _slabs(volume: VolumeReader) -> Iterator[Box]:
    depth, height, width = volume.spec.shape
    for first in range(0, depth, SLICES_PER_READ):
        yield Box((first, 0, 0), (min(first + SLICES_PER_READ, depth), height, width))
