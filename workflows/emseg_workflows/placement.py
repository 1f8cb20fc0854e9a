"""Placement: who computes a run's blocks, and where. It changes no byte of the output."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, cast

from emseg.errors import PlanError
from emseg.grid.blocks import Block
from emseg.model.device import Device, Gpu
from emseg_workflows.bench import Choice, Trial, Work
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import Event, Progressed
from emseg_workflows.site import Site
from emseg_workflows.stop import Stop

if TYPE_CHECKING:
    from distributed import Client

ClusterKind = Literal["local", "cuda", "srun", "slurm"]
"""Who starts workers, and on what."""


class Executor(Protocol):
    """Something that runs blocks: this process, or a Dask cluster."""

    @property
    def client(self) -> Client | None:
        """The Dask client in use, if there is one."""
        ...

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

    def gpus(self, device: Device) -> dict[str, Gpu]:
        """The GPU of each worker that computes on one, or is bound to one."""
        ...

    def try_out(self, trial: Trial) -> Choice:
        """How predictors compute where the blocks will run."""
        ...

    def run(self, work: Work, strands: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """What happens, until each block has ended or the run is stopped; closing it ends the run."""
        ...


class Watch(Protocol):
    """An observer that shows a run to others."""

    @property
    def address(self) -> str | None:
        """Where it can be seen, if anywhere."""
        ...

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        ...

    def take_back(self, blocks: Iterable[int]) -> None:
        """Blocks that were written are not there any more."""
        ...


class Where(TypedDict, total=False):
    """What may be said of who computes, and where.

    Parameters
    ----------
    workers
        Worker processes to start on this machine; None for one per core (and thread), 0 for this process, without Dask.
    adapt
        Least and most worker processes; between them, as many as there are blocks for. Instead of ``workers``.
    host
        Address of this machine where workers on other hosts may join, in TLS; None for loopback alone.
    scheduler, client
        A running Dask cluster to use instead, by the address of its scheduler or by a client.
    tls
        Files of the authority, the certificate and its key that the scheduler wants to see.
    cluster
        What workers are started on: ``local`` for the cores of this machine, ``cuda`` for its GPUs, one on each, ``srun`` for
        steps of the SLURM job that this runs in, ``slurm`` for SLURM jobs of their own.
    site
        What SLURM is told for each worker of ``srun`` and ``slurm``.
    """

    workers: int | None
    adapt: tuple[int, int] | None
    host: str | None
    scheduler: str | None
    client: Client | None
    tls: tuple[Path, Path, Path] | None
    cluster: ClusterKind
    site: Site | None


class WhereOnGpus(Where, total=False):
    """What may be said of it where predictors compute: as in `Where`, and this.

    Parameters
    ----------
    gpus
        Which GPUs, numbered as `nvidia-smi` does; None for each that is visible.
    workers_per_gpu
        Workers that share a GPU; more are refused, also on a running cluster. None for one, or with ``cluster="cuda"`` for as
        many, up to four, as there are cores to feed them.
    """

    gpus: tuple[int, ...] | None
    workers_per_gpu: int | None


def on_cpus(where: WhereOnGpus) -> Where:
    """Where instances are labelled: on the cores of a machine whose GPUs have predicted."""
    cuda = where.get("cluster") == "cuda"
    gone = {"gpus", "workers_per_gpu", *(("workers", "cluster") if cuda else ())}
    return cast("Where", {name: value for name, value in where.items() if name not in gone})


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
    cluster: ClusterKind = "local"
    """What workers are started on: the cores of this machine, its GPUs, steps of this SLURM job, or SLURM jobs of their own."""
    gpus: tuple[int, ...] | None = None
    """Which GPUs, numbered as `nvidia-smi` does; None for each that is visible."""
    workers_per_gpu: int | None = None
    """Most workers that may share a GPU, and how many are started on each; None for 1, or before `launch` has counted cores."""
    tls: tuple[Path, Path, Path] | None = None
    """Files of the authority, the certificate and its key that the scheduler wants to see."""
    site: Site | None = None
    """What SLURM is told for each worker."""
    performance_report: Path | None = None
    """The HTML file in which Dask shall report on the run."""
    adapt: tuple[int, int] | None = None
    """Least and most workers; between them as many as there are blocks for. None for a number that stays."""

    @property
    def default_device(self) -> Device:
        """What predictors compute on if nothing else is said."""
        on_gpus = self.cluster == "cuda" or (self.batch and self.site is not None and self.site.gres.startswith("gpu"))
        return "cuda" if on_gpus else "cpu"

    @property
    def most_per_gpu(self) -> int:
        """Most workers that may share a GPU."""
        return self.workers_per_gpu or 1

    @property
    def batch(self) -> bool:
        """Whether workers are started by SLURM."""
        return self.cluster in ("srun", "slurm")

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
        if self.tls is not None and self.scheduler is None:
            raise PlanError(
                "TLS files are for --scheduler, which is not given: add it, or leave out --tls-ca-file and the others"
            )
        if self.tls is not None and (missing := [str(file) for file in self.tls if not file.is_file()]):
            raise PlanError(f"the TLS file {missing[0]} is not there: check its path")
        if self.performance_report is not None and self.workers == 0:
            raise PlanError(
                "a performance report tells of Dask, which a run with 0 workers does without: raise --workers, or leave out "
                "--performance-report"
            )
        self._check_adapt()
        self._check_gpus()
        self._check_batch()

    def _check_adapt(self) -> None:
        if self.adapt is None:
            return
        least, most = self.adapt
        if not 0 <= least <= most or most < 1:
            raise PlanError(
                f"--adapt {least}:{most} is no range of workers: give the least and the most, 1:{max(least, most, 1)}"
            )
        if self.workers is not None:
            raise PlanError(
                f"--adapt {least}:{most} and --workers {self.workers} both say how many workers there are: leave one out"
            )
        if self.cluster not in ("local", "slurm") or self.scheduler or self.client:
            whose = f"--cluster {self.cluster}" if self.cluster != "local" else "a running cluster"
            raise PlanError(
                f"--adapt starts and ends workers one by one, but those of {whose} come and go together: use --cluster slurm "
                "(`emseg submit --elastic`), or leave out --adapt"
            )

    def _check_batch(self) -> None:
        if self.site is not None and not self.batch:
            raise PlanError("--site is for --cluster srun and slurm, of which neither is given: add one, or leave out --site")
        if not self.batch:
            return
        if (elsewhere := self.scheduler or self.client) is not None:
            raise PlanError(
                f"--cluster {self.cluster} starts workers, but those of {elsewhere} are given: leave out one of them"
            )
        if not (self.workers or self.adapt):
            raise PlanError(f"--cluster {self.cluster} does not know how many workers to start: give --workers")
        if self.host is not None:
            raise PlanError(f"--cluster {self.cluster} listens on the site's interface, not on {self.host}: leave out --host")

    def _check_gpus(self) -> None:
        elsewhere = self.scheduler or self.client
        if self.workers_per_gpu is not None and self.workers_per_gpu < 1:
            raise PlanError(f"a GPU needs at least 1 worker, not {self.workers_per_gpu}")
        if self.gpus is not None and (not self.gpus or min(self.gpus) < 0 or len(set(self.gpus)) < len(self.gpus)):
            raise PlanError(f"the GPUs {self.gpus} are not different whole numbers from 0: name each once")
        if self.cluster != "cuda":
            if self.gpus is not None:
                raise PlanError("--gpus is for --cluster cuda, which is not given: add it, or leave out --gpus")
            if (self.workers_per_gpu or 1) > 1 and self.cluster == "local" and elsewhere is None:
                raise PlanError("--workers-per-gpu is for GPUs, but --cluster cuda is not given: add it, or leave out both")
            return
        if elsewhere is not None:
            raise PlanError(f"a run starts workers on GPUs here or uses those of {elsewhere}, not both: leave out one of them")
        if self.workers is not None:
            raise PlanError(
                f"--cluster cuda starts a worker for each GPU, not {self.workers} workers: leave out --workers; --gpus and "
                "--workers-per-gpu say how many"
            )
        if self.host is not None:
            raise PlanError(f"--cluster cuda listens on this machine alone, not on {self.host}: leave out --host")
