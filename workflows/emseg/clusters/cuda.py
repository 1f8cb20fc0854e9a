"""A Dask cluster with a worker process for each GPU of this machine, by dask-cuda; no other user has access."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
from dask_cuda import LocalCUDACluster
from distributed import Client, Security

from emseg.clusters.certificates import run_security
from emseg.clusters.lifetime import START_SECONDS, Notify, ignore_message
from emseg.clusters.local import DASHBOARD_PORT, LOOPBACK, GuardedCluster, SturdyNanny, connected, free_port
from emseg.clusters.private_folder import private_folder
from emseg_core.errors import DeviceError
from emseg_core.machine import usable_cores, usable_memory
from emseg_core.model.device import GPU_BINDING_VARIABLE

CORES_PER_WORKER = 4
"""Cores that read, decompress, compress and write for a worker on a GPU."""
MAX_WORKERS_PER_GPU = 4
"""Default maximum number of workers that share a GPU: each may take a quarter of its memory."""


def default_workers_per_gpu(gpus: Sequence[int] | None) -> int:
    """Return how many workers on each of these GPUs this machine's cores can feed; at least one.

    Parameters
    ----------
    gpus
        Numbers of the GPUs; None for all of this machine.

    Returns
    -------
    int
        Workers per GPU.

    Raises
    ------
    DeviceError
        If there is no such GPU.
    """
    return min(MAX_WORKERS_PER_GPU, max(1, usable_cores() // (CORES_PER_WORKER * len(_choose(gpus)))))


@contextmanager
def cuda_cluster(
    gpus: Sequence[int] | None, workers_per_gpu: int, blocks_in_flight: int, notify: Notify = ignore_message
) -> Iterator[Client]:
    """Start a cluster with workers on GPUs of this machine.

    Everything else is as in `emseg.clusters.local.local_cluster` on loopback. This process only queries the driver; only
    workers open a context on a GPU.

    Parameters
    ----------
    gpus
        Their numbers, as in `nvidia-smi`; None for all that `CUDA_VISIBLE_DEVICES` leaves.
    workers_per_gpu
        Worker processes on each GPU.
    blocks_in_flight
        Threads of each worker.
    notify
        Called with messages about workers that did not end.

    Yields
    ------
    Client
        A client of the cluster.

    Raises
    ------
    DeviceError
        If there is no such GPU.
    """
    chosen = _choose(gpus)
    with (
        private_folder() as folder,
        run_security(folder / "tls") as security,
        connected(lambda: _Cluster(chosen, workers_per_gpu, blocks_in_flight, security, folder), notify) as client,
    ):
        yield client


class _Cluster(GuardedCluster, LocalCUDACluster):  # type: ignore[misc]
    """Workers bound to GPUs and their cores by dask-cuda; scheduler, security and replacement of lost workers as on CPUs."""

    def __init__(
        self, gpus: list[int | str], workers_per_gpu: int, blocks_in_flight: int, security: Security, folder: Path
    ) -> None:
        LocalCUDACluster.__init__(
            self,
            CUDA_VISIBLE_DEVICES=gpus,
            threads_per_worker=blocks_in_flight,
            memory_limit=usable_memory() // (len(gpus) * workers_per_gpu),
            device_memory_limit=None,
            data=dict,  # outcomes of blocks are small: nothing is ever spilled from a GPU
            worker_class=SturdyNanny,
            host=LOOPBACK,
            security=security,
            local_directory=str(folder),
            scheduler_kwargs={"local_directory": str(folder)},
            dashboard_address=f"{LOOPBACK}:{free_port(DASHBOARD_PORT)}",
            silence_logs=logging.CRITICAL,
        )
        for gpu in gpus:
            for number in range(1, workers_per_gpu):
                self.worker_spec[f"{gpu}-{number}"] = copy.deepcopy(self.worker_spec[gpu])
        self.sync(self._correct_state)  # type: ignore[no-untyped-call]

    def new_worker_spec(self) -> dict[Any, Any]:
        """Return the specification of a worker on the next GPU."""
        made: dict[Any, Any] = super().new_worker_spec()  # type: ignore[no-untyped-call]
        for spec in made.values():
            options = spec["options"]
            options |= {"dashboard": False, "death_timeout": START_SECONDS}
            # by default CUDA numbers the fastest GPU first, but the driver the one in the first slot
            options["env"] = {**options["env"], "CUDA_DEVICE_ORDER": "PCI_BUS_ID", GPU_BINDING_VARIABLE: "1"}
        return made


def _choose(asked: Sequence[int] | None) -> list[int | str]:
    """Return the numbers, or UUIDs, of the GPUs to use."""
    try:
        pynvml.nvmlInit()
        there = list(range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"--cluster cuda needs a GPU, but no NVIDIA driver answers on this machine ({error}): install the driver, or "
            "leave out --cluster cuda"
        ) from error
    words = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, there))).split(",")]
    named: list[int | str] = [int(word) if word.isdecimal() else word for word in words]
    visible = [gpu for gpu in named if gpu in there or str(gpu).startswith(("GPU-", "MIG-"))]
    if not visible:
        raise DeviceError(
            f"--cluster cuda needs a GPU, but CUDA_VISIBLE_DEVICES hides all {len(there)} of the driver: leave one visible"
        )
    chosen: list[int | str] = visible if asked is None else [*asked]
    if missing := [gpu for gpu in chosen if gpu not in visible]:
        raise DeviceError(
            f"--gpus asks for {', '.join(map(str, missing))}, but only {', '.join(map(str, visible))} can be used: choose "
            "among these, or change CUDA_VISIBLE_DEVICES"
        )
    if len(set(chosen)) < len(chosen) or len({type(gpu) for gpu in chosen}) > 1:
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES is {','.join(words)}, but must name each GPU once, all by number or all by UUID"
        )
    return chosen
