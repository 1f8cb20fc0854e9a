"""`emseg train`: data and a configuration in, a model file out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from emseg.errors import OutputError
from emseg.metrics.components import components
from emseg.metrics.isbi import border_scores
from emseg.metrics.pixel import confusion, counts_of
from emseg.model.device import Device
from emseg.model.file import save_model
from emseg.model.unet import UNet
from emseg.training.fit import fit
from emseg.training.source import Sample
from emseg.training.spec import Progress
from emseg.training.validate import predict
from emseg.truth import MEMBRANE, between
from emseg_workflows.config import DataConfig, Part, TrainConfig, load_train_config
from emseg_workflows.flows.training_data import TrainingData, open_training_data
from emseg_workflows.flows.training_log import TrainingLog


def train(
    config_path: str | Path,
    *,
    resume: bool = False,
    device: Device = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
) -> Path:
    """The model file that a training wrote; its card has the scores.

    The state of the training is kept beside it, in a file that ends in ``.checkpoint``, until the model is written; what
    there is to look at stays: a table of the progress, ``NAME.log.csv``, and ``NAME.pictures/`` of the validations. Under
    ``torchrun`` the processes share the work, and the first one writes.

    Parameters
    ----------
    config_path
        The configuration, a TOML file; see `emseg_workflows.config.TrainConfig`.
    resume
        Go on from the checkpoint of a training that was stopped; without one, start.
    device
        What to train on, ``cpu`` or ``cuda``.
    on_progress
        Called after each step.

    Raises
    ------
    InputError
        If the configuration, the data or the checkpoint cannot be used; nothing was written.
    OutputError
        If the model file, or the checkpoint of a training that is not to be resumed, exists already.
    """
    config_path = Path(config_path)
    config = load_train_config(config_path)
    output = Path(config.output).absolute()
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    _check_output(output, checkpoint, resume)
    data = open_training_data(config, config_path)
    tune = [Sample.of(source) for source in data.sources["tune"]]
    log, taken = TrainingLog(output, tune), config.fit.steps

    def progressed(progress: Progress) -> None:
        nonlocal taken
        taken = progress.step
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
        on_progress=progressed,
        on_validated=log.validated,
    )
    if network is not None:  # this process leads
        save_model(output, network, _card(config, data, network, tune, taken))
        checkpoint.unlink(missing_ok=True)
    return output


def _check_output(output: Path, checkpoint: Path, resume: bool) -> None:
    if output.exists():
        raise OutputError(f"{output} already exists: choose another output, or remove it first")
    if not output.parent.is_dir():
        raise OutputError(f"{output} cannot be made, as {output.parent} is not a folder: make that first")
    if checkpoint.exists() and not resume:
        raise OutputError(f"{checkpoint} is left from a training that was stopped: go on with --resume, or remove it first")


def _card(config: TrainConfig, data: TrainingData, network: UNet, tune: Sequence[Sample], steps: int) -> dict[str, str]:
    """What is to be known about the model that so many steps made, as text."""
    settings, spec = config.fit, config.model.spec
    report = [Sample.of(source) for source in data.sources["report"]]
    scores = [f"{_scores(config, network, tune)} on {_slices(config, 'tune')}, where biases were chosen"]
    if report:
        scores.insert(0, f"{_scores(config, network, report)} on {_slices(config, 'report')}, where nothing was chosen")
    known = next(volume["train"] for volume in data.identity if "train" in volume)
    return {
        **config.card,
        "name": config.name,
        "normalise": config.normalise,
        "split": "; ".join(_split(volume) for volume in config.data),
        "scores": f"most likely class, voxel for voxel: {'; '.join(scores)}",
        "normalisation": (
            f"(value - mean) / deviation of each {config.normalise}; of the first {config.normalise} learnt from "
            f"mean {known['mean']:.2f}, deviation {known['deviation']:.2f}"
        ),
        "training": (
            f"{steps} steps of {settings.batch} tile{'s' if settings.batch > 1 else ''} of "
            f"{' x '.join(map(str, spec.tile_for(settings.output)))} voxels, {settings.optimizer}, cross-entropy with class "
            f"weights {' : '.join(f'{weight:g}' for weight in settings.class_weights)}"
            + (f", borders weighted by {settings.border_weight:g}" if settings.border_weight else "")
            + (f", affinities weighted by {settings.affinity_weight:g}" if settings.affinity_weight else "")
            + f", {settings.precision}, seed {settings.seed}, torch {torch.__version__.split('+')[0]}"
        ),
    }


def _scores(config: TrainConfig, network: UNet, samples: Sequence[Sample]) -> str:
    """F1 of each class but the first, and the scores of what lies between membranes where these were aimed at."""
    classes = config.model.classes
    table = np.zeros((len(classes), len(classes)), np.int64)
    slices = []
    for sample in samples:
        labels = predict(network, sample.raw, config.fit.output).argmax(axis=0).astype(np.uint8)
        table += confusion(labels, sample.truth, len(classes))
        if config.fit.aim == "segments":
            pairs = zip(labels == MEMBRANE, between(sample.truth), strict=True)
            slices += [border_scores(border, components(inside)) for border, inside in pairs if inside.any()]
    said = []
    for label, name in list(enumerate(classes))[1:]:
        counts = counts_of(table, label)
        said.append(f"{name} F1 {counts.f1:.3f} (precision {counts.precision:.3f}, recall {counts.recall:.3f})")
    if slices:
        means = [float(np.mean([getattr(score, name) for score in slices])) for name in ("rand", "info")]
        said.append(f"V_Rand {means[0]:.4f}, V_Info {means[1]:.4f}")
    return ", ".join(said)


def _split(data: DataConfig) -> str:
    words = {"train": "learnt from", "tune": "tuned on", "report": "reported on"}
    parts = ", ".join(f"{words[part]} z {first}..{stop - 1}" for part, (first, stop) in data.parts.items())
    return f"{parts} of {data.raw}, {data.truth}"


def _slices(config: TrainConfig, part: Part) -> str:
    """The z slices that serve for something."""
    ranges = [data.parts[part] for data in config.data if part in data.parts]
    return " and ".join(f"z {first}..{stop - 1}" for first, stop in ranges)
