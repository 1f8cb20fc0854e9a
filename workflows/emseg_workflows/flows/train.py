"""`emseg train`: data and a configuration in, a model file out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Box, triple
from emseg.errors import InputError, OutputError
from emseg.metrics.membrane import Counts, count
from emseg.model.file import save_model
from emseg.normalise import survey
from emseg.specs.volume import VolumeSpec
from emseg.store.source import open_slices
from emseg.training.fit import Sample, fit
from emseg.training.spec import Progress
from emseg.training.validate import predict
from emseg.truth import MEMBRANE, membrane_truth
from emseg_workflows.config import DataConfig, Slices, TrainConfig, data_path, load_train_config


def train(config_path: Path, *, resume: bool = False, on_progress: Callable[[Progress], None] | None = None) -> Path:
    """The model file that a training wrote; its card has the scores.

    The state of the training is kept beside it, in a file that ends in ``.checkpoint``, until the model is written.

    Parameters
    ----------
    config_path
        The configuration, a TOML file; see `emseg_workflows.config.TrainConfig`.
    resume
        Go on from the checkpoint of a training that was stopped; without one, start.
    on_progress
        Called after each step.

    Raises
    ------
    InputError
        If the configuration, the data or the checkpoint cannot be used; nothing was written.
    OutputError
        If the model file, or the checkpoint of a training that is not to be resumed, exists already.
    """
    config = load_train_config(config_path)
    output = Path(config.output).absolute()
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    _check_output(output, checkpoint, resume)
    samples, identity = _load(config.data, config_path)

    network, _ = fit(
        config.model.spec,
        config.fit,
        samples["train"],
        samples["tune"],
        checkpoint=checkpoint,
        resume=resume,
        identity=identity,
        on_progress=on_progress,
    )
    scores = {}
    for part in ("tune", "report"):
        labels = predict(network, samples[part].raw, config.fit.output).argmax(axis=0)
        scores[part] = count(labels, samples[part].truth)
    save_model(output, network, _card(config, scores, identity))
    checkpoint.unlink(missing_ok=True)
    return output


@dataclass(frozen=True, slots=True)
class LoadedVolume:
    """A volume in memory; fulfils `emseg.ports.VolumeReader`."""

    voxels: NDArray[Any]
    """``(z, y, x)``, of a type that emseg reads."""

    @property
    def spec(self) -> VolumeSpec:
        """What the volume is."""
        shape = triple(self.voxels.shape)
        return VolumeSpec(shape, self.voxels.dtype.name, chunk=shape)

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of `box`."""
        return self.voxels[box.slices()].copy()


def _check_output(output: Path, checkpoint: Path, resume: bool) -> None:
    if output.exists():
        raise OutputError(f"{output} already exists: choose another output, or remove it first")
    if not output.parent.is_dir():
        raise OutputError(f"{output} cannot be made, as {output.parent} is not a folder: make that first")
    if checkpoint.exists() and not resume:
        raise OutputError(f"{checkpoint} is left from a training that was stopped: go on with --resume, or remove it first")


def _load(data: DataConfig, config_path: Path) -> tuple[dict[str, Sample], dict[str, Any]]:
    """The three samples, each normalised by itself as in a run, and what a checkpoint must agree on to be resumed."""
    parts = {"train": data.train, "tune": data.tune, "report": data.report}
    raw, ids = (_read(data_path(name, config_path), parts) for name in (data.raw, data.ids))
    samples: dict[str, Sample] = {}
    identity: dict[str, Any] = {"data": asdict(data)}
    for name in parts:
        if raw[name].shape != ids[name].shape:
            raise InputError(
                f"slices of {data.raw} have shape {raw[name].shape[1:]}, but those of {data.ids} "
                f"{ids[name].shape[1:]}: give the ids of that volume"
            )
        volume = LoadedVolume(raw[name])
        normalisation, digest = survey(volume, "volume")
        truth = membrane_truth(ids[name], planar=data.neighbours == "plane")
        if not np.any(truth == MEMBRANE):
            raise InputError(f"data.{name} has no membrane in {data.ids}: choose other slices")
        samples[name] = Sample(normalisation.apply(volume.voxels, volume.spec.box), truth)
        identity[name] = {"digest": digest, "mean": normalisation.mean[0], "deviation": normalisation.deviation[0]}
    return samples, identity


def _read(path: Path, parts: Mapping[str, Slices]) -> dict[str, NDArray[Any]]:
    """Some z slices ``(z, y, x)`` of a volume, by the name of the part."""
    with open_slices(path) as source:
        _check_slices(path, parts, source.shape[0])
        return {name: source.read(*slices) for name, slices in parts.items()}


def _check_slices(path: Path, parts: Mapping[str, Slices], depth: int) -> None:
    for name, slices in parts.items():
        if slices[1] > depth:
            raise InputError(f"data.{name} is {list(slices)}, but {path} has {depth} slices: choose others")


def _card(config: TrainConfig, scores: dict[str, Counts], identity: dict[str, Any]) -> dict[str, str]:
    """What is to be known about the model, as text."""

    def said(part: str) -> str:
        counts = scores[part]
        return f"F1 {counts.f1:.3f} (precision {counts.precision:.3f}, recall {counts.recall:.3f})"

    data, settings = config.data, config.fit
    spec = config.model.spec
    tile = spec.tile_for(settings.output)
    return {
        **config.card,
        "name": config.name,
        "split": (
            f"learnt from z {_range(data.train)}, tuned on z {_range(data.tune)}, "
            f"reported on z {_range(data.report)} of {data.raw}, {data.ids}"
        ),
        "scores": (
            f"membrane, voxel for voxel, most likely class: {said('report')} on z {_range(data.report)}, where nothing was "
            f"chosen; {said('tune')} on z {_range(data.tune)}, where the bias was chosen"
        ),
        "normalisation": (
            "(value - mean) / deviation of the whole volume; of the slices learnt from "
            f"mean {identity['train']['mean']:.2f}, deviation {identity['train']['deviation']:.2f}"
        ),
        "training": (
            f"{settings.steps} steps of {settings.batch} tile{'s' if settings.batch > 1 else ''} of "
            f"{' x '.join(map(str, tile))} voxels, AdamW, cross-entropy with class weights "
            f"{' : '.join(f'{weight:g}' for weight in settings.class_weights)}, {settings.precision}, "
            f"seed {settings.seed}, torch {torch.__version__.split('+')[0]}"
        ),
    }


def _range(slices: Slices) -> str:
    return f"{slices[0]}..{slices[1] - 1}"
