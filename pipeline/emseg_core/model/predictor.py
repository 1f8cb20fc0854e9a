"""Run networks in torch; implements `emseg_core.ports.Predictor` with NumPy arrays."""

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

from emseg_core.errors import BlockError, DeviceError, MemoryShortageError
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA
from emseg_core.model.adapter import AdaptedNetwork, with_channels
from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.device import Device, check_device
from emseg_core.model.unet import UNet
from emseg_core.ports import Batch, StoredValues
from emseg_core.specs.heads import parts_of
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Precision

# Activations of hundreds of megabytes are allocated and freed all the time: with small pages, the system would spend a fifth
# of the time on them. torch reads this variable at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Layout of weights by their number of axes; networks that take slices may have weights of both."""
MAX_RECORDED_SHAPES = 2
"""Number of batch shapes for which recorded kernels are kept; a run has one."""
MAX_GPU_MEMORY_FRACTION = 0.25
"""Fraction of a GPU's memory that a predictor may use, even if more is free."""
OUT_OF_MEMORY_MESSAGES = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
DEVICE_FAILURE_MESSAGES = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS")


class TorchPredictor(BasePredictor):
    """Predictor that runs a network in torch, with activations in channels-last layout for speed.

    Parameters
    ----------
    network
        The network, whose weights are moved to the device. A U-Net computes in the type of its weights.
    threads
        Number of threads that run it on a CPU.
    device
        Device that runs it.

    Raises
    ------
    DeviceError
        If torch cannot use the device here, or the network does not fit in its memory.
    """

    def __init__(self, network: UNet | AdaptedNetwork, threads: int, device: Device = "cpu") -> None:
        check_device(device)
        if device == "cuda":  # otherwise convolutions round to 10 bits, and benchmarks choose their algorithms
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
            # cuDNN chooses an algorithm whose workspace fits in the free memory, so without a fixed limit the last bits
            # would depend on what else runs on the GPU.
            torch.cuda.set_per_process_memory_fraction(MAX_GPU_MEMORY_FRACTION)
        self.spec: NetworkSpec = network.spec
        self._threads = threads
        self._device = device
        try:
            self._network = network.eval().to(device)
            for weight in self._network.parameters():
                if layout := LAYOUTS.get(weight.dim()):
                    weight.data = weight.data.to(memory_format=layout)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise DeviceError(f"the network cannot be moved to {device} ({said}): free its memory, or use another") from error
        self._type = next(network.parameters()).dtype
        hardware = torch.backends.cpu.get_cpu_capability() if device == "cpu" else torch.cuda.get_device_name(device)
        precision: Precision = str(self._type).removeprefix("torch.")  # type: ignore[assignment]
        if isinstance(network, AdaptedNetwork):
            precision = network.precision
        super().__init__(f"torch {torch.__version__}", hardware, precision, threads)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the logits of tiles; see `emseg_core.model.base_predictor.BasePredictor.predict`.

        Raises
        ------
        MemoryShortageError
            If the device has too little memory.
        BlockError
            If the device is in an error state that only a new process recovers from.
        """
        try:
            logits: NDArray[np.float32] = self._logits(torch.from_numpy(tiles)).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            raise _explained(error) from error
        return logits

    def _logits(self, tiles: Tensor) -> Tensor:
        """Compute all heads ``(n, channels, z', y', x')`` of tiles on the device, in float32 or better."""
        if torch.get_num_threads() != self._threads:  # torch keeps this number per calling thread
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            source = with_channels(tiles.to(self._device, non_blocking=True)).to(self._type)
            logits: Tensor = self._network(source)
            logits = logits.to(torch.promote_types(self._type, torch.float32))
            if isinstance(self._network, UNet):  # other networks have applied their activations
                for head, part in parts_of(self.spec.heads):
                    if head.activation == "sigmoid logits":
                        # A sigmoid would hide that a network overflows.
                        logits[:, part] = logits[:, part].sigmoid().where(logits[:, part].isfinite(), torch.nan)
            return logits


class CudaPredictor(TorchPredictor):
    """Predictor on a GPU that copies back only the stored bytes, and sends the next batch while the last one is computed.

    The kernels for a shape of batches are recorded once as a CUDA graph and launched together. Launched one by one from
    Python, which also runs the threads that read and write, they would not keep a fast GPU busy.

    Parameters
    ----------
    network
        The network, whose weights are moved to the GPU.
    threads
        Number of threads of torch on the CPU.
    """

    def __init__(self, network: UNet | AdaptedNetwork, threads: int) -> None:
        super().__init__(network, threads, "cuda")
        self._recordings: OrderedDict[tuple[Any, ...], Recording] = OrderedDict()

    def classify(self, batches: Iterable[Batch], probabilities: bool) -> Iterator[StoredValues]:
        """Compute the labels and probabilities to store for each batch; see `emseg_core.ports.Classifier`.

        Parameters
        ----------
        batches
            Voxels with their mean and deviation.
        probabilities
            Whether probabilities are wanted.

        Yields
        ------
        labels : NDArray
            Class of each voxel, ``(n, z', y', x') uint8``.
        probabilities : NDArray or None
            Quantised probabilities, ``(n, classes, z', y', x') uint8``.

        Raises
        ------
        MemoryShortageError
            If the device has too little memory.
        BlockError
            If the device is in an error state that only a new process recovers from.
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
        """Launch a batch; return its labels and probabilities in pinned memory, and the event of their arrival there."""
        with torch.inference_mode():
            recording = self._recording(batch, probabilities)
            for buffer, array in zip(recording.batch, batch, strict=True):
                buffer.copy_(torch.from_numpy(array).pin_memory(), non_blocking=True)
            recording.graph.replay()
            labels = _pinned_copy(recording.labels)
            stored = None if recording.probabilities is None else _pinned_copy(recording.probabilities)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        return labels, stored, arrived

    def _recording(self, batch: Batch, probabilities: bool) -> Recording:
        """Return the recorded kernels for batches of this shape, recording them if needed."""
        key = (batch.voxels.shape, batch.voxels.dtype, probabilities)
        if key not in self._recordings:
            while len(self._recordings) >= MAX_RECORDED_SHAPES:
                self._recordings.popitem(last=False)
            buffers = [torch.from_numpy(array).to(self._device) for array in batch]
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                self._stored(buffers, probabilities)  # libraries must be initialised before the recording
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                labels, stored = self._stored(buffers, probabilities)
            self._recordings[key] = Recording(buffers, graph, labels, stored)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def _stored(self, buffers: list[Tensor], probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the labels and probabilities to store for a batch on the GPU."""
        voxels, mean, deviation = (buffer.to(torch.float32) for buffer in buffers)
        logits = self._logits((voxels - mean[..., None, None]) / deviation[..., None, None])
        labels = logits.argmax(dim=1).to(torch.uint8)
        labels.masked_fill_(~logits.isfinite().all(dim=1), NOT_COMPUTED)
        return labels, (logits.softmax(dim=1) * QUANTA).round_().to(torch.uint8) if probabilities else None


@dataclass(frozen=True, slots=True)
class Recording:
    """Recorded kernels for one shape of batches, with their input and output buffers on the GPU."""

    batch: list[Tensor]
    """Input: voxels, mean and deviation, as in `emseg_core.ports.Batch`."""
    graph: torch.cuda.CUDAGraph
    labels: Tensor
    probabilities: Tensor | None


def _pinned_copy(values: Tensor) -> Tensor:
    """Start a copy to pinned memory, which may be read when all work queued before on the GPU has finished."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _received(labels: Tensor, probabilities: Tensor | None, arrived: torch.cuda.Event) -> StoredValues:
    """Wait for the results of a batch and return them as arrays."""
    arrived.synchronize()
    return labels.numpy(), None if probabilities is None else probabilities.numpy()


def _explained(error: RuntimeError | MemoryError) -> Exception:
    """Classify an error of torch by its message: too little memory, a broken device, or something else."""
    said = str(error).partition("\n")[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in OUT_OF_MEMORY_MESSAGES):
        return MemoryShortageError(said or "out of memory")
    if any(words in said for words in DEVICE_FAILURE_MESSAGES):
        return BlockError(f"the device failed ({said}): its process is restarted", "device")
    return error
