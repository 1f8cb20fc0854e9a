"""Save and load the state of a training in one safetensors file, without pickle and with a check of its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from emseg_core.errors import InputError
from emseg_core.model.file import write_file
from emseg_core.recipe import flattened
from emseg_core.training.network import MovingAverage

METADATA_KEY = "emseg-training"


@dataclass
class TrainingState:
    """State of a training between two steps."""

    network: nn.Module
    """Network being trained."""
    optimizer: torch.optim.Optimizer
    """Optimiser of its parameters."""
    average: MovingAverage
    """Moving average of its weights."""
    best: dict[str, Tensor]
    """Averaged weights at the best validation."""
    step: int = 0
    """Number of steps done."""
    score: float | None = None
    """Score of the latest validation; None before the first."""
    best_score: float = float("-inf")
    """Score of the best validation."""
    stale: int = 0
    """Number of validations since the best one."""


def save_checkpoint(path: Path, state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Write the state of a training atomically: a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        Path of the checkpoint.
    state
        State of the training.
    settings
        JSON values that must be the same when it is resumed.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    parts = {"weights": state.network.state_dict(), "average": state.average.weights, "best": state.best}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    for name, parameter in state.network.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
    numbers = {"step": state.step, "score": state.score, "best_score": state.best_score, "stale": state.stale}
    held = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_file(path, save(held, {METADATA_KEY: json.dumps({"settings": settings, **numbers})}))


def load_checkpoint(path: Path, state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Restore the state of a training in place.

    Parameters
    ----------
    path
        Path of the checkpoint.
    state
        State that is overwritten.
    settings
        JSON values that must be those saved in the checkpoint.

    Raises
    ------
    InputError
        If the file is not a checkpoint, or belongs to another network, data or settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a training checkpoint ({error}): remove it, or train without --resume") from error
    if changed := _changes(header["settings"], json.loads(json.dumps(settings))):
        raise InputError(
            f"{path} was trained with other settings ({changed}): restore the former ones, or train without --resume"
        )
    state.network.load_state_dict(_under(tensors, "weights."))
    state.average.load(_under(tensors, "average."))
    state.best = _under(tensors, "best.")
    state.step, state.score = int(header["step"]), header["score"]
    state.best_score, state.stale = float(header["best_score"]), int(header["stale"])
    keys = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
    for name, parameter in state.network.named_parameters():
        state.optimizer.state[parameter] = {
            key: tensors[f"optimizer.{key}.{name}"] if key == "step" else _like(parameter, tensors[f"optimizer.{key}.{name}"])
            for key in sorted(keys)
        }


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors with a prefix, and strip it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy a value to the device and memory format of a parameter, since another format would change the last bits."""
    return torch.empty_like(parameter).copy_(value)


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the settings that differ; empty if none does."""
    before, after = dict(flattened(then)), dict(flattened(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} was {before.get(name)}, now {after.get(name)}" for name in names)
