"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics


def numerics_here(threads: int, device: str = "cpu") -> Numerics:
    """The numerics of a `TorchPredictor` on this machine with this many threads."""
    hardware = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device)
    return Numerics(f"torch {torch.__version__}", hardware, "float32", threads)


class TorchPredictor:
    """Predicts with a U-Net in float32, its activations laid out channels last, which is faster on CPUs."""

    def __init__(self, network: UNet, threads: int, device: str = "cpu") -> None:
        self.spec: ModelSpec = network.spec
        self._threads = threads
        self._device = device
        layout = torch.channels_last if network.spec.planar else torch.channels_last_3d
        self._network = network.eval().to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._precision = next(network.parameters()).dtype

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``."""
        if torch.get_num_threads() != self._threads:  # torch counts them for each calling thread
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            source = torch.from_numpy(tiles)[:, None].to(self._device, self._precision)
            logits: NDArray[np.float32] = self._network(source).cpu().numpy()
        return logits
