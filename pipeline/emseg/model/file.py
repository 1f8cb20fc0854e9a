"""Model files: the weights of a network with its description; see `emseg.model.header` for the format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from emseg.errors import ModelError, OutputError
from emseg.model.header import description, open_model, parse_header
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file in memory."""

    spec: ModelSpec
    """The network."""
    card: dict[str, str]
    """Where it comes from: name, data, licence, split, scores, normalisation, voxel size ..."""
    digest: str
    """SHA-256 of the whole file, in hexadecimal."""
    weights: dict[str, Tensor] = field(repr=False, compare=False)
    """Each parameter by its name, float32; equal digests mean equal weights."""

    def network(self) -> UNet:
        """The network with its weights, in evaluation mode, float32, on the CPU; a new one at each call."""
        network = UNet(self.spec)
        network.load_state_dict(self.weights, strict=True)
        return network.eval()


def save_model(path: Path, network: UNet, card: Mapping[str, str]) -> None:
    """Write a model file; a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        Where to; by custom it ends in ``.safetensors``.
    network
        The network, with finite weights; they are stored as float32.
    card
        Where it comes from, as text by name.

    Raises
    ------
    ModelError
        If a weight is not finite, or a value of the card is not text.
    OutputError
        If the file cannot be written.
    """
    if odd := sorted(name for name, value in card.items() if not isinstance(value, str)):
        raise ModelError(f"a model's card is text by name, but {', '.join(odd)} is not: convert it to str")
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(weights, path)
    write_file(path, save(weights, description(network.spec, card)))


def load_model(path: Path) -> ModelFile:
    """A model file, read once and checked.

    Raises
    ------
    ModelError
        If the file is missing or truncated, is not a model file, disagrees with itself, or a weight is not finite.
    """
    with open_model(path) as file:
        parse_header(file, path.stat().st_size, path)  # what is no model may be too large to read
        file.seek(0)
        data = file.read()
    spec, card = parse_header(io.BytesIO(data), len(data), path)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file ({str(error)[:200]}): fetch it again") from error
    _check_finite(weights, path)
    return ModelFile(spec, card, hashlib.sha256(data).hexdigest(), weights)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees what was there before, or all of the new one.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): check its folder and the space left there") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"the weights {name} of {path} are not all finite: the training went astray, train again")
