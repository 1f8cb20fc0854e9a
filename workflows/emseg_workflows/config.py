"""What the configuration of a training says, and where its paths lead."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from emseg.box import Triple
from emseg.errors import InputError
from emseg.normalise import Scope
from emseg.specs.model import ModelSpec
from emseg.training.spec import FitSpec
from emseg.truth import BORDERS, CLASSES, check_meaning
from emseg_workflows.strict_toml import read_toml

DATA_VARIABLE = "EMSEG_DATA"
"""Environment variable with the folder of the data."""

Slices = tuple[int, int]
"""First z slice and the one after the last."""
Part = Literal["train", "tune", "report"]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """A volume with its truth, and which z slices serve for what."""

    raw: str
    """Grey values: a TIFF stack or a Zarr volume. Relative to the folder in ``EMSEG_DATA``, or to the configuration's."""
    train: Slices | None = None
    """z slices ``[first, after the last]`` to learn from."""
    ids: str = ""
    """Truth as instance ids of the same shape, 0 where nothing is labelled; or `labels`."""
    labels: str = ""
    """Truth as values that stand for classes, of the same shape; or `ids`."""
    values: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """For `labels`: the values that stand for each class, by its name."""
    ignore: tuple[int, ...] = ()
    """Values of the truth that do not count, as where nobody annotated; among ids, 0 never does."""
    tune: Slices | None = None
    """z slices for validation, on which biases are chosen."""
    report: Slices | None = None
    """z slices that the final score is reported on; nothing is chosen on them."""
    neighbours: Literal["volume", "plane"] = "volume"
    """Where voxels are side by side: in the ``volume`` (six neighbours) or in the ``plane`` (four), as in thick sections."""
    weight: float = 1.0
    """How often crops are drawn from this volume, beside others."""

    @property
    def truth(self) -> str:
        """Where the truth is."""
        return self.ids or self.labels

    @property
    def parts(self) -> dict[Part, Slices]:
        """z slices by what they serve for."""
        parts: dict[Part, Slices | None] = {"train": self.train, "tune": self.tune, "report": self.report}
        return {name: slices for name, slices in parts.items() if slices is not None}

    def __post_init__(self) -> None:
        if bool(self.ids) == bool(self.labels):
            given = "both ids and labels" if self.ids else "neither ids nor labels"
            raise InputError(f"data of {self.raw} has {given}: give the truth as one of them")
        if bool(self.labels) != bool(self.values):
            raise InputError(
                f"data of {self.raw} has {'labels without values' if self.labels else 'values without labels'}: "
                "they say together which class each value stands for"
            )
        if not self.weight > 0:
            raise InputError(f"data of {self.raw} has the weight {self.weight}, but must be drawn from: give a positive one")
        for name, (first, stop) in self.parts.items():
            if not 0 <= first < stop:
                raise InputError(f"data.{name} is [{first}, {stop}], but must be a first slice and a later one after the last")
        for (name, (first, stop)), (other, (start, end)) in combinations(self.parts.items(), 2):
            if first < end and start < stop:
                raise InputError(f"data.{name} [{first}, {stop}] and data.{other} [{start}, {end}] overlap: keep them apart")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network; see `emseg.specs.model.ModelSpec`."""

    width: int
    """Channels of the first level; each level below has twice those of the one above."""
    depth: int
    """Number of poolings."""
    kernel: Triple
    """Kernel (z, y, x) in voxels, the same at each level."""
    pooling: Triple
    """Pooling factor (z, y, x), the same at each level."""
    classes: tuple[str, ...] = CLASSES
    """Name of each class, in the order of the labels from 0; membrane, which parts segments, is the second one."""
    dropout: float = 0.5
    """Share of activations dropped in training at the end of the contracting path."""

    @property
    def spec(self) -> ModelSpec:
        """The network."""
        return ModelSpec.unet(
            width=self.width,
            depth=self.depth,
            classes=self.classes,
            kernel=self.kernel,
            pooling=self.pooling,
            dropout=self.dropout,
        )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training: data, network, how it is trained, and what is said about the result."""

    name: str
    """Name of the model."""
    output: str
    """Model file to write; relative to the working directory."""
    data: tuple[DataConfig, ...]
    """The volumes."""
    model: ModelConfig
    """The network."""
    fit: FitSpec
    """How it is trained."""
    normalise: Scope = "volume"
    """What shares one mean and deviation of the grey values: a ``volume``, or each z ``slice``. Runs follow the model."""
    card: dict[str, str] = field(default_factory=dict)
    """Entries of the model's card that only a person knows: data, attribution, licence, voxel_size."""

    def __post_init__(self) -> None:
        spec = self.model.spec
        if len(self.fit.class_weights) != len(spec.classes):
            raise InputError(
                f"fit.class_weights has {len(self.fit.class_weights)} numbers, but there are {len(spec.classes)} classes "
                f"({', '.join(spec.classes)}): give one for each"
            )
        if not any(data.train for data in self.data):
            raise InputError("no data.train is given, so that there is nothing to learn from: name some slices")
        if not any(data.tune for data in self.data):
            raise InputError("no data.tune is given, so that nothing says how good the network is: keep some slices for it")
        for data in self.data:
            if data.ids and spec.classes != CLASSES:
                raise InputError(
                    f"ids of {data.ids} give the classes {', '.join(CLASSES)}, but the network has "
                    f"{', '.join(spec.classes)}: give labels, or leave out model.classes"
                )
            if data.ids and spec.planar and data.neighbours == "volume":
                raise InputError(
                    f"ids of {data.ids} meet in the volume, but the network looks at one plane at a time: "
                    'say neighbours = "plane"'
                )
            check_meaning(data.values, spec.classes, data.ignore)
        parted = self.fit.aim == "segments" or self.fit.border_weight or self.fit.affinity_weight
        if parted and not set(spec.classes[1:2]) & set(BORDERS):
            raise InputError(
                f"the aim segments, border_weight and affinity_weight are about what membranes part, but the classes are "
                f"{', '.join(spec.classes)}: make membrane, or boundary, the second one, or leave these out"
            )


def load_train_config(path: Path) -> TrainConfig:
    """The configuration of a training in a TOML file.

    Raises
    ------
    InputError
        If the file is missing, or anything in it is unknown, missing, of the wrong type or out of range.
    """
    return read_toml(path, TrainConfig)


def data_path(name: str, config: Path) -> Path:
    """Where a data file is: relative to the folder in ``EMSEG_DATA``, if that is set, or to the configuration's folder."""
    return Path(os.environ.get(DATA_VARIABLE) or config.parent) / name
