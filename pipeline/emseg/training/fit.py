"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emseg.metrics.membrane import f1
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.training.augment import Crops
from emseg.training.checkpoint import load_checkpoint, save_checkpoint
from emseg.training.loss import weighted_cross_entropy
from emseg.training.spec import FitSpec, Progress, to_json
from emseg.training.validate import calibrate, predict

SMOOTHING = 0.98
"""Share that the mean loss keeps at each step."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A volume with its truth."""

    raw: NDArray[np.float32]
    """Normalised grey values, ``(z, y, x) float32``."""
    truth: NDArray[np.uint8]
    """Class of each voxel, ``(z, y, x) uint8``; 255 is ignored."""


def fit(
    spec: ModelSpec,
    settings: FitSpec,
    train: Sample,
    tune: Sample,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[UNet, float]:
    """A trained network, in evaluation mode, and its F1 on `tune`.

    Each step draws from a generator seeded by (seed, step), so a training that was stopped and resumed goes on as if
    it had not been. At the end the membrane's bias is shifted so that the most likely class gives the best F1 on `tune`.

    Parameters
    ----------
    spec
        The network.
    settings
        How it is trained.
    train, tune
        What it learns from, and what it is validated and its bias chosen on.
    checkpoint
        File that holds the state after each validation; None keeps none.
    resume
        Go on from the checkpoint, where there is one.
    identity
        What else, as JSON values, a checkpoint must agree on to be resumed: the data, say.
    on_progress
        Called after each step.

    Raises
    ------
    InputError
        If the checkpoint is of another training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = UNet(spec)
        network.to(memory_format=_layout(spec))  # type: ignore[call-overload]
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.decay)
        identity = {"model": spec.to_json(), "fit": to_json(settings), **(identity or {})}
        done, score = 0, None
        if resume and checkpoint is not None and checkpoint.exists():
            done, score = load_checkpoint(checkpoint, network, optimizer, identity)
        crops = Crops(train.raw, train.truth, spec, settings.output, settings.augment)
        mean, started, first = None, time.monotonic(), done
        while done < settings.steps:
            loss = _step(network, optimizer, crops, settings, done)
            mean = loss if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * loss
            done += 1
            if done % settings.validate_every == 0 or done == settings.steps:
                score = f1(predict(network, tune.raw, settings.output).argmax(axis=0), tune.truth)
                if checkpoint is not None:
                    save_checkpoint(checkpoint, network, optimizer, identity, done, score)
            if on_progress is not None:
                left = (time.monotonic() - started) / (done - first) * (settings.steps - done)
                on_progress(Progress(done, settings.steps, mean, score, left))
    return network.eval(), calibrate(network, tune.raw, tune.truth, settings.output)


def _step(network: UNet, optimizer: torch.optim.AdamW, crops: Crops, settings: FitSpec, step: int) -> float:
    """The loss of one step, which is also taken."""
    rng = np.random.default_rng((settings.seed, step))
    torch.manual_seed(int(rng.integers(2**63)))  # dropout
    pairs = [crops.draw(rng) for _ in range(settings.batch)]
    tiles = torch.from_numpy(np.stack([tile for tile, _ in pairs])[:, None])
    truth = torch.from_numpy(np.stack([truth for _, truth in pairs]))
    for group in optimizer.param_groups:
        group["lr"] = settings.rate_at(step)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
        logits: Tensor = network(tiles.to(memory_format=_layout(network.spec, tiles=True)))
    loss = weighted_cross_entropy(logits, truth, torch.tensor(settings.class_weights))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


def _layout(spec: ModelSpec, *, tiles: bool = False) -> torch.memory_format:
    """Channels last, with which bfloat16 convolutions are several times faster on a CPU; tiles always have five axes."""
    return torch.channels_last if spec.planar and not tiles else torch.channels_last_3d
