"""Configuration of a training, and resolution of its paths."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from emseg.settings.toml import read_toml
from emseg_core.box import Triple
from emseg_core.errors import InputError
from emseg_core.normalise import Scope
from emseg_core.specs.heads import Anchor, Head
from emseg_core.specs.model import ModelSpec
from emseg_core.training.spec import FitSpec
from emseg_core.truth import BACKGROUND, BORDERS, CLASSES, check_meaning

DATA_VARIABLE = "EMSEG_DATA"
"""Environment variable with the data folder."""

Slices = tuple[int, int]
"""First z slice and the one after the last."""
Split = Literal["train", "tune", "report"]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A volume with its ground truth, and its z slices for training, validation and the final score."""

    raw: str
    """Grey values: a TIFF stack or a Zarr volume. Relative to ``EMSEG_DATA``, or else to the configuration's folder."""
    train: Slices | None = None
    """z slices ``[first, after the last]`` to train on."""
    ids: str = ""
    """Truth as instance ids of the same shape, 0 where not labelled. Alternative to `labels`."""
    labels: str = ""
    """Truth as values that stand for classes, of the same shape. Alternative to `ids`."""
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """For `labels`: the values of each class, by its name."""
    ignore: tuple[int, ...] = ()
    """Values of the truth to ignore, such as unannotated voxels; among ids, 0 is always ignored."""
    tune: Slices | None = None
    """z slices for validation, on which the class biases are chosen."""
    report: Slices | None = None
    """z slices for the final score; nothing is chosen on them."""
    neighbours: Literal["volume", "plane"] = "volume"
    """Neighbourhood of a voxel of the truth: ``volume`` (six neighbours) or ``plane`` (four), as for thick sections."""
    background: tuple[int, ...] = ()
    """For affinities: ids of voxels that belong to no object; 0 among them is then background, not unlabelled."""
    weight: float = 1.0
    """Relative frequency with which crops are drawn from this volume."""

    @property
    def truth(self) -> str:
        """Path of the truth."""
        return self.ids or self.labels

    @property
    def splits(self) -> dict[Split, Slices]:
        """Slices (z) of each split that has any."""
        splits: dict[Split, Slices | None] = {"train": self.train, "tune": self.tune, "report": self.report}
        return {name: slices for name, slices in splits.items() if slices is not None}

    def __post_init__(self) -> None:
        if bool(self.ids) == bool(self.labels):
            given = "both ids and labels" if self.ids else "neither ids nor labels"
            raise InputError(f"data of {self.raw} has {given}: give the truth as one of them")
        if bool(self.labels) != bool(self.values):
            raise InputError(
                f"data of {self.raw} has {'labels without values' if self.labels else 'values without labels'}: "
                "give both, so that each value has a class"
            )
        if not self.weight > 0:
            raise InputError(f"data of {self.raw} has the weight {self.weight}, but weights must be positive: change it")
        for name, (first, stop) in self.splits.items():
            if not 0 <= first < stop:
                raise InputError(
                    f"data.{name} is [{first}, {stop}], but slices are [first, after the last]: give a first slice from 0 on, "
                    "and a larger end"
                )
        for (name, (first, stop)), (other, (start, end)) in combinations(self.splits.items(), 2):
            if first < end and start < stop:
                raise InputError(
                    f"data.{name} [{first}, {stop}] and data.{other} [{start}, {end}] overlap: choose separate slices"
                )


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """A head of the network in place of classes that exclude one another; see `emseg_core.specs.heads.Head`."""

    name: str
    """Name of the head."""
    kind: Literal["independent", "affinities"]
    """``independent`` classes, whose truth are labels, or ``affinities``, whose truth are ids."""
    classes: tuple[str, ...] = ()
    """Name of each independent class."""
    threshold: float | None = None
    """Probability from which a voxel belongs to an independent class; 0.5 if omitted."""
    offsets: tuple[Triple, ...] = ()
    """Offset (z, y, x) in voxels of each affinity."""
    anchor: Anchor = "source"
    """Voxel that affinities are stored at: the ``source`` of the offset, or its ``destination``."""
    repulsive: bool = False
    """Whether an affinity of 1 means different objects instead of the same one."""

    @property
    def head(self) -> Head:
        """The head."""
        affinities = self.kind == "affinities"
        if affinities and (self.classes or self.threshold is not None):
            told = "classes" if self.classes else "threshold"
            raise InputError(f"the head {self.name!r} of affinities has {told}, which only independent classes have: remove it")
        threshold = 0.5 if self.threshold is None else self.threshold
        return Head(
            self.name,
            self.kind,
            tuple(" ".join(map(str, offset)) for offset in self.offsets) if affinities else self.classes,
            "sigmoid logits",
            thresholds=() if affinities else (threshold,) * len(self.classes),
            offsets=self.offsets,
            anchor=self.anchor,
            repulsive=self.repulsive,
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network; see `emseg_core.specs.model.ModelSpec`."""

    width: int
    """Channels of the first level; each further level has twice as many as the level before."""
    depth: int
    """Number of poolings."""
    kernel: Triple
    """Kernel (z, y, x) in voxels, the same at each level."""
    pooling: Triple
    """Pooling factor (z, y, x), the same at each level."""
    classes: tuple[str, ...] = CLASSES
    """Name of each class, in the order of the labels from 0; membrane, which separates segments, is the second one."""
    dropout: float = 0.5
    """Fraction of activations dropped in training at the end of the contracting path."""
    head: HeadConfig | None = None
    """Independent classes or affinities, in place of `classes`."""

    @property
    def spec(self) -> ModelSpec:
        """Specification of the network."""
        heads = () if self.head is None else (self.head.head,)
        return ModelSpec.unet(
            width=self.width,
            depth=self.depth,
            classes=() if heads else self.classes,
            kernel=self.kernel,
            pooling=self.pooling,
            dropout=self.dropout,
            others=heads,
        )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of a training: data, network, fit, and the model's card."""

    name: str
    """Name of the model."""
    output: str
    """Model file to write; relative to the working directory."""
    data: tuple[DataConfig, ...]
    """The volumes."""
    model: ModelConfig
    """The network."""
    fit: FitSpec
    """Settings of the fit."""
    normalise: Scope = "volume"
    """Normalise grey values per ``volume`` or per z ``slice``. Runs with the model do the same."""
    card: dict[str, str] = field(default_factory=dict)
    """Entries of the model's card that cannot be derived: data, attribution, licence, voxel_size."""

    def __post_init__(self) -> None:
        spec = self.model.spec
        if spec.classes:
            self._check_classes(spec)
        else:
            self._check_head(spec.heads[0])
        if not any(data.train for data in self.data):
            raise InputError("no data.train is given, so there is nothing to train on: give some slices")
        if not any(data.tune for data in self.data):
            raise InputError("no data.tune is given, so the network cannot be validated: reserve some slices for it")

    def _check_classes(self, spec: ModelSpec) -> None:
        """Check that data and settings fit a network of classes that exclude one another."""
        if len(self.fit.class_weights) != len(spec.classes):
            raise InputError(
                f"fit.class_weights has length {len(self.fit.class_weights)}, but there are {len(spec.classes)} classes "
                f"({', '.join(spec.classes)}): give one for each"
            )
        for data in self.data:
            if data.background:
                raise InputError(
                    f"background of {data.truth} is for affinities, but the network has the classes {', '.join(spec.classes)}: "
                    "remove it"
                )
            if data.ids and spec.classes != CLASSES:
                raise InputError(
                    f"ids of {data.ids} give the classes {', '.join(CLASSES)}, but the network has "
                    f"{', '.join(spec.classes)}: give labels, or omit model.classes"
                )
            if data.ids and spec.planar and data.neighbours == "volume":
                raise InputError(
                    f"ids of {data.ids} have neighbours in the volume, but the network sees one plane at a time: "
                    'set neighbours = "plane"'
                )
            check_meaning(data.values, spec.classes, data.ignore)
        parted = self.fit.aim == "segments" or self.fit.border_weight or self.fit.affinity_weight
        if parted and not set(spec.classes[1:2]) & set(BORDERS):
            raise InputError(
                "the aim segments, border_weight and affinity_weight need a class that separates segments, but the classes "
                f"are {', '.join(spec.classes)}: make membrane or boundary the second one, or omit these settings"
            )

    def _check_head(self, head: Head) -> None:
        """Check that data and settings fit a network with a head of independent classes or affinities."""
        usual, fit = FitSpec(steps=self.fit.steps, warmup=0), self.fit
        for name in ("class_weights", "border_weight", "affinity_weight", "aim"):
            if getattr(fit, name) != getattr(usual, name):
                raise InputError(
                    f"fit.{name} is for classes that exclude one another, but the network has the head {head.name!r} of "
                    f"{head.kind}: remove it"
                )
        if self.model.classes != CLASSES:
            raise InputError("the network has both model.classes and model.head: give one of them")
        for data in self.data:
            self._check_truth(head, data)

    def _check_truth(self, head: Head, data: DataConfig) -> None:
        """Check that a truth fits a head."""
        if data.neighbours != "volume":
            raise InputError(f"neighbours of {data.truth} is for membrane, which {head.kind} do not need: remove it")
        if head.kind == "affinities":
            if not data.ids:
                raise InputError(f"affinities are learnt from instance ids, but {data.labels} are labels: give ids")
            if both := sorted({*data.background} & {*data.ignore}):
                raise InputError(f"the id {both[0]} of {data.ids} is both ignored and background: remove one of the two")
            if self.model.spec.planar and any(offset[0] for offset in head.offsets):
                raise InputError(
                    f"the head {head.name!r} has offsets along z, but the network sees one plane at a time: remove them, or "
                    "choose a kernel longer than 1 along z"
                )
            return
        if data.ids or data.background:
            raise InputError(
                f"independent classes are learnt from labels, but {data.truth} has {'ids' if data.ids else 'background'}: "
                f"give labels, and values of each class and of {BACKGROUND}"
            )
        if unknown := [name for name in data.values if name not in (*head.channels, BACKGROUND)]:
            raise InputError(f"values of {data.labels} name {unknown[0]}, but the classes are {', '.join(head.channels)}")
        if missing := [name for name in head.channels if name not in data.values]:
            raise InputError(f"values of {data.labels} lack {missing[0]}: say which values are in that class")
        if BACKGROUND in head.channels:
            raise InputError(f"a class is named {BACKGROUND}, which means none of the classes: rename it")
        for name, values in data.values.items():
            others = {value for other, given in data.values.items() if other != name for value in given}
            if clash := [value for value in values if value in data.ignore or (name == BACKGROUND and value in others)]:
                raise InputError(
                    f"the value {clash[0]} stands for {name} and for something that excludes it: remove one of the two"
                )


def load_train_config(path: Path) -> TrainConfig:
    """Read the configuration of a training from a TOML file.

    Parameters
    ----------
    path
        Path of the file.

    Returns
    -------
    TrainConfig
        The configuration.

    Raises
    ------
    InputError
        If the file is missing, or anything in it is unknown, missing, of the wrong type or out of range.
    """
    return read_toml(path, TrainConfig)


def data_path(name: str, config: Path) -> Path:
    """Resolve the path of a data file.

    Parameters
    ----------
    name
        Path as given in the configuration.
    config
        Path of the configuration.

    Returns
    -------
    Path
        Path relative to the folder in ``EMSEG_DATA`` if that is set, otherwise to the configuration's folder.
    """
    return Path(os.environ.get(DATA_VARIABLE) or config.parent) / name
