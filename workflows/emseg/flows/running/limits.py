"""Refuse what does not fit before a run starts: chunks and tiles too large for the memory, outputs too large for the disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from emseg.launch import tile_budget
from emseg.placement import Placement
from emseg_core.box import Triple
from emseg_core.errors import DeviceError, OutputError, PlanError, VolumeError
from emseg_core.grid.cost import Cost
from emseg_core.grid.layout import MAX_BLOCK_FLOPS, Limits
from emseg_core.grid.plan import Plan
from emseg_core.grid.symmetry import SYMMETRIES
from emseg_core.machine import usable_memory
from emseg_core.model.device import Device, Gpu, gpu_overload
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.place import Address, Place

LEAST_SPACE = 0.02
"""Share of the uncompressed output that must be free on the disk: labels are seldom compressed further than this."""
LEAST_OF_VOLUME = 0.01
"""The same share of a volume that is made of slices."""


def check_space(output: Place, output_bytes: int) -> None:
    """Refuse a disk that cannot hold even a well compressed output. The space of an object store is unknown.

    Parameters
    ----------
    output
        Place of the output.
    output_bytes
        Size of the output before compression, in bytes.

    Raises
    ------
    OutputError
        If less than `LEAST_SPACE` of `output_bytes` is free.
    """
    if isinstance(output, Address):
        return
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{output} cannot be made, as {parent} is not a folder: make that first")
    free = shutil.disk_usage(parent).free
    if free < LEAST_SPACE * output_bytes:
        raise OutputError(
            f"the output {output} has {output_bytes / 1e6:.1f} MB before compression, but only {free / 1e6:.1f} MB are free: "
            "make room, or choose another place with -o"
        )


def check_chunks(volume: VolumeSpec, path: Place, budget: int | None = None) -> None:
    """Refuse a volume of which one chunk alone fills half the memory: chunks are decompressed whole.

    Parameters
    ----------
    budget
        Bytes of memory that a worker may use; None for all that this machine has.

    Raises
    ------
    VolumeError
        If it is such a volume.
    """
    chunk = (volume.together, *volume.chunk)[volume.together == 1 :]
    size = math.prod(chunk) * volume.itemsize
    memory, owner = (usable_memory(), "this machine") if budget is None else (budget, "a worker")
    if size > memory // 2:
        raise VolumeError(
            f"a chunk of {path} has {' x '.join(map(str, chunk))} voxels, {size / 2**30:.1f} GiB, but {owner} has "
            f"{memory / 2**30:.1f} GiB of memory: write the volume again in smaller chunks"
            + ("" if budget is None else ", or use fewer workers")
        )


def check_claims(volume: VolumeSpec, part: Triple, name: str, target: Path, *, here: bool) -> None:
    """Refuse to make a volume that this machine cannot hold: a damaged source may claim any size.

    Parameters
    ----------
    part
        Shape (z, y, x) of what is in memory at once, in voxels.
    name
        Of the source, for the message.
    here
        Whether this process reads it, or others of this machine; who knows about those elsewhere?

    Raises
    ------
    VolumeError
        If a part does not fit into memory, or less than `LEAST_OF_VOLUME` of the volume is free on the disk.
    """
    lengths = tuple(map(min, part, volume.shape))
    size, memory = math.prod(lengths) * volume.itemsize, usable_memory()
    remedy = "copy it again if it should be smaller, else use"
    if here and size > memory // 2:
        raise VolumeError(
            f"of {name}, {' x '.join(map(str, lengths))} voxels are read at once, {size / 2**30:.1f} GiB, but this machine has "
            f"{memory / 2**30:.1f} GiB of memory: {remedy} one with more"
        )
    if not target.parent.is_dir():
        return  # another check reports what is wrong with that place
    free = shutil.disk_usage(target.parent).free
    if free < LEAST_OF_VOLUME * volume.nbytes:
        raise VolumeError(
            f"{name} has {' x '.join(map(str, volume.shape))} voxels, {volume.nbytes / 2**30:.1f} GiB, but "
            f"{free / 2**30:.1f} GiB are free in {target.parent}, too few however well compressed: {remedy} a larger disk"
        )


def check_memory(cost: Cost, memory: int | None, plan: Plan, workers: int) -> None:
    """Refuse a plan whose blocks do not fit the memory of a worker.

    Parameters
    ----------
    memory
        Bytes that each worker may use; None if that is not known.

    Raises
    ------
    PlanError
        If they do not fit.
    """
    if memory is None or cost.bytes_per_worker <= memory:
        return
    remedy = f"use fewer workers than {workers}" if workers > 1 else "use a machine with more"
    raise PlanError(
        f"a worker needs {cost.bytes_per_worker / 2**30:.1f} GiB of memory for tiles of {' x '.join(map(str, plan.tile))} "
        f"voxels, but has {memory / 2**30:.1f} GiB: {remedy}, or start over with --overwrite and a smaller --tile"
    )


def check_gpus(gpus: Mapping[str, Gpu], workers_per_gpu: int, cost: Cost, plan: Plan, device: Device) -> None:
    """Refuse workers that share a GPU without permission, and a plan whose batch does not fit into the GPU's free memory.

    Parameters
    ----------
    gpus
        The GPU of each worker that has one.
    workers_per_gpu
        Most workers that may share a GPU.
    device
        What predictors compute on; on the CPU, a batch takes nothing of a GPU.

    Raises
    ------
    DeviceError
        If workers share a GPU without permission.
    PlanError
        If weights and activations of one batch are more than is free.
    """
    if crowded := gpu_overload({worker: gpu.uuid for worker, gpu in gpus.items()}, workers_per_gpu):
        raise DeviceError(crowded)
    needed = cost.bytes_per_predictor
    for gpu in gpus.values() if device == "cuda" else ():
        sharing = sum(other.uuid == gpu.uuid for other in gpus.values())
        if needed > gpu.memory // sharing:
            remedy = f"with --workers-per-gpu 1 instead of {sharing}" if sharing > 1 else "on a GPU with more memory free"
            raise PlanError(
                f"a predictor needs {needed / 2**30:.1f} GiB for a batch of {plan.batch} tiles of "
                f"{' x '.join(map(str, plan.tile))} voxels, but the GPU {gpu.name} ({gpu.uuid}) has "
                f"{gpu.memory / sharing / 2**30:.1f} GiB free for it: run {remedy}, or start over with --overwrite and a "
                "smaller --tile"
            )


def limits_of(placement: Placement, threads: int, tta: bool) -> Limits:
    """Return what bounds the layout of a run; with test-time augmentation a block takes several times as long.

    Parameters
    ----------
    placement
        Where the blocks are to be computed.
    threads
        Number of threads of each worker.
    tta
        Whether the run uses test-time augmentation.

    Returns
    -------
    Limits
        Bounds on tiles and blocks.
    """
    symmetries = len(SYMMETRIES) if tta else 1
    return Limits(tile_budget(placement, threads, placement.computes_on), MAX_BLOCK_FLOPS // symmetries)
