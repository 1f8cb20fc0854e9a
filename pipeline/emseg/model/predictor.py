"""A network on a device, behind the `Predictor` port: NumPy in, NumPy out."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emseg.box import Triple
from emseg.canary import canary_of
from emseg.errors import BlockError, DeviceError, MemoryShortageError
from emseg.grid.stitch import NOT_COMPUTED, QUANTA
from emseg.model.adapted import AdaptedNetwork
from emseg.model.device import Device, check_device
from emseg.model.unet import UNet
from emseg.ports import Batch
from emseg.specs.network import NetworkSpec
from emseg.specs.numerics import Numerics, Precision

# Activations are hundreds of megabytes that come and go: in small pages, the system would spend a fifth of the time on them.
# torch looks at this when it allocates for the first time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
TYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = 2
"""Shapes of batches for which kernels are kept recorded: a run has one."""
SHARE = 0.25
"""Part of a GPU's memory that a predictor may take, whatever else is free there."""
SHORTAGE = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
BROKEN = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS")


class TorchPredictor:
    """Predicts with a U-Net in the network's own type, its activations laid out channels last, which is faster.

    Raises
    ------
    DeviceError
        If torch cannot compute on the device here, or the network does not fit it.
    """

    def __init__(self, network: UNet | AdaptedNetwork, threads: int, device: Device = "cpu") -> None:
        check_device(device)
        if device == "cuda":  # else convolutions round to 10 bits, and their algorithms are picked by a race
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
            # cuDNN takes the algorithm that its workspace has room for, so without a bound of ours the last bits would
            # depend on what else is on the GPU
            torch.cuda.set_per_process_memory_fraction(SHARE)
        self.spec: NetworkSpec = network.spec
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
    """Predicts on a GPU, from which only bytes come back; the next tiles are sent there while the last ones are computed.

    All kernels for a shape of tiles are recorded once and then launched together: one by one, Python would not keep a fast
    GPU busy, as little as its threads that read and write leave it.
    """

    def __init__(self, network: UNet | AdaptedNetwork, threads: int) -> None:
        super().__init__(network, threads, "cuda")
        self._recordings: OrderedDict[tuple[Any, ...], Recording] = OrderedDict()

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
            recording = self._recording(batch, probabilities)
            for place, part in zip(recording.batch, batch, strict=True):
                place.copy_(torch.from_numpy(part).pin_memory(), non_blocking=True)
            recording.graph.replay()
            labels = _pinned_copy(recording.labels)
            stored = None if recording.probabilities is None else _pinned_copy(recording.probabilities)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return labels, stored, arrived

    def _recording(self, batch: Batch, probabilities: bool) -> Recording:
        """What is computed of batches of this shape."""
        key = (batch.voxels.shape, batch.voxels.dtype, probabilities)
        if key not in self._recordings:
            while len(self._recordings) >= SHAPES:
                self._recordings.popitem(last=False)
            places = [torch.from_numpy(part).to(self._device) for part in batch]
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                self._stored(places, probabilities)  # libraries get ready outside the recording
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                labels, stored = self._stored(places, probabilities)
            self._recordings[key] = Recording(places, graph, labels, stored)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def _stored(self, places: list[Tensor], probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Labels and probabilities of a batch that is on the GPU."""
        voxels, mean, deviation = (place.to(torch.float32) for place in places)
        logits = self._logits((voxels - mean[..., None, None]) / deviation[..., None, None])
        labels = logits.argmax(dim=1).to(torch.uint8)
        labels.masked_fill_(~logits.isfinite().all(dim=1), NOT_COMPUTED)
        return labels, (logits.softmax(dim=1) * QUANTA).round_().to(torch.uint8) if probabilities else None


@dataclass(frozen=True, slots=True)
class Recording:
    """The kernels that make what is stored of a batch, and the places on the GPU where one is put and the other found."""

    batch: list[Tensor]
    """Voxels, mean and deviation, as in `emseg.ports.Batch`."""
    graph: torch.cuda.CUDAGraph
    labels: Tensor
    probabilities: Tensor | None


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
