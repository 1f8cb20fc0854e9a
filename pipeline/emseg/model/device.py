"""What predictors compute on: the CPU, or the GPU of their process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from emseg.errors import DeviceError

Device = Literal["cpu", "cuda"]
BOUND = "EMSEG_GPU"
"""Environment variable of processes that are bound to the first of their visible GPUs, whatever they compute on."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the process that it belongs to sees it."""

    uuid: str
    name: str
    """The model, ``NVIDIA H100 80GB HBM3``."""
    memory: int
    """Bytes that this process may still take, or has taken and may use again."""


def check_device(device: Device) -> None:
    """Refuse a device that torch cannot compute on here; nothing falls back to the CPU in silence.

    Raises
    ------
    DeviceError
        If there is none.
    """
    if device == "cpu":
        return
    import torch  # noqa: PLC0415  takes seconds

    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        why = "is built without CUDA"
    elif not torch.cuda.is_available():
        why = "finds no GPU that it can use"
    else:
        return
    raise DeviceError(
        f"predictors are to compute on cuda, but torch {torch.__version__} {why} here: install torch for CUDA and the driver "
        "that it needs, or use --device cpu"
    )


def own_gpu(device: Device) -> Gpu | None:
    """The GPU that predictors in this process compute on, or that the process is bound to; None if there is none.

    Raises
    ------
    DeviceError
        If there ought to be one.
    """
    if device == "cuda":
        return _by_torch()
    return _by_driver(_visible()) if BOUND in os.environ else None


def least_memory() -> int | None:
    """Bytes that the smallest GPU of this machine has in all; None if no driver tells of one. Opens no context."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except pynvml.NVMLError:
        return None


def crowding(workers: Mapping[str, str], most: int) -> str:
    """What is wrong if more than `most` workers are on one GPU, in one line; empty if nothing is.

    Parameters
    ----------
    workers
        UUID of the GPU of each worker.
    """
    for uuid in dict.fromkeys(workers.values()):
        there = [worker for worker, theirs in workers.items() if theirs == uuid]
        if len(there) > most:
            return (
                f"the workers {' and '.join(there[: most + 1])} are on one GPU, {uuid}, where {most} may be: give each a GPU "
                f"of its own, as --cluster cuda does, or allow it with --workers-per-gpu {len(there)}"
            )
    return ""


def _by_torch() -> Gpu:
    """Opens a context on the GPU."""
    import torch  # noqa: PLC0415

    check_device("cuda")
    facts, visible = torch.cuda.get_device_properties("cuda"), _visible()
    free, _ = torch.cuda.mem_get_info()
    again = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return Gpu(visible if visible.startswith("MIG-") else f"GPU-{facts.uuid}", facts.name, free + again)


def _by_driver(visible: str) -> Gpu:
    """Needs no torch for CUDA and opens no context."""
    import pynvml  # noqa: PLC0415  comes with dask-cuda

    try:
        pynvml.nvmlInit()
        if visible.isdecimal():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(visible.encode())
        free = int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
        return Gpu(str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)), free)
    except pynvml.NVMLError as error:
        raise DeviceError(f"this process is bound to the GPU {visible}, but the driver does not know it ({error})") from error


def _visible() -> str:
    """Index or UUID of the first GPU that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
