"""The state of a training in one safetensors file: no pickle, replaced in one step, refused if it is of another training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from emseg.errors import InputError
from emseg.model.file import write_file
from emseg.model.unet import UNet

KEY = "emseg-training"


def save_checkpoint(
    path: Path, network: UNet, optimizer: torch.optim.AdamW, settings: Mapping[str, Any], step: int, f1: float | None
) -> None:
    """Write weights and optimiser after `step` steps; a reader sees the old file or the new one, never a part.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
    header = json.dumps({"settings": settings, "step": step, "f1": f1})
    write_file(path, save(tensors, {KEY: header}))


def load_checkpoint(
    path: Path, network: UNet, optimizer: torch.optim.AdamW, settings: Mapping[str, Any]
) -> tuple[int, float | None]:
    """Steps done and the latest F1; the weights and the optimiser's state are put in place.

    Raises
    ------
    InputError
        If the file is not a checkpoint, or one of another network, data or settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[KEY])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint of a training ({error}): remove it, or train without --resume") from error
    if changed := _changes(header["settings"], json.loads(json.dumps(settings))):
        raise InputError(f"{path} was trained with other settings: {changed}; restore them, or train without --resume")
    network.load_state_dict({name: tensors[f"weights.{name}"] for name in network.state_dict()})
    step = int(header["step"])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{name}"]),
            "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{name}"]),
        }
    return step, header["f1"]


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, after = _flat(then), _flat(now)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)} is now {after.get(name)}" for name in names)


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Each setting by its full name: ``fit.augment.noise``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat
