"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics


def numerics_here(threads: int, device: str = "cpu") -> Numerics:
    """The numerics of a `TorchPredictor` on this machine with this many threads."""
    if device == "cpu":
        hardware = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    else:
        hardware = torch.cuda.get_device_name(device)
    return Numerics(f"torch {torch.__version__}", hardware, "float32", threads)


class TorchPredictor:
    """Predicts with a U-Net in float32, its activations laid out channels last, which is faster on CPUs."""

    def __init__(self, network: UNet, device: str = "cpu") -> None:
        self.spec: ModelSpec = network.spec
        self._device = device
        self._network = network.eval().to(device)
        self._precision = next(network.parameters()).dtype
        if not network.spec.planar:
            self._network = self._network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        else:
            self._network = self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``."""
        with torch.inference_mode():
            source = torch.from_numpy(tiles)[:, None].to(self._device, self._precision)
            logits: NDArray[np.float32] = self._network(source).cpu().numpy()
        return logits


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads inside the ``with``, as many as the numerics of the run say."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
