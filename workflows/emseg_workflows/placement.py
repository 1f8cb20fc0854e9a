"""Placement: who computes a run's blocks, and where. It changes no byte of the output."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from emseg.box import Triple
from emseg.errors import PlanError
from emseg.grid.cost import BLOCKS_IN_FLIGHT
from emseg.grid.plan import Block
from emseg.specs.numerics import Numerics
from emseg_workflows.bench import Job
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import Noticed, Progressed
from emseg_workflows.stop import Stop

if TYPE_CHECKING:
    from distributed import Client


class Executor(Protocol):
    """Something that runs blocks: this process, or a Dask cluster."""

    @property
    def workers(self) -> int:
        """Worker processes; 0 for this process."""
        ...

    @property
    def dashboard(self) -> str | None:
        """Address to watch it at, if there is one."""
        ...

    @property
    def memory(self) -> int | None:
        """Bytes of memory that each worker may use, if that is known."""
        ...

    def numerics(self, model: Path, tile: Triple, threads: int) -> Numerics:
        """The numerics of a predictor where the blocks will run, for tiles of this shape (z, y, x) in voxels."""
        ...

    def run(self, job: Job, blocks: Iterator[Block], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """What happens, until each block has ended or the run is stopped; closing it ends the run."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """Where blocks are computed: in this process, on workers that are started for the run, or on a running cluster.

    Raises
    ------
    PlanError
        If these exclude one another.
    """

    workers: int | None = None
    """Worker processes to start on this machine; None for one per core (and thread), 0 for this process, without Dask."""
    host: str | None = None
    """Address of this machine where workers on other hosts may join, in TLS; None for loopback alone."""
    scheduler: str | None = None
    """Address of a running Dask scheduler to use instead."""
    client: Client | None = None
    """A client of a running Dask cluster to use instead."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise PlanError(f"a run needs at least 0 workers, not {self.workers}")
        elsewhere = self.scheduler or self.client
        if elsewhere is not None and self.workers is not None:
            raise PlanError(
                f"a run starts {self.workers} workers or uses those of {elsewhere}, not both: leave out one of them"
            )
        if self.host is not None and (elsewhere is not None or self.workers == 0):
            other = f"those of {elsewhere}" if elsewhere is not None else "no workers at all"
            raise PlanError(f"a run listens on {self.host} for workers or uses {other}, not both: leave out one of them")


@contextmanager
def open_executor(placement: Placement, threads: int, shared: Path, notify: Callable[[Noticed], None]) -> Iterator[Executor]:
    """The executor of a placement, until the end of the ``with``.

    Parameters
    ----------
    threads
        Threads that each predictor computes with.
    shared
        Folder that workers on other hosts see, for certificates.
    notify
        Told how other hosts join, and how the dashboard is reached from elsewhere.

    Raises
    ------
    InputError
        If there are no workers to be had.
    """
    if threads < 1:
        raise PlanError(f"a predictor needs at least 1 thread, not {threads}")
    if placement.workers == 0:
        from emseg_workflows.executors.serial import SerialExecutor  # noqa: PLC0415

        yield SerialExecutor()
        return
    from emseg_workflows.executors.dask import DaskExecutor  # noqa: PLC0415

    with ExitStack() as held:
        yield DaskExecutor(placement.client or _new_client(placement, threads, shared, notify, held))


def _new_client(placement: Placement, threads: int, shared: Path, notify: Callable[[Noticed], None], held: ExitStack) -> Client:
    from emseg_workflows.clusters.certificates import run_security  # noqa: PLC0415
    from emseg_workflows.clusters.local import (  # noqa: PLC0415
        default_workers,
        local_cluster,
        running_cluster,
        tunnel_command,
        worker_command,
    )

    if placement.scheduler is not None:
        return held.enter_context(running_cluster(placement.scheduler))
    workers = placement.workers or default_workers(threads)
    if placement.host is None:
        return held.enter_context(local_cluster(workers, BLOCKS_IN_FLIGHT))
    security = held.enter_context(run_security(shared / f".emseg-tls-{secrets.token_hex(6)}"))
    client = held.enter_context(local_cluster(workers, BLOCKS_IN_FLIGHT, placement.host, security))
    notify(Noticed(f"another host joins with: {worker_command(client, BLOCKS_IN_FLIGHT)}"))
    notify(Noticed(f"see the dashboard from elsewhere with: {tunnel_command(client)}"))
    return client
