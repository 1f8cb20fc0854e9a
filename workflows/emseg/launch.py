"""From a placement to a running executor, and to what shows the run on a dashboard."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emseg.access import token_file, token_file_kept
from emseg.clusters.semaphores import SEMAPHORES_PER_WORKER, check_semaphores
from emseg.executors.port import Executor, Watch
from emseg.placement import Placement
from emseg.runs.events import Event, Noticed
from emseg.runs.stop import Stop
from emseg.slurm.site import Site, logs_of
from emseg.tasks.segmenting import SegmentWork
from emseg_core.errors import DeviceError, PlanError
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.grid.layout import DEFAULT_TILE_BYTES, SMALL_TILE_BYTES
from emseg_core.installation import install_hint
from emseg_core.machine import raise_file_limit, usable_cores, usable_memory
from emseg_core.model.device import Device, smallest_gpu_memory
from emseg_core.store.files.place import Place, sibling

if TYPE_CHECKING:
    from distributed import Client

    from emseg.clusters.local import Elastic


CPU_MEMORY_DIVISOR = 3
"""Activations may take this part of a core's memory; libraries, the rest of the network, blocks and chunks take the others."""
MAX_CPU_TILE_BYTES = 2**32
"""Size from which on larger tiles save next to nothing."""
GPU_MEMORY_DIVISOR = 16
"""Activations are planned for this part of a GPU's memory; a predictor may take four, as convolutions need several times it."""
MAX_GPU_TILE_BYTES = 2**33
OPEN_FILES = 64
"""A run without workers has at most this many files open."""
OPEN_FILES_PER_WORKER = 16
"""Twelve were counted: pipes and connections of a worker and of the process that starts it again."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A request to start the executor of a run.

    Raises
    ------
    PlanError
        If predictors have no thread.
    """

    placement: Placement
    blocks: int
    """Number of blocks left."""
    threads: int
    """Number of threads of each predictor."""
    place: Place
    """The run's output: an address, or an absolute path that workers on other hosts see; certificates and logs lie beside."""
    notify: Callable[[Noticed], None]
    """Called with messages: how other hosts join, how to reach the dashboard from elsewhere, which workers did not end."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise PlanError(f"a predictor needs at least 1 thread, but --threads is {self.threads}: raise it")

    def send(self, message: str) -> None:
        """Send a message to the user.

        Parameters
        ----------
        message
            One line.
        """
        self.notify(Noticed(message))

    @property
    def workers(self) -> int:
        """Maximum number of workers at once."""
        if self.placement.adapt is not None:
            return self.placement.adapt[1]
        if self.placement.workers is not None:
            return self.placement.workers
        return default_workers(self.threads)

    @property
    def elastic(self) -> Elastic | None:
        """How the number of workers follows the number of blocks left; None if it is fixed."""
        if self.placement.adapt is None:
            return None
        from emseg.clusters.local import Elastic

        least, most = self.placement.adapt
        return Elastic(least, min(most, max(least, self.blocks, 1)))


def check_main(placement: Placement) -> None:
    """End this process if it is a worker of a run, where importing the main module starts that run again.

    It is called before anything is read or written, by everything that may start workers. The process that started this
    worker informs the user.

    Parameters
    ----------
    placement
        Where the blocks are to be computed.
    """
    if placement.workers != 0:
        from emseg.clusters.lifeline import end_if_being_started

        end_if_being_started()


def check_limits(placement: Placement) -> None:
    """Refuse a run whose workers need more open files or semaphores than this process may have: connections are files, too.

    It is called before anything is read or written, and raises the soft limit on open files to the hard one first.

    Parameters
    ----------
    placement
        Where the blocks are to be computed.

    Raises
    ------
    PlanError
        If the hard limit on open files is too low, or there is no place for semaphores.
    """
    workers = placement.adapt[1] if placement.adapt is not None else placement.workers
    if workers is None:
        workers = 0 if placement.scheduler or placement.client else default_workers(1)
    needed, allowed = OPEN_FILES + workers * OPEN_FILES_PER_WORKER, raise_file_limit()
    if allowed < needed:
        remedy = "raise the limit (ulimit -n), or start fewer with --workers" if workers > 1 else "raise the limit (ulimit -n)"
        raise PlanError(
            f"a run with {workers} workers needs {needed} open files, but this process may have only {allowed}: {remedy}"
        )
    if not placement.batch:
        who = f"a run with {workers} worker processes"
        check_semaphores(workers * SEMAPHORES_PER_WORKER, who, ", or compute without them (--workers 0)")


def with_shared_gpus(placement: Placement) -> Placement:
    """Set how many workers share a GPU of this machine, if nothing was asked for: as many as its cores can feed.

    Parameters
    ----------
    placement
        Where the blocks are to be computed.

    Returns
    -------
    Placement
        The placement with this number.

    Raises
    ------
    DeviceError
        If there is no GPU.
    """
    if placement.cluster != "cuda" or placement.workers_per_gpu is not None:
        return placement
    return replace(placement, workers_per_gpu=_cuda().default_workers_per_gpu(placement.gpus))


def tile_budget(placement: Placement, threads: int, device: Device) -> int:
    """Return the maximum size of a tile's activations, by the memory of this machine or of its GPUs.

    It is a power of two and does not depend on the number of workers: all of them compute with the same tiles. If workers
    are on other machines, it is what every machine has.

    Parameters
    ----------
    placement
        Where the blocks are to be computed.
    threads
        Number of threads of each worker.
    device
        Device on which the workers predict.

    Returns
    -------
    int
        Bytes.
    """
    if placement.batch or placement.scheduler or placement.client:
        return DEFAULT_TILE_BYTES
    if device == "cuda":
        memory = smallest_gpu_memory()
        share, most = memory // GPU_MEMORY_DIVISOR if memory else DEFAULT_TILE_BYTES, MAX_GPU_TILE_BYTES
    else:
        share, most = usable_memory() // default_workers(threads) // CPU_MEMORY_DIVISOR, MAX_CPU_TILE_BYTES
    return min(most, max(SMALL_TILE_BYTES, 1 << (share.bit_length() - 1)))


def default_workers(threads: int) -> int:
    """Return how many worker processes keep each core that this process may use busy, with this many threads per predictor.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, usable_cores() // max(1, threads))


def most_workers(needed: int) -> int:
    """Return the maximum number of workers for which this machine has a core and `needed` bytes of memory each; at least one.

    Parameters
    ----------
    needed
        Bytes of memory that one worker needs.

    Returns
    -------
    int
        Number of worker processes.
    """
    return max(1, min(default_workers(1), usable_memory() // needed))


@contextmanager
def open_executor(launch: Launch, stop: Stop) -> Iterator[Executor]:
    """Open the executor of a placement, until the end of the ``with``; `stop` ends the wait for workers.

    Parameters
    ----------
    launch
        The request.
    stop
        Request to end the run.

    Yields
    ------
    Executor
        With at least one worker, or this process.

    Raises
    ------
    InputError
        If no workers are available.
    StoppedError
        If the run is stopped meanwhile.
    """
    placement = launch.placement
    with suppress(OSError):
        token_file(launch.place).unlink()  # left by a killed run
    if placement.workers == 0:
        from emseg.executors.serial import SerialExecutor

        yield SerialExecutor()
        return
    from emseg.executors.dask import DaskExecutor

    with ExitStack() as held:
        client = placement.client or _new_client(launch, held)
        executor = DaskExecutor(client, stop, client.cluster if placement.batch or placement.adapt else None)
        if placement.performance_report is not None:
            from emseg.dashboard.performance import performance_report_to

            held.enter_context(performance_report_to(placement.performance_report, lambda: executor.client, launch.notify))
        yield executor


@contextmanager
def open_watch(
    executor: Executor, job: SegmentWork, done: NDArray[np.bool_], notify: Callable[[Noticed], None]
) -> Iterator[Watch]:
    """Open what shows a run on the dashboard, if there is one, until the end of the ``with``.

    Parameters
    ----------
    executor
        Runs the blocks.
    job
        The work.
    done
        Which blocks are already written, ``(block,) bool``.
    notify
        Called with messages.

    Yields
    ------
    Watch
        An observer of the run.
    """
    first = executor.client
    if first is None:
        yield NullWatch()
        return
    from emseg.dashboard.reporter import DashboardReporter

    with closing(DashboardReporter(lambda: executor.client or first, job, done, executor.workers, notify)) as reporter:
        yield reporter


class NullWatch:
    """An observer that shows a run to no one."""

    address = None

    def __call__(self, event: Event) -> None:
        """Do nothing."""

    def take_back(self, blocks: Iterable[int]) -> None:
        """Do nothing."""


def _new_client(launch: Launch, held: ExitStack) -> Client:
    from emseg.clusters.local import hub_advice, is_remote, running_cluster, tunnel_command

    placement = launch.placement
    if placement.scheduler is not None:
        return held.enter_context(running_cluster(placement.scheduler, placement.tls, launch.send))
    if placement.batch:
        client = _batch_client(launch, held)
    elif placement.cluster == "cuda":
        client = held.enter_context(_cuda().cuda_cluster(placement.gpus, placement.most_per_gpu, BLOCKS_IN_FLIGHT, launch.send))
    else:
        client = _local_client(launch, held)
    _keep_token(client, launch, held)
    if advice := hub_advice(client):
        launch.send(f"to see the dashboard through JupyterHub, state the address of your HUB before a run: {advice}")
    if placement.batch or placement.host is not None or is_remote():
        launch.send(f"to see the dashboard from another machine, run: {tunnel_command(client)}")
    return client


def _local_client(launch: Launch, held: ExitStack) -> Client:
    from emseg.clusters.local import LOOPBACK, local_cluster, worker_command

    host = launch.placement.host
    security = None if host is None else _security(launch.place, held)
    client = held.enter_context(
        local_cluster(launch.workers, BLOCKS_IN_FLIGHT, host or LOOPBACK, security, launch.elastic, launch.send)
    )
    if host is not None:
        launch.send(f"another host joins with: {worker_command(client, BLOCKS_IN_FLIGHT)}")
    return client


def _cuda() -> Any:
    try:
        from emseg.clusters import cuda
    except ImportError as error:
        raise DeviceError(f"--cluster cuda needs dask-cuda ({error}): {install_hint('cuda')}") from error
    return cuda


def _batch_client(launch: Launch, held: ExitStack) -> Client:
    placement = launch.placement
    try:
        from emseg.clusters import lsf, pbs, sge
        from emseg.clusters.jobs import adapted_cluster
        from emseg.clusters.slurm import job_cluster, step_cluster
    except ImportError as error:
        raise PlanError(f"--cluster {placement.cluster} needs dask-jobqueue ({error}): {install_hint('slurm')}") from error
    site, logs = placement.site or Site(), logs_of(launch.place)
    site = replace(site, cpus=site.cpus or launch.threads)
    if placement.cluster != "srun" and not (site.memory or site.option("memory")):
        raise PlanError(
            f"--cluster {placement.cluster} requests memory for each worker, but the site sets none: set memory = '16G' in a "
            "--site file (or 'none', if the site takes no such option), or use `emseg submit`, which knows what is needed"
        )
    logs.mkdir(exist_ok=True)
    security = _security(launch.place, held)
    if placement.cluster == "srun":
        return held.enter_context(step_cluster(launch.workers, BLOCKS_IN_FLIGHT, site, security, logs, launch.send))
    how = (launch.workers, BLOCKS_IN_FLIGHT, site, security, logs, launch.elastic, launch.send)
    if placement.cluster == "slurm":
        return held.enter_context(job_cluster(*how))
    return held.enter_context(adapted_cluster({"lsf": lsf, "pbs": pbs, "sge": sge}[placement.cluster], *how))


def _keep_token(client: Client, launch: Launch, held: ExitStack) -> None:
    """Keep the dashboard's token in a file; if that is impossible, a message says so."""
    cluster: Any = client.cluster
    file = token_file(launch.place)
    try:
        held.enter_context(token_file_kept(cluster.token, file))
    except OSError as error:
        why = error.strerror or error
        launch.send(
            f"the dashboard's token cannot be stored in {file} ({why}): use the link on the terminal, which contains it"
        )


def _security(place: Place, held: ExitStack) -> Any:
    from emseg.clusters.certificates import run_security

    return held.enter_context(run_security(sibling(place, f".{place.name}.tls-{secrets.token_hex(6)}")))
