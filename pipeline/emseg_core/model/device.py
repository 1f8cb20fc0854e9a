"""Devices that predictors run on: the CPU, or the GPU of their process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from emseg_core.errors import DeviceError

Device = Literal["cpu", "cuda"]
GPU_BINDING_VARIABLE = "EMSEG_GPU"
"""Environment variable that marks processes bound to the first of their visible GPUs, whatever device they compute on."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as seen by the process that uses it."""

    uuid: str
    name: str
    """Model name, such as ``NVIDIA H100 80GB HBM3``."""
    memory: int
    """Bytes that this process may use: free ones, and those it has reserved but does not use."""


def check_device(device: Device) -> None:
    """Reject a device that torch cannot use here, so that nothing silently falls back to the CPU.

    Parameters
    ----------
    device
        Device that was asked for.

    Raises
    ------
    DeviceError
        If torch is built without CUDA or finds no GPU.
    """
    if device == "cpu":
        return
    import torch  # takes seconds

    if torch.cuda.is_available():
        return
    why = "finds no usable GPU" if torch.backends.cuda.is_built() else "is built without CUDA"  # type: ignore[no-untyped-call]
    raise DeviceError(
        f"predictors should run on cuda, but torch {torch.__version__} {why} here: install torch for CUDA and the driver "
        "that it needs, or use --device cpu"
    )


def process_gpu(device: Device) -> Gpu | None:
    """Return the GPU that this process uses or is bound to.

    Parameters
    ----------
    device
        Device of the predictors in this process.

    Returns
    -------
    Gpu or None
        The GPU; None if the process computes on the CPU and is not bound to a GPU.

    Raises
    ------
    DeviceError
        If the device is ``cuda`` and torch finds no GPU, or the driver does not know the GPU that the process is bound to.
    """
    if device == "cuda":
        return _by_torch()
    return _by_driver(_visible()) if GPU_BINDING_VARIABLE in os.environ else None


def smallest_gpu_memory() -> int | None:
    """Return the total memory of the smallest GPU of this machine, without opening a CUDA context.

    Returns
    -------
    int or None
        Bytes; None if there is no driver or it lists no GPU.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return min((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles), default=None)
    except pynvml.NVMLError:
        return None


def gpu_overload(workers: Mapping[str, str], most: int) -> str:
    """Describe the first GPU that has more than `most` workers.

    Parameters
    ----------
    workers
        UUID of the GPU of each worker, by the worker's name.
    most
        Number of workers allowed on one GPU.

    Returns
    -------
    str
        An error message of one line; empty if no GPU has too many workers.
    """
    for uuid in dict.fromkeys(workers.values()):
        there = [worker for worker, theirs in workers.items() if theirs == uuid]
        if len(there) > most:
            return (
                f"the workers {' and '.join(there[: most + 1])} share the GPU {uuid}, but at most {most} may: give each its "
                f"own GPU, as --cluster cuda does, or allow it with --workers-per-gpu {len(there)}"
            )
    return ""


def _by_torch() -> Gpu:
    """Ask torch for the GPU, which opens a CUDA context."""
    import torch

    check_device("cuda")
    facts, visible = torch.cuda.get_device_properties("cuda"), _visible()
    free, _ = torch.cuda.mem_get_info()
    again = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return Gpu(visible if visible.startswith("MIG-") else f"GPU-{facts.uuid}", facts.name, free + again)


def _by_driver(visible: str) -> Gpu:
    """Ask the driver for the GPU, without CUDA in torch and without opening a CUDA context."""
    import pynvml  # comes with dask-cuda

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
    """Return the index or UUID of the first GPU that this process may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
