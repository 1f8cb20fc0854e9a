"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emseg.box import Triple
from emseg.canary import canary_of
from emseg.errors import BlockError, DeviceError, MemoryShortageError
from emseg.grid.stitch import NOT_COMPUTED, QUANTA
from emseg.model.device import Device, check_device
from emseg.model.unet import UNet
from emseg.ports import Batch
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics, Precision

TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORTAGE = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
BROKEN = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS")


class TorchPredictor:
    """Predicts with a U-Net in the network's own type, its activations laid out channels last, which is faster.

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
        self._type = next(network.parameters()).dtype

    def numerics(self, tile: Triple) -> Numerics:
        """What decides the last bits of predictions, for a run with tiles of this shape (z, y, x) in voxels."""
        device = self._device
        hardware = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device)
        precision: Precision = str(self._type).removeprefix("torch.")  # type: ignore[assignment]
        return Numerics(f"torch {torch.__version__}", hardware, precision, self._threads, canary_of(self, tile))

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``.

        Raises
        ------
        MemoryShortageError
            If the device has too little memory.
        BlockError
            If the device is in an error from which only another process recovers.
        """
        try:
            logits: NDArray[np.float32] = self._logits(torch.from_numpy(tiles)).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            raise _explained(error) from error
        return logits

    def _logits(self, tiles: Tensor) -> Tensor:
        """Logits ``(n, classes, z', y', x')`` of tiles ``(n, z, y, x)``, in float32 or better, on the device."""
        if torch.get_num_threads() != self._threads:  # torch counts them for each calling thread
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            source = tiles.to(self._device, non_blocking=True)[:, None].to(self._type)
            logits: Tensor = self._network(source)
            return logits.to(torch.promote_types(self._type, torch.float32))


class CudaPredictor(TorchPredictor):
    """Predicts on a GPU, from which only bytes come back; the next tiles are sent there while the last ones are computed."""

    def classify(
        self, batches: Iterable[Batch], probabilities: bool
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8] | None]]:
        """What is stored of each batch, see `emseg.ports.Classifier`.

        Raises
        ------
        MemoryShortageError
            If the device has too little memory.
        BlockError
            If the device is in an error from which only another process recovers.
        """
        sent: tuple[Tensor, Tensor | None, torch.cuda.Event] | None = None
        try:
            for batch in batches:
                following = self._send(batch, probabilities)
                if sent is not None:
                    yield _received(*sent)
                sent = following
            if sent is not None:
                yield _received(*sent)
        except (RuntimeError, MemoryError) as error:
            raise _explained(error) from error

    def _send(self, batch: Batch, probabilities: bool) -> tuple[Tensor, Tensor | None, torch.cuda.Event]:
        """Labels and probabilities on their way back into pinned memory, and what happens when they have arrived."""
        with torch.inference_mode():
            voxels, mean, deviation = (
                torch.from_numpy(part).pin_memory().to(self._device, torch.float32, non_blocking=True) for part in batch
            )
            logits = self._logits(voxels.sub_(mean[..., None, None]).div_(deviation[..., None, None]))
            labels = logits.argmax(dim=1).to(torch.uint8)
            labels.masked_fill_(~logits.isfinite().all(dim=1), NOT_COMPUTED)
            stored = (logits.softmax(dim=1) * QUANTA).round_().to(torch.uint8) if probabilities else None
            back = [None if one is None else _pinned_copy(one) for one in (labels, stored)]
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return back[0], back[1], arrived  # type: ignore[return-value]


def _pinned_copy(values: Tensor) -> Tensor:
    """A copy on its way to the host; it may be read when what was queued before has ended."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _received(
    labels: Tensor, probabilities: Tensor | None, arrived: torch.cuda.Event
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    arrived.synchronize()
    return labels.numpy(), None if probabilities is None else probabilities.numpy()


def _explained(error: RuntimeError | MemoryError) -> Exception:
    """torch says with words alone what went wrong: too little memory, a broken device, or something else."""
    said = str(error).partition("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in SHORTAGE):
        return MemoryShortageError(said or "out of memory")
    if any(words in said for words in BROKEN):
        return BlockError(f"the device failed ({said}): its process is started anew", "device")
    return error
