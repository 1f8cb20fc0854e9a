"""Launch: from a placement to an executor whose first worker is there, and what shows the run to others."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emseg.errors import DeviceError, PlanError
from emseg.grid.cost import BLOCKS_IN_FLIGHT
from emseg.grid.layout import SMALL_TILE, TILE_BYTES
from emseg.model.device import Device, least_memory
from emseg.store.place import Place, beside
from emseg_workflows.access import token_file, token_kept
from emseg_workflows.bench import Job
from emseg_workflows.events import Event, Noticed
from emseg_workflows.placement import Executor, Placement, Watch
from emseg_workflows.site import Site, logs_of
from emseg_workflows.stop import Stop

if TYPE_CHECKING:
    from distributed import Client

    from emseg_workflows.clusters.local import Elastic


PARTS = 3
"""Of the memory of a core, what is not for activations: libraries, what the network keeps besides, blocks and chunks."""
MOST = 2**32
"""Bytes from which on larger tiles save next to nothing."""
GPU_PARTS = 16
"""Of a GPU's memory: a predictor may take four of them, as convolutions need several times the activations."""
MOST_ON_GPU = 2**33


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be started for a run.

    Raises
    ------
    PlanError
        If predictors have no thread.
    """

    placement: Placement
    blocks: int
    """Blocks that are left."""
    threads: int
    """Threads that each predictor computes with."""
    place: Place
    """The run's output, an address or an absolute path that workers on other hosts see; certificates and logs lie beside it."""
    notify: Callable[[Noticed], None]
    """Told how other hosts join, how the dashboard is reached from elsewhere, and who is not gone at the end."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise PlanError(f"a predictor needs at least 1 thread, not {self.threads}")

    def tell(self, message: str) -> None:
        """Tell what the user should know."""
        self.notify(Noticed(message))

    @property
    def workers(self) -> int:
        """Most workers that are started at once."""
        if self.placement.adapt is not None:
            return self.placement.adapt[1]
        if self.placement.workers is not None:
            return self.placement.workers
        from emseg_workflows.clusters.local import default_workers  # noqa: PLC0415

        return default_workers(self.threads)

    @property
    def elastic(self) -> Elastic | None:
        """How their number follows the blocks that are left, if it does."""
        if self.placement.adapt is None:
            return None
        from emseg_workflows.clusters.local import Elastic  # noqa: PLC0415

        least, most = self.placement.adapt
        return Elastic(least, min(most, max(least, self.blocks, 1)))


def check_main(placement: Placement) -> None:
    """End this process if it is a worker of a run, in which importing the main module begins that run again.

    Called before anything is read or written, by all that may start workers; whoever started this worker tells the user.
    """
    if placement.workers != 0:
        from emseg_workflows.clusters.lifeline import end_if_being_started  # noqa: PLC0415

        end_if_being_started()


def with_shared_gpus(placement: Placement) -> Placement:
    """A placement that says how many workers share a GPU of this machine: as many as its cores can feed, if nobody asked.

    Raises
    ------
    DeviceError
        If there is no GPU.
    """
    if placement.cluster != "cuda" or placement.workers_per_gpu is not None:
        return placement
    return replace(placement, workers_per_gpu=_cuda().workers_fed(placement.gpus))


def tile_budget(placement: Placement, threads: int, device: Device) -> int:
    """Most bytes that the activations of a tile may take, by the memory of this machine or of its GPUs.

    It is a power of two, and does not follow the number of workers: these all compute with the same tiles. Where workers
    are on other machines, it is what every machine has.
    """
    if placement.batch or placement.scheduler or placement.client:
        return TILE_BYTES
    if device == "cuda":
        share, most = (least_memory() or GPU_PARTS * TILE_BYTES) // GPU_PARTS, MOST_ON_GPU
    else:
        from emseg_workflows.clusters.local import memory_share  # noqa: PLC0415

        share, most = memory_share(threads) // PARTS, MOST
    return min(most, max(SMALL_TILE, 1 << (share.bit_length() - 1)))


def most_workers(needed: int) -> int:
    """Most workers that this machine has a core, and so many bytes of memory, for; at least one."""
    from emseg_workflows.clusters.local import workers_within  # noqa: PLC0415

    return workers_within(needed)


@contextmanager
def open_executor(launch: Launch, stop: Stop) -> Iterator[Executor]:
    """The executor of a placement, until the end of the ``with``; `stop` ends the waiting for workers.

    Raises
    ------
    InputError
        If there are no workers to be had.
    """
    placement = launch.placement
    with suppress(OSError):
        token_file(launch.place).unlink()  # of a run that was killed
    if placement.workers == 0:
        from emseg_workflows.executors.serial import SerialExecutor  # noqa: PLC0415

        yield SerialExecutor()
        return
    from emseg_workflows.executors.dask import DaskExecutor  # noqa: PLC0415

    with ExitStack() as held:
        client = placement.client or _new_client(launch, held)
        executor = DaskExecutor(client, stop, client.cluster if placement.batch or placement.adapt else None)
        if placement.performance_report is not None:
            from emseg_workflows.dashboard.performance import reporting  # noqa: PLC0415

            held.enter_context(reporting(lambda: executor.client, placement.performance_report, launch.notify))
        yield executor


@contextmanager
def open_watch(executor: Executor, job: Job, done: NDArray[np.bool_], notify: Callable[[Noticed], None]) -> Iterator[Watch]:
    """What shows a run on the dashboard, if there is one, until the end of the ``with``; `done` has what is already written."""
    first = executor.client
    if first is None:
        yield Unwatched()
        return
    from emseg_workflows.dashboard.feed import Feed  # noqa: PLC0415

    with closing(Feed(lambda: executor.client or first, job, done, executor.workers, notify)) as feed:
        yield feed


class Unwatched:
    """A run that is not shown to others."""

    address = None

    def __call__(self, event: Event) -> None:
        """Do nothing."""

    def take_back(self, blocks: Iterable[int]) -> None:
        """Do nothing."""


def _new_client(launch: Launch, held: ExitStack) -> Client:
    from emseg_workflows.clusters.local import far_away, running_cluster, tunnel_command  # noqa: PLC0415

    placement = launch.placement
    if placement.scheduler is not None:
        return held.enter_context(running_cluster(placement.scheduler, placement.tls, launch.tell))
    if placement.batch:
        client = _batch_client(launch, held)
    elif placement.cluster == "cuda":
        client = _cuda_client(launch, held)
    else:
        client = _local_client(launch, held)
    held.enter_context(_token_kept(client, launch))
    if placement.batch or placement.host is not None or far_away():
        launch.notify(Noticed(f"see the dashboard from elsewhere with: {tunnel_command(client)}"))
    return client


def _local_client(launch: Launch, held: ExitStack) -> Client:
    from emseg_workflows.clusters.local import LOOPBACK, local_cluster, worker_command  # noqa: PLC0415

    host = launch.placement.host
    security = None if host is None else _security(launch.place, held)
    client = held.enter_context(
        local_cluster(launch.workers, BLOCKS_IN_FLIGHT, host or LOOPBACK, security, launch.elastic, launch.tell)
    )
    if host is not None:
        launch.notify(Noticed(f"another host joins with: {worker_command(client, BLOCKS_IN_FLIGHT)}"))
    return client


def _cuda_client(launch: Launch, held: ExitStack) -> Client:
    placement = launch.placement
    client: Client = held.enter_context(
        _cuda().cuda_cluster(placement.gpus, placement.most_per_gpu, BLOCKS_IN_FLIGHT, launch.tell)
    )
    return client


def _cuda() -> Any:
    try:
        from emseg_workflows.clusters import cuda  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError(f"--cluster cuda needs dask-cuda ({error}): pip install 'emseg[cuda]'") from error
    return cuda


def _batch_client(launch: Launch, held: ExitStack) -> Client:
    placement = launch.placement
    try:
        from emseg_workflows.clusters.slurm import job_cluster, step_cluster  # noqa: PLC0415
    except ImportError as error:
        raise PlanError(f"--cluster {placement.cluster} needs dask-jobqueue ({error}): pip install 'emseg[slurm]'") from error
    site, logs = placement.site or Site(), logs_of(launch.place)
    site = site.but(cpus=site.cpus or launch.threads)
    if placement.cluster == "slurm" and not site.memory:
        raise PlanError(
            "--cluster slurm asks for memory for each worker, but the site names none: give a --site file with memory = '16G', "
            "or use `emseg submit`, which asks for what the plan needs"
        )
    logs.mkdir(exist_ok=True)
    security = _security(launch.place, held)
    if placement.cluster == "srun":
        return held.enter_context(step_cluster(launch.workers, BLOCKS_IN_FLIGHT, site, security, logs, launch.tell))
    return held.enter_context(job_cluster(launch.workers, BLOCKS_IN_FLIGHT, site, security, logs, launch.elastic, launch.tell))


@contextmanager
def _token_kept(client: Client, launch: Launch) -> Iterator[None]:
    """Within the ``with``, the dashboard's token is in a file of this user's alone; where there can be none, a note says so."""
    cluster: Any = client.cluster
    file = token_file(launch.place)
    with ExitStack() as held:
        try:
            held.enter_context(token_kept(cluster.token, file))
        except OSError as error:
            why = error.strerror or error
            launch.notify(Noticed(f"the dashboard's token cannot be kept in {file} ({why}): its link on a terminal has it"))
        yield


def _security(place: Place, held: ExitStack) -> Any:
    from emseg_workflows.clusters.certificates import run_security  # noqa: PLC0415

    return held.enter_context(run_security(beside(place, f".{place.name}.tls-{secrets.token_hex(6)}")))
