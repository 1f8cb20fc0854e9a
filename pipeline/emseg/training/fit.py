"""The training loop."""

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

from emseg.errors import InputError
from emseg.model.device import Device
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.training.augment import Crop, Crops
from emseg.training.border import border_weights
from emseg.training.checkpoint import State, load_checkpoint, save_checkpoint
from emseg.training.feed import Feed, feeding
from emseg.training.loss import Sum, affinity_loss, affinity_offsets, weighted_cross_entropy
from emseg.training.network import Average, Trainee
from emseg.training.ranks import Ranks, joined
from emseg.training.source import Sample, Source
from emseg.training.spec import FitSpec, Progress, to_json
from emseg.training.validate import calibrate, predict, score_of
from emseg.truth import between

SMOOTHING = 0.98
"""Share that the mean loss keeps at each step."""

Logits = NDArray[np.float32]
Validated = Callable[[int, Sequence[Logits]], None]
"""Told the steps done, and the logits ``(classes, z, y, x)`` of each sample."""


class Batch:
    """A process's part of a step's crops, as tensors on its device."""

    def __init__(self, crops: Sequence[Crop], borders: Sequence[NDArray[np.float32]], device: Device) -> None:
        self.tiles, self.truth, self.segments = (
            torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*crops, strict=True)
        )
        self.border = torch.from_numpy(np.stack(borders)).to(device) if borders else None


@dataclass(frozen=True, slots=True)
class Lesson:
    """How the steps of a training are taken."""

    settings: FitSpec
    crops: Crops
    device: Device
    ranks: Ranks

    def batch(self, step: int) -> Batch:
        """What this process learns from in a step; drawn from the seed, the step and the tile's place in the batch alone."""
        settings = self.settings
        crops = [
            self.crops.draw(np.random.default_rng((settings.seed, step, tile))) for tile in self.ranks.share(settings.batch)
        ]
        borders = []
        if settings.border_weight:
            for crop in crops:
                inside = np.where(between(crop.truth), crop.segments, 0)
                borders.append(settings.border_weight * border_weights(inside, settings.border_width))
        return Batch(crops, borders, self.device)

    def take(self, network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, step: int) -> float:
        """Take a step, and tell its loss."""
        settings = self.settings
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, step, self.ranks.rank)).generate_state(1)[0]))  # dropout
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits, affinities = network(batch.tiles[:, None].to(memory_format=torch.channels_last_3d))
        weights = torch.tensor(settings.class_weights, device=self.device)
        loss = self._mean(weighted_cross_entropy(logits, batch.truth, weights, batch.border))
        if affinities is not None:
            offsets = affinity_offsets(self.crops.spec, settings.affinity_reach)
            found = affinity_loss(affinities, batch.truth, batch.segments, offsets)
            loss = loss + settings.affinity_weight * self._mean(found)
        shared = loss * self.ranks.count  # gradients become means over the processes
        shared.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(self.ranks.sum(loss.detach()))

    def _mean(self, part: Sum) -> Tensor:
        """This process's part of the mean over the whole batch."""
        return Sum(part.total, self.ranks.sum(part.counted)).mean


def fit(
    spec: ModelSpec,
    settings: FitSpec,
    sources: Sequence[Source],
    tune: Sequence[Sample],
    *,
    device: Device = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    on_begun: Callable[[], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_validated: Validated | None = None,
) -> tuple[UNet | None, float]:
    """A trained network, in evaluation mode on its device, and its score on `tune`; None in a process that does not lead.

    What a step draws follows from the seed and the step, so a training that was stopped and resumed goes on as if it had
    not been. At the end biases are shifted so that the most likely class gives the best score on `tune`. Where ``torchrun``
    has started several processes, each takes a part of every batch; the first one validates, and calls back.

    Parameters
    ----------
    spec
        The network.
    settings
        How it is trained.
    sources
        What it learns from.
    tune
        What it is validated and its biases chosen on.
    device
        What it is trained on, ``cpu`` or ``cuda``.
    checkpoint
        File that holds the state after each validation; None keeps none.
    resume
        Go on from the checkpoint, where there is one.
    identity
        What else, as JSON values, a checkpoint must agree on to be resumed: the data, say.
    on_begun
        Called before the first step, when nothing can be refused any more.
    on_progress
        Called after each step.
    on_validated
        Called after each validation.

    Raises
    ------
    InputError
        If the checkpoint is of another training, or the batch cannot be shared by the processes.
    """
    identity = {"model": spec.to_json(), "fit": to_json(settings), **(identity or {})}
    with joined(device) as ranks, torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        state = _begin(spec, settings, device)
        if resume and checkpoint is not None and checkpoint.exists():
            load_checkpoint(checkpoint, state, identity)
        if (step := ranks.told(state.step)) != state.step:
            raise InputError(
                f"the first process goes on from step {step}, this one from {state.step}: {checkpoint} must be seen by all"
            )
        lesson = Lesson(settings, Crops(sources, spec, settings.output, settings.augment), device, ranks)
        ranks.share(settings.batch)
        if on_begun is not None and ranks.leads:
            on_begun()
        network = ranks.wrap(state.network)
        with feeding(lesson.batch, range(state.step, settings.steps)) as feed:
            pace = Pace(settings, state.step, feed)
            while state.step < settings.steps and not _ends(state, settings):
                pace.take(lesson.take(network, state.optimizer, next(feed), state.step))
                state.step += 1
                state.average.update(state.step)
                if state.step % settings.validate_every == 0 or state.step == settings.steps:
                    if ranks.leads:
                        logits = _validate(state, spec, settings, tune)
                        if checkpoint is not None:
                            save_checkpoint(checkpoint, state, identity)
                        if on_validated is not None:
                            on_validated(state.step, logits)
                    state.stale = ranks.told(state.stale)
                if on_progress is not None and ranks.leads:
                    on_progress(pace.progress(state))
        if not ranks.leads:
            return None, 0.0
        if settings.patience:
            state.average.load(state.best)
        trained = state.average.network(spec)
        return trained, calibrate(trained, tune, settings.output, settings.aim)


class Pace:
    """How fast a training goes."""

    def __init__(self, settings: FitSpec, first: int, feed: Feed[Batch]) -> None:
        self._settings = settings
        self._first = first
        self._feed = feed
        self._began = perf_counter()
        self._loss: float | None = None

    def take(self, loss: float) -> None:
        """Take note of a step's loss."""
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss

    def progress(self, state: State) -> Progress:
        """Where the training is."""
        settings, seconds, steps = self._settings, perf_counter() - self._began, state.step - self._first
        return Progress(
            step=state.step,
            steps=settings.steps,
            loss=self._loss or 0.0,
            score=state.score,
            rate=settings.rate_at(state.step - 1),
            tiles_per_second=steps * settings.batch / seconds,
            waiting=self._feed.waited / seconds,
            seconds_left=seconds / steps * (settings.steps - state.step),
        )


def _begin(spec: ModelSpec, settings: FitSpec, device: Device) -> State:
    """A training before its first step."""
    torch.manual_seed(settings.seed)
    affinities = len(affinity_offsets(spec, settings.affinity_reach)) if settings.affinity_weight else 0
    network = Trainee(spec, affinities).to(device)
    # With channels last, bfloat16 convolutions are several times faster on a CPU.
    network.to(memory_format=torch.channels_last if spec.planar else torch.channels_last_3d)  # type: ignore[call-overload]
    network.train()
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
    else:
        optimizer = torch.optim.SGD(
            network.parameters(), lr=settings.rate, momentum=settings.momentum, weight_decay=settings.decay
        )
    return State(network, optimizer, Average(network.network, settings.average), {})


def _validate(state: State, spec: ModelSpec, settings: FitSpec, tune: Sequence[Sample]) -> list[Logits]:
    """The logits of the mean weights, which are scored, and kept if they are the best so far."""
    network = state.average.network(spec)
    logits = [predict(network, sample.raw, settings.output) for sample in tune]
    state.score = score_of([found.argmax(axis=0) for found in logits], [sample.truth for sample in tune], settings.aim)
    state.stale += 1
    if state.score > state.best_score:
        state.best_score, state.stale = state.score, 0
        state.best = {name: value.clone() for name, value in state.average.weights.items()} if settings.patience else {}
    return logits


def _ends(state: State, settings: FitSpec) -> bool:
    """Whether the training has not got better for too long."""
    return bool(settings.patience) and state.stale >= settings.patience
