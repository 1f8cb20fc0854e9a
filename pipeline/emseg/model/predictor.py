"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Triple
from emseg.canary import canary_of
from emseg.errors import BlockError, DeviceError, MemoryShortageError
from emseg.model.device import Device, check_device
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics

SHORTAGE = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
BROKEN = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS")


class TorchPredictor:
    """Predicts with a U-Net in float32, its activations laid out channels last, which is faster on CPUs.

    Raises
    ------
    DeviceError
        If torch cannot compute on the device here, or the network does not fit it.
    """

    def __init__(self, network: UNet, threads: int, device: Device = "cpu") -> None:
        check_device(device)
        if device == "cuda":  # else convolutions round to 10 bits, and their algorithms are picked by a race
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.spec: ModelSpec = network.spec
        self._threads = threads
        self._device = device
        layout = torch.channels_last if network.spec.planar else torch.channels_last_3d
        try:
            self._network = network.eval().to(device).to(memory_format=layout)  # type: ignore[call-overload]
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise DeviceError(f"the network cannot be put on {device} ({said}): free the device, or use another") from error
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
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in SHORTAGE):
        return MemoryShortageError(said or "out of memory")
    if any(words in said for words in BROKEN):
        return BlockError(f"the device failed ({said}): its process is started anew", "device")
    return error
