"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Triple
from emseg.canary import canary_of
from emseg.errors import BlockError, MemoryShortageError
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics


class TorchPredictor:
    """Predicts with a U-Net in float32, its activations laid out channels last, which is faster on CPUs."""

    def __init__(self, network: UNet, threads: int, device: str = "cpu") -> None:
        self.spec: ModelSpec = network.spec
        self._threads = threads
        self._device = device
        layout = torch.channels_last if network.spec.planar else torch.channels_last_3d
        self._network = network.eval().to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._precision = next(network.parameters()).dtype

    def numerics(self, tile: Triple) -> Numerics:
        """What decides the last bits of predictions, for a run with tiles of this shape (z, y, x) in voxels."""
        device = self._device
        hardware = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device)
        return Numerics(f"torch {torch.__version__}", hardware, "float32", self._threads, canary_of(self, tile))

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``.

        Raises
        ------
        MemoryShortageError
            If the device has too little memory.
        BlockError
            If the device is in an error from which only another process recovers.
        """
        if torch.get_num_threads() != self._threads:  # torch counts them for each calling thread
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                source = torch.from_numpy(tiles)[:, None].to(self._device, self._precision)
                logits: NDArray[np.float32] = self._network(source).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            raise _explained(error) from error
        return logits


def _explained(error: RuntimeError | MemoryError) -> Exception:
    """torch says with words alone what went wrong: too little memory, a broken device, or something else."""
    said = str(error).partition("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said:
        return MemoryShortageError(said or "out of memory")
    if "CUDA error" in said:
        return BlockError(f"the device failed ({said}): its process is started anew", "device")
    return error
