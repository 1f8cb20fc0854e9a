"""A Dask cluster with a worker process for each GPU of this machine, by dask-cuda; nobody else has a way in."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pynvml
from dask.system import CPU_COUNT
from dask_cuda import LocalCUDACluster
from distributed import Client, Security
from distributed.system import MEMORY_LIMIT

from emseg.errors import DeviceError
from emseg.model.device import BOUND
from emseg_workflows.clusters.certificates import run_security
from emseg_workflows.clusters.lifetime import START, Tell, closed_at_last, started, untold
from emseg_workflows.clusters.local import DASHBOARD_PORT, LOOPBACK, GuardedCluster, SturdyNanny, free_port, signals_held_back
from emseg_workflows.clusters.private_folder import private_folder

CORES = 4
"""Cores that read, decompress, compress and write for a worker on a GPU."""
MOST_PER_GPU = 4
"""Workers that share a GPU if nothing is said, at most: each may take a quarter of its memory."""


def workers_fed(gpus: Sequence[int] | None) -> int:
    """How many workers on each of these GPUs this machine's cores can feed; at least one.

    Raises
    ------
    DeviceError
        If there is no such GPU.
    """
    return min(MOST_PER_GPU, max(1, CPU_COUNT // (CORES * len(_choose(gpus)))))


@contextmanager
def cuda_cluster(
    gpus: Sequence[int] | None, workers_per_gpu: int, blocks_in_flight: int, tell: Tell = untold
) -> Iterator[Client]:
    """A client of a new cluster with workers on GPUs of this machine; their threads are the blocks in flight.

    All else is as in `emseg_workflows.clusters.local.local_cluster` on loopback. This process only asks the driver; a
    context on a GPU is opened by workers alone.

    Parameters
    ----------
    gpus
        Which ones, numbered as `nvidia-smi` does; None for each that `CUDA_VISIBLE_DEVICES` leaves, or all.
    workers_per_gpu
        Worker processes on each.

    Raises
    ------
    DeviceError
        If there is no such GPU.
    """
    chosen = _choose(gpus)
    with ExitStack() as held:
        folder = held.enter_context(private_folder())
        security = held.enter_context(run_security(folder / "tls"))
        with signals_held_back():
            cluster = started(lambda: _Cluster(chosen, workers_per_gpu, blocks_in_flight, security, folder))
            held.enter_context(closed_at_last(cluster, tell))
            client = held.enter_context(closed_at_last(Client(cluster), tell))
        yield client


class _Cluster(GuardedCluster, LocalCUDACluster):  # type: ignore[misc]
    """dask-cuda binds each worker to a GPU and its cores; what listens, and who replaces the dead, is as on CPUs."""

    def __init__(
        self, gpus: list[int | str], workers_per_gpu: int, blocks_in_flight: int, security: Security, folder: Path
    ) -> None:
        LocalCUDACluster.__init__(
            self,
            CUDA_VISIBLE_DEVICES=gpus,
            threads_per_worker=blocks_in_flight,
            memory_limit=MEMORY_LIMIT // (len(gpus) * workers_per_gpu),
            device_memory_limit=None,
            data=dict,  # outcomes of blocks are small: nothing is ever moved out of a GPU
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
        """A worker on the next GPU."""
        made: dict[Any, Any] = super().new_worker_spec()  # type: ignore[no-untyped-call]
        for spec in made.values():
            options = spec["options"]
            options |= {"dashboard": False, "death_timeout": START}
            # else CUDA counts the fastest GPU first, and the driver the one in the first slot
            options["env"] = {**options["env"], "CUDA_DEVICE_ORDER": "PCI_BUS_ID", BOUND: "1"}
        return made


def _choose(asked: Sequence[int] | None) -> list[int | str]:
    """Numbers, or UUIDs, of the GPUs to use."""
    try:
        pynvml.nvmlInit()
        there = list(range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"--cluster cuda needs a GPU, but this machine has no NVIDIA driver that answers ({error}): install the driver, or "
            "leave out --cluster cuda"
        ) from error
    words = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, there))).split(",")]
    named: list[int | str] = [int(word) if word.isdecimal() else word for word in words]
    visible = [gpu for gpu in named if gpu in there or str(gpu).startswith(("GPU-", "MIG-"))]
    if not visible:
        raise DeviceError(
            f"--cluster cuda needs a GPU, but of the driver's {len(there)} CUDA_VISIBLE_DEVICES leaves none: leave one visible"
        )
    chosen: list[int | str] = visible if asked is None else [*asked]
    if missing := [gpu for gpu in chosen if gpu not in visible]:
        raise DeviceError(
            f"--gpus asks for {', '.join(map(str, missing))}, but there are {', '.join(map(str, visible))}: choose among "
            "these, or change CUDA_VISIBLE_DEVICES"
        )
    if len(set(chosen)) < len(chosen) or len({type(gpu) for gpu in chosen}) > 1:
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES is {','.join(words)}, but must name each GPU once, all by number or all by UUID"
        )
    return chosen
