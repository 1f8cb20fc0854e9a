"""`emseg train`: train a network from a configuration file, and write a model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from emseg.flows.training.data import TrainingData, open_training_data
from emseg.flows.training.log import TrainingLog
from emseg.settings.training import DataConfig, Split, TrainConfig, load_train_config
from emseg_core.errors import OutputError
from emseg_core.metrics.components import components
from emseg_core.metrics.isbi import border_scores
from emseg_core.metrics.pixel import confusion, counts_of
from emseg_core.model.device import Device
from emseg_core.model.file import save_model
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from emseg_core.store.files.place import local_path
from emseg_core.training.fit import fit
from emseg_core.training.spec import Progress
from emseg_core.training.truth_reader import ValidationVolume
from emseg_core.training.validate import channel_scores, predict
from emseg_core.truth import MEMBRANE, between


def train(
    config_path: str | Path,
    *,
    resume: bool = False,
    device: Device = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """Train a network and write a model file, whose model card contains the scores.

    The state of the training is kept beside the model file, in a file that ends in ``.checkpoint``, until the model is written.
    A table of the progress, ``NAME.log.csv``, and pictures of the validations, ``NAME.pictures/``, remain. Under ``torchrun``
    the processes share the work, and the first one writes.

    Parameters
    ----------
    config_path
        The configuration file, in TOML; see `emseg.settings.training.TrainConfig`.
    resume
        Resume from the checkpoint of an interrupted training; without a checkpoint, start.
    device
        Device to train on, ``cpu`` or ``cuda``.
    on_progress
        Called after each step.

    Returns
    -------
    Path
        The model file.

    Raises
    ------
    InputError
        If the configuration, the data or the checkpoint cannot be used; nothing is written.
    OutputError
        If the model file already exists, or a checkpoint does and `resume` is not given.
    """
    config_path = Path(config_path)
    config = load_train_config(config_path)
    output = local_path(config.output)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    _check_output(output, checkpoint, resume)
    data = open_training_data(config, config_path)
    tune = [ValidationVolume.of(source) for source in data.sources["tune"]]
    log, steps_taken = TrainingLog(output, tune), config.fit.steps

    def log_progress(progress: Progress) -> None:
        nonlocal steps_taken
        steps_taken = progress.step
        log.progress(progress)
        if on_progress is not None:
            on_progress(progress)

    network, _ = fit(
        config.model.spec,
        config.fit,
        data.sources["train"],
        tune,
        device=device,
        checkpoint=checkpoint,
        resume=resume,
        identity={"normalise": config.normalise, "volumes": {str(n): known for n, known in enumerate(data.identity)}},
        on_begun=lambda: log.begin(resume=resume),
        on_progress=log_progress,
        on_validated=log.validated,
    )
    if network is not None:  # only in the process that writes
        save_model(output, network, _card(config, data, network, tune, steps_taken))
        checkpoint.unlink(missing_ok=True)
    return output


def _check_output(output: Path, checkpoint: Path, resume: bool) -> None:
    if output.exists():
        raise OutputError(f"{output} already exists: choose another output, or remove it first")
    if not output.parent.is_dir():
        raise OutputError(f"{output} cannot be written, because {output.parent} is not a folder: create it first")
    if checkpoint.exists() and not resume:
        raise OutputError(f"{checkpoint} is left from an interrupted training: resume with --resume, or remove it first")


def _card(
    config: TrainConfig, data: TrainingData, network: UNet, tune: Sequence[ValidationVolume], steps: int
) -> dict[str, str]:
    """Return the model card: how the model was trained in so many steps, on what, and its scores."""
    settings, spec = config.fit, config.model.spec
    report = [ValidationVolume.of(source) for source in data.sources["report"]]
    purpose = "to choose biases" if spec.classes else "for validation"
    scores = [f"{_scores(config, network, tune)} on {_slices(config, 'tune')}, used {purpose}"]
    if report:
        scores.insert(0, f"{_scores(config, network, report)} on {_slices(config, 'report')}, used for nothing else")
    known = next(volume["train"] for volume in data.identity if "train" in volume)
    return {
        **config.card,
        "name": config.name,
        "normalise": config.normalise,
        "split": "; ".join(_split(volume) for volume in config.data),
        "scores": f"{_scored(spec)}: {'; '.join(scores)}",
        "normalisation": (
            f"(value - mean) / deviation of each {config.normalise}; of the first training {config.normalise} "
            f"mean {known['mean']:.2f}, deviation {known['deviation']:.2f}"
        ),
        "training": (
            f"{steps} steps of {settings.batch} tile{'s' if settings.batch != 1 else ''} of "
            f"{' x '.join(map(str, spec.tile_for(settings.output)))} voxels, {settings.optimizer}, "
            + _loss(config)
            + (f", borders weighted by {settings.border_weight:g}" if settings.border_weight else "")
            + (f", affinities weighted by {settings.affinity_weight:g}" if settings.affinity_weight else "")
            + f", {settings.precision}, seed {settings.seed}, torch {torch.__version__.split('+')[0]}"
        ),
    }


def _scored(spec: ModelSpec) -> str:
    """Return what is scored."""
    head = spec.heads[0]
    if head.kind == "classes":
        return "most likely class, voxel for voxel"
    if head.kind == "affinities":
        return "edges between different objects, at the probability 0.5"
    return f"each class at its threshold ({', '.join(f'{value:g}' for value in head.thresholds)}), voxel for voxel"


def _loss(config: TrainConfig) -> str:
    """Return the loss of the training."""
    head = config.model.spec.heads[0]
    if head.kind != "classes":
        return f"binary cross-entropy of {head}"
    return f"cross-entropy with class weights {' : '.join(f'{weight:g}' for weight in config.fit.class_weights)}"


def _channel_scores(config: TrainConfig, network: UNet, samples: Sequence[ValidationVolume]) -> str:
    """Return F1 of each independent class or affinity, and of affinities also the accuracy."""
    logits = [predict(network, sample.raw, config.fit.output) for sample in samples]
    affinities = config.model.spec.heads[0].kind == "affinities"
    return ", ".join(
        f"{name} F1 {counts.f1:.3f} (precision {counts.precision:.3f}, recall {counts.recall:.3f}"
        + (f", accuracy {accuracy:.3f})" if affinities else ")")
        for name, counts, accuracy in channel_scores(config.model.spec, logits, [sample.truth for sample in samples])
    )


def _scores(config: TrainConfig, network: UNet, samples: Sequence[ValidationVolume]) -> str:
    """Return F1 of each class but the first, and for a training aimed at segments, the scores of those between membranes."""
    if not config.model.spec.classes:
        return _channel_scores(config, network, samples)
    classes = config.model.classes
    table = np.zeros((len(classes), len(classes)), np.int64)
    slices = []
    for sample in samples:
        labels = predict(network, sample.raw, config.fit.output).argmax(axis=0).astype(np.uint8)
        table += confusion(labels, sample.truth, len(classes))
        if config.fit.aim == "segments":
            pairs = zip(labels == MEMBRANE, between(sample.truth), strict=True)
            slices += [border_scores(border, components(inside)) for border, inside in pairs if inside.any()]
    scores = []
    for label, name in list(enumerate(classes))[1:]:
        counts = counts_of(table, label)
        scores.append(f"{name} F1 {counts.f1:.3f} (precision {counts.precision:.3f}, recall {counts.recall:.3f})")
    if slices:
        means = [float(np.mean([getattr(score, name) for score in slices])) for name in ("rand", "info")]
        scores.append(f"V_Rand {means[0]:.4f}, V_Info {means[1]:.4f}")
    return ", ".join(scores)


def _split(data: DataConfig) -> str:
    words = {"train": "trained on", "tune": "tuned on", "report": "reported on"}
    splits = ", ".join(f"{words[split]} z {first}..{stop - 1}" for split, (first, stop) in data.splits.items())
    return f"{splits} of {data.raw}, {data.truth}"


def _slices(config: TrainConfig, split: Split) -> str:
    """Return the z slices of a split."""
    ranges = [data.splits[split] for data in config.data if split in data.splits]
    return " and ".join(f"z {first}..{stop - 1}" for first, stop in ranges)
