"""What the configuration of a training says, and where its paths lead."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emseg.box import Triple
from emseg.errors import InputError
from emseg.specs.model import ModelSpec
from emseg.training.spec import FitSpec
from emseg.truth import CLASSES
from emseg_workflows.strict_toml import read_toml

DATA_VARIABLE = "EMSEG_DATA"
"""Environment variable with the folder of the data."""

Slices = tuple[int, int]
"""First z slice and the one after the last."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the data are, and which z slices serve for what."""

    raw: str
    """Grey values: a TIFF stack or a Zarr volume. Relative to the folder in ``EMSEG_DATA``, or to the configuration's."""
    ids: str
    """Instance ids of the same shape, 0 where nothing is labelled."""
    train: Slices
    """z slices ``[first, after the last]`` to learn from."""
    tune: Slices
    """z slices for validation, on which the membrane's bias is chosen."""
    report: Slices
    """z slices that the final score is reported on; nothing is chosen on them."""
    neighbours: Literal["volume", "plane"] = "volume"
    """Where voxels of two ids make a membrane: side by side in the ``volume`` (six neighbours) or in the ``plane`` (four)."""

    def __post_init__(self) -> None:
        parts = {"train": self.train, "tune": self.tune, "report": self.report}
        for name, (first, stop) in parts.items():
            if not 0 <= first < stop:
                raise InputError(f"data.{name} is [{first}, {stop}], but must be a first slice and a later one after the last")
            for other, (start, end) in parts.items():
                if name < other and first < end and start < stop:
                    raise InputError(
                        f"data.{name} [{first}, {stop}] and data.{other} [{start}, {end}] overlap: keep them apart"
                    )


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
    dropout: float = 0.5
    """Share of activations dropped in training at the end of the contracting path."""

    @property
    def spec(self) -> ModelSpec:
        """The network that finds membrane."""
        return ModelSpec.unet(
            width=self.width,
            depth=self.depth,
            classes=CLASSES,
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
    data: DataConfig
    """Where the data are."""
    model: ModelConfig
    """The network."""
    fit: FitSpec
    """How it is trained."""
    card: dict[str, str] = field(default_factory=dict)
    """Entries of the model's card that only a person knows: data, attribution, licence, voxel_size."""


def load_train_config(path: Path) -> TrainConfig:
    """The configuration of a training in a TOML file.

    Raises
    ------
    InputError
        If the file is missing, or anything in it is unknown, missing, of the wrong type or out of range.
    """
    config = read_toml(path, TrainConfig)
    try:
        spec = config.model.spec
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if len(config.fit.class_weights) != len(spec.classes):
        raise InputError(
            f"{path}: fit.class_weights has {len(config.fit.class_weights)} numbers, but there are "
            f"{len(spec.classes)} classes ({', '.join(spec.classes)}): give one for each"
        )
    return config


def data_path(name: str, config: Path) -> Path:
    """Where a data file is: relative to the folder in ``EMSEG_DATA``, if that is set, or to the configuration's folder."""
    return Path(os.environ.get(DATA_VARIABLE) or config.parent) / name
