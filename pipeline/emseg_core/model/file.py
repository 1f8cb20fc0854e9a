"""Read and write model files, which hold a network's weights and description; `emseg_core.model.header` has the format."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from emseg_core.errors import ModelError, OutputError
from emseg_core.model.header import header_metadata, open_model, parse_header
from emseg_core.specs.model import ModelSpec

if TYPE_CHECKING:
    from emseg_core.model.unet import UNet


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file in memory."""

    spec: ModelSpec
    """The network."""
    card: dict[str, str]
    """Origin of the model: name, data, licence, split, scores, normalisation, voxel size ..."""
    digest: str
    """SHA-256 of the whole file, in hexadecimal."""
    weights: dict[str, NDArray[np.float32]] = field(repr=False, compare=False)
    """Parameters by name, float32. They are not compared, because equal digests mean equal weights."""

    def network(self) -> UNet:
        """Build a new network with these weights.

        Returns
        -------
        UNet
            The network in evaluation mode, float32, on the CPU.
        """
        import torch  # takes seconds

        from emseg_core.model.unet import UNet

        network = UNet(self.spec)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()}, strict=True)
        return network.eval()


def save_model(path: Path, network: UNet, card: Mapping[str, str]) -> None:
    """Write a model file atomically: a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        Path of the file, by convention with the suffix ``.safetensors``.
    network
        The network, with finite weights; they are stored as float32.
    card
        Origin of the model, as text by name.

    Raises
    ------
    ModelError
        If a weight is not finite, or a value of the card is not text.
    OutputError
        If the file cannot be written.
    """
    if odd := sorted(name for name, value in card.items() if not isinstance(value, str)):
        raise ModelError(f"the values of a model's card must be text, but {', '.join(odd)} is not: convert it to str")
    weights = weights_of(network)
    _check_finite(weights, path)
    write_file(path, save(weights, header_metadata(network.spec, card)))


def load_model(path: Path) -> ModelFile:
    """Read and check a model file.

    Parameters
    ----------
    path
        Path of the model file.

    Returns
    -------
    ModelFile
        The model, read in one pass, so that the weights and the digest belong together.

    Raises
    ------
    ModelError
        If the file is missing or truncated, is not a model file, is inconsistent, or has a weight that is not finite.
    """
    with open_model(path) as file:
        parse_header(file, path.stat().st_size, path)  # a file that is not a model may be too large to read
        file.seek(0)
        data = file.read()
    spec, card = parse_header(io.BytesIO(data), len(data), path)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file ({str(error)[:200]}): download it again") from error
    _check_finite(weights, path)
    return ModelFile(spec, card, hashlib.sha256(data).hexdigest(), weights)


def weights_of(network: UNet) -> dict[str, NDArray[np.float32]]:
    """Copy the weights of a network.

    Returns
    -------
    dict of str to NDArray
        Parameters by name, float32.
    """
    return {name: tensor.detach().cpu().float().contiguous().numpy() for name, tensor in network.state_dict().items()}


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees the old content or all of the new one.

    Parameters
    ----------
    path
        Path of the file.
    data
        Content of the file.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): check its folder and the free disk space") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def _check_finite(weights: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    """Reject weights that are NaN or infinite."""
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ModelError(f"the weights {name} of {path} are not all finite: the training diverged, train again")
