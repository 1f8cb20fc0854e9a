"""Train a network: the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emseg_core.errors import InputError
from emseg_core.model.device import Device
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from emseg_core.training.augment import Crop, CropSampler
from emseg_core.training.border import border_weights
from emseg_core.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from emseg_core.training.loss import WeightedSum, affinity_loss, affinity_offsets, binary_cross_entropy, weighted_cross_entropy
from emseg_core.training.network import MovingAverage, TrainingNetwork
from emseg_core.training.prefetch import Prefetcher, prefetch
from emseg_core.training.ranks import Ranks, join_processes
from emseg_core.training.spec import FitSpec, Progress, to_json
from emseg_core.training.truth_reader import TrainingVolume, ValidationVolume
from emseg_core.training.validate import calibrate, channel_score, predict, score_labels
from emseg_core.truth import between

LOSS_MEMORY = 0.98
"""Weight of the previous mean in the moving average of the loss."""

Logits = NDArray[np.float32]
ValidationCallback = Callable[[int, Sequence[Logits]], None]
"""Called with the number of steps done, and the logits ``(classes, z, y, x)`` of each validation volume."""


class Batch:
    """Crops of one step for one process, as tensors on its device.

    Parameters
    ----------
    crops
        The crops.
    borders
        Additional weight of border voxels of each crop; empty for none.
    device
        Device of the tensors.
    """

    def __init__(self, crops: Sequence[Crop], borders: Sequence[NDArray[np.float32]], device: Device) -> None:
        self.tiles, self.truth, self.segments = (
            torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*crops, strict=True)
        )
        self.border = torch.from_numpy(np.stack(borders)).to(device) if borders else None


@dataclass(frozen=True, slots=True)
class Trainer:
    """Draws batches and takes optimiser steps."""

    settings: FitSpec
    """Settings of the training."""
    crops: CropSampler
    """Sampler of the crops."""
    device: Device
    """Device of this process."""
    ranks: Ranks
    """This process among those of the training."""

    def batch(self, step: int) -> Batch:
        """Draw the crops of this process for a step.

        They depend only on the seed, the step and the index of the tile in the batch.

        Parameters
        ----------
        step
            Number of the step, counted from 0.

        Returns
        -------
        Batch
            The crops, on the device.

        Raises
        ------
        InputError
            If the batch cannot be divided evenly among the processes.
        """
        settings, tiles = self.settings, self.ranks.share(self.settings.batch)
        crops = [self.crops.draw(np.random.default_rng((settings.seed, step, tile))) for tile in tiles]
        borders = []
        if settings.border_weight:
            for crop in crops:
                inside = np.where(between(crop.truth), crop.segments, 0)
                borders.append(settings.border_weight * border_weights(inside, settings.border_width))
        return Batch(crops, borders, self.device)

    def take_step(self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> float:
        """Take an optimiser step.

        Parameters
        ----------
        network
            The network, as returned by `Ranks.wrap`.
        optimizer
            The optimiser of its parameters.
        batch
            Crops of this process.
        step
            Number of the step, counted from 0.

        Returns
        -------
        float
            Loss, the mean over the batches of all processes.
        """
        settings = self.settings
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, step, self.ranks.rank)).generate_state(1)[0]))  # dropout
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits, affinities = network(batch.tiles[:, None].to(memory_format=torch.channels_last_3d))
        if self.crops.spec.classes:
            weights = torch.tensor(settings.class_weights, device=self.device)
            loss = self._mean(weighted_cross_entropy(logits, batch.truth, weights, batch.border))
        else:
            loss = self._mean(binary_cross_entropy(logits, batch.truth))
        if affinities is not None:
            offsets = affinity_offsets(self.crops.spec, settings.affinity_reach)
            found = affinity_loss(affinities, batch.truth, batch.segments, offsets)
            loss = loss + settings.affinity_weight * self._mean(found)
        shared = loss * self.ranks.count  # DistributedDataParallel averages gradients over the processes
        shared.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(self.ranks.sum(loss.detach()))

    def _mean(self, part: WeightedSum) -> Tensor:
        """Return the contribution of this process to the mean over the whole batch."""
        return WeightedSum(part.total, self.ranks.sum(part.counted)).mean


def fit(
    spec: ModelSpec,
    settings: FitSpec,
    sources: Sequence[TrainingVolume],
    tune: Sequence[ValidationVolume],
    *,
    device: Device = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    on_begun: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_validated: ValidationCallback | None = None,
) -> tuple[UNet | None, float]:
    """Train a network.

    The random choices of a step depend only on the seed and the step, so a training that was stopped and resumed gives the same
    network as one that was not. At the end, biases are shifted so that the most likely class gives the best score on `tune`. If
    ``torchrun`` started several processes, each takes a part of every batch; the first one validates and calls back.

    Parameters
    ----------
    spec
        The network.
    settings
        Settings of the training.
    sources
        Training data.
    tune
        Volumes for validation and for the choice of the biases.
    device
        Device to train on, ``cpu`` or ``cuda``.
    checkpoint
        File for the state after each validation; None writes none.
    resume
        Continue from the checkpoint if it exists.
    identity
        Further JSON values that must be the same to resume from a checkpoint, such as a description of the data.
    on_begun
        Called before the first step, after all checks.
    on_progress
        Called after each step.
    on_validated
        Called after each validation.

    Returns
    -------
    network : UNet or None
        The trained network, in evaluation mode on its device; None in all processes but the first.
    score : float
        Its score on `tune`; 0 in all processes but the first.

    Raises
    ------
    InputError
        If the checkpoint belongs to another training, or the batch cannot be divided evenly among the processes.
    """
    identity = {"model": spec.to_json(), "fit": to_json(settings), **(identity or {})}
    with join_processes(device) as ranks, torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        state = _initial_state(spec, settings, device)
        if resume and checkpoint is not None and checkpoint.exists():
            load_checkpoint(checkpoint, state, identity)
        if (step := ranks.broadcast(state.step)) != state.step:
            raise InputError(
                f"the first process resumes from step {step}, this one from step {state.step}: put {checkpoint} where all "
                "processes can read it"
            )
        trainer = Trainer(settings, CropSampler(sources, spec, settings.output, settings.augment), device, ranks)
        ranks.share(settings.batch)
        if on_begun is not None and ranks.leads:
            on_begun()

        def validate() -> None:
            logits = _validate(state, spec, settings, tune)
            if checkpoint is not None:
                save_checkpoint(checkpoint, state, identity)
            if on_validated is not None:
                on_validated(state.step, logits)

        _take_steps(trainer, state, validate, on_progress)
        if not ranks.leads:
            return None, 0.0
        if settings.patience:
            state.average.load(state.best)
        trained = state.average.network(spec)
        if spec.classes:
            return trained, calibrate(trained, tune, settings.output, settings.aim)
        score = state.best_score if settings.patience else state.score  # of these weights, from their validation
        assert score is not None
        return trained, score


def _take_steps(
    trainer: Trainer, state: TrainingState, validate: Callable[[], None], on_progress: Callable[[Progress], None] | None
) -> None:
    """Train until the last step, or until validations have not improved for long enough."""
    settings, ranks = trainer.settings, trainer.ranks
    network = ranks.wrap(state.network)
    with prefetch(trainer.batch, range(state.step, settings.steps)) as batches:
        meter = ProgressMeter(settings, state.step, batches)
        while state.step < settings.steps and not (settings.patience and state.stale >= settings.patience):
            meter.add(trainer.take_step(network, state.optimizer, next(batches), state.step))
            state.step += 1
            state.average.update(state.step)
            if state.step % settings.validate_every == 0 or state.step == settings.steps:
                if ranks.leads:
                    validate()
                state.stale = ranks.broadcast(state.stale)
            if on_progress is not None and ranks.leads:
                on_progress(meter.progress(state))


class ProgressMeter:
    """Measures the loss and the speed of a training.

    Parameters
    ----------
    settings
        Settings of the training.
    first
        Number of its first step, counted from 0.
    batches
        Prefetched batches, which know the time spent waiting for them.
    """

    def __init__(self, settings: FitSpec, first: int, batches: Prefetcher[Batch]) -> None:
        self._settings = settings
        self._first = first
        self._batches = batches
        self._began = perf_counter()
        self._loss: float | None = None

    def add(self, loss: float) -> None:
        """Add the loss of a step to the moving average.

        Parameters
        ----------
        loss
            Loss of the step.
        """
        self._loss = loss if self._loss is None else LOSS_MEMORY * self._loss + (1 - LOSS_MEMORY) * loss

    def progress(self, state: TrainingState) -> Progress:
        """Report the progress of the training.

        Parameters
        ----------
        state
            State after at least one step.

        Returns
        -------
        Progress
            Steps, loss, score, speed and remaining time.
        """
        settings, seconds, steps = self._settings, perf_counter() - self._began, state.step - self._first
        return Progress(
            step=state.step,
            steps=settings.steps,
            loss=self._loss or 0.0,
            score=state.score,
            rate=settings.rate_at(state.step - 1),
            tiles_per_second=steps * settings.batch / seconds,
            waiting=self._batches.waited / seconds,
            seconds_left=seconds / steps * (settings.steps - state.step),
        )


def _initial_state(spec: ModelSpec, settings: FitSpec, device: Device) -> TrainingState:
    """Create the state of a training before its first step."""
    torch.manual_seed(settings.seed)
    affinities = len(affinity_offsets(spec, settings.affinity_reach)) if settings.affinity_weight else 0
    network = TrainingNetwork(spec, affinities).to(device)
    # With channels last, bfloat16 convolutions are several times faster on a CPU.
    network.to(memory_format=torch.channels_last if spec.planar else torch.channels_last_3d)  # type: ignore[call-overload]
    network.train()
    parameters, rate, decay = network.parameters(), settings.rate, settings.decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return TrainingState(network, optimizer, MovingAverage(network.network, settings.average), {})


def _validate(state: TrainingState, spec: ModelSpec, settings: FitSpec, tune: Sequence[ValidationVolume]) -> list[Logits]:
    """Score the averaged weights, keep them if they are the best so far, and return their logits."""
    network = state.average.network(spec)
    logits = [predict(network, sample.raw, settings.output) for sample in tune]
    truths = [sample.truth for sample in tune]
    if spec.classes:
        state.score = score_labels([found.argmax(axis=0) for found in logits], truths, settings.aim)
    else:
        state.score = channel_score(spec, logits, truths)
    state.stale += 1
    if state.score > state.best_score:
        state.best_score, state.stale = state.score, 0
        state.best = {name: value.clone() for name, value in state.average.weights.items()} if settings.patience else {}
    return logits
