"""Placement: where the blocks of a run are computed. It changes no byte of the output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from emseg.settings.fields import setting
from emseg_core.errors import PlanError

if TYPE_CHECKING:
    from distributed import Client

    from emseg.slurm.site import Site
    from emseg_core.model.device import Device

ClusterKind = Literal["local", "cuda", "srun", "slurm", "lsf", "pbs", "sge"]
"""Who starts workers, and on what."""


class Where(TypedDict, total=False):
    """The fields of `Placement` as keywords, where the work is for cores."""

    workers: int | None
    adapt: tuple[int, int] | None
    host: str | None
    scheduler: str | None
    client: Client | None
    tls: tuple[Path, Path, Path] | None
    cluster: ClusterKind
    site: Site | None


class WhereOnGpus(Where, total=False):
    """The fields of `Placement` as keywords, where predictors run."""

    device: Device | None
    gpus: tuple[int, ...] | None
    workers_per_gpu: int | None


def on_cpus(where: WhereOnGpus) -> Where:
    """Return where to label instances: on the cores of a machine whose GPUs have run the network.

    Parameters
    ----------
    where
        Keywords that say where the run took place.

    Returns
    -------
    Where
        The same, without what belongs to GPUs.
    """
    cuda = where.get("cluster") == "cuda"
    gone = {"device", "gpus", "workers_per_gpu", *(("workers", "cluster") if cuda else ())}
    return cast("Where", {name: value for name, value in where.items() if name not in gone})


@dataclass(frozen=True, slots=True)
class Placement:
    """Where blocks are computed: in this process, on workers started for the run, or on a running cluster.

    It changes no byte of the output.

    Raises
    ------
    PlanError
        If the fields exclude one another.
    """

    workers: int | None = setting(None, "Worker processes. Default: one per core (and thread). 0: this process, without Dask.")
    host: str | None = setting(
        None, "Address of this machine at which workers on other hosts may join, by TLS. Default: loopback alone."
    )
    scheduler: str | None = setting(None, "Address of the scheduler of a running Dask cluster to use.")
    client: Client | None = setting(None, "A client of a running Dask cluster to use.")
    cluster: ClusterKind = setting(
        "local",
        "Where workers start: local, on the cores of this machine; cuda, on its GPUs, one on each; srun, as steps of this "
        "SLURM job; slurm, lsf, pbs, sge, as jobs of their own of that batch system.",
    )
    gpus: tuple[int, ...] | None = setting(
        None, "GPUs of the cluster cuda, numbered as nvidia-smi does. Default: all that are visible."
    )
    workers_per_gpu: int | None = setting(
        None, "Workers that share a GPU; more are refused, also on a running cluster. Default: one for four cores, up to four."
    )
    tls: tuple[Path, Path, Path] | None = setting(
        None, "Files of the authority, the certificate and its key that a running scheduler asks for."
    )
    site: Site | None = setting(None, "What the batch system is told for each worker.")
    performance_report: Path | None = setting(None, "HTML file for Dask's performance report of the run.")
    adapt: tuple[int, int] | None = setting(
        None, "Fewest and most workers; between them, as many as there are blocks for. Instead of a fixed number."
    )
    device: Device | None = setting(
        None, "What predictors compute on, cpu or cuda. Default: the GPUs of the cluster cuda, elsewhere the CPU."
    )

    @property
    def computes_on(self) -> Device:
        """Hardware that predictors compute on."""
        if self.device is not None:
            return self.device
        in_slurm = self.cluster in ("srun", "slurm")
        on_gpus = self.cluster == "cuda" or (in_slurm and self.site is not None and self.site.has_gpus)
        return "cuda" if on_gpus else "cpu"

    @property
    def most_per_gpu(self) -> int:
        """Maximum number of workers that may share a GPU."""
        return self.workers_per_gpu or 1

    @property
    def batch(self) -> bool:
        """Whether a batch system starts the workers."""
        return self.cluster not in ("local", "cuda")

    def __post_init__(self) -> None:
        for refusal in self._contradictions():
            raise PlanError(refusal)

    def _contradictions(self) -> Iterator[str]:
        """Yield the contradictions of a placement. The first one is to be reported."""
        elsewhere = self.scheduler or self.client
        if self.workers is not None and self.workers < 0:
            yield f"a run needs at least 0 workers, not {self.workers}"
        if elsewhere is not None and self.workers is not None:
            yield f"a run starts {self.workers} workers or uses those of {elsewhere}, not both: leave out one of them"
        if self.host is not None and (elsewhere is not None or self.workers == 0):
            other = f"those of {elsewhere}" if elsewhere is not None else "no workers at all"
            yield f"a run listens on {self.host} for workers or uses {other}, not both: leave out one of them"
        if self.tls is not None and self.scheduler is None:
            yield "TLS files are for --scheduler, which is not given: add it, or leave out --tls-ca-file and the others"
        if self.tls is not None and (missing := [str(file) for file in self.tls if not file.is_file()]):
            yield f"the TLS file {missing[0]} is not there: check its path"
        if self.performance_report is not None and self.workers == 0:
            yield (
                "a performance report tells of Dask, which a run with 0 workers does without: raise --workers, or leave out "
                "--performance-report"
            )
        if self.adapt is not None:
            yield from self._contradictions_of_adapt(*self.adapt)
        if self.workers_per_gpu is not None and self.workers_per_gpu < 1:
            yield f"a GPU needs at least 1 worker, not {self.workers_per_gpu}"
        if self.gpus is not None and (not self.gpus or min(self.gpus) < 0 or len(set(self.gpus)) < len(self.gpus)):
            yield f"the GPUs {self.gpus} are not different whole numbers from 0: name each once"
        if self.gpus is not None and self.cluster != "cuda":
            yield "--gpus is for --cluster cuda, which is not given: add it, or leave out --gpus"
        if self.most_per_gpu > 1 and self.cluster == "local" and elsewhere is None:
            yield "--workers-per-gpu is for GPUs, but --cluster cuda is not given: add it, or leave out both"
        if self.cluster == "cuda":
            yield from self._contradictions_of_cuda()
        if self.site is not None and not self.batch:
            yield "--site is for a batch system, but --cluster names none: add --cluster slurm or another, or leave out --site"
        if self.batch:
            yield from self._contradictions_of_batch()

    def _contradictions_of_adapt(self, least: int, most: int) -> Iterator[str]:
        if not 0 <= least <= most or most < 1:
            yield f"--adapt {least}:{most} is no range of workers: give the least and the most, 1:{max(least, most, 1)}"
        if self.workers is not None:
            yield f"--adapt {least}:{most} and --workers {self.workers} both say how many workers there are: leave one out"
        if self.cluster in ("cuda", "srun") or self.scheduler or self.client:
            whose = f"--cluster {self.cluster}" if self.cluster != "local" else "a running cluster"
            yield (
                f"--adapt starts and ends workers one by one, but those of {whose} come and go together: use --cluster slurm "
                "(`emseg submit --elastic`), or leave out --adapt"
            )

    def _contradictions_of_cuda(self) -> Iterator[str]:
        if (elsewhere := self.scheduler or self.client) is not None:
            yield f"a run starts workers on GPUs here or uses those of {elsewhere}, not both: leave out one of them"
        if self.workers is not None:
            yield (
                f"--cluster cuda starts a worker for each GPU, not {self.workers} workers: leave out --workers; --gpus and "
                "--workers-per-gpu say how many"
            )
        if self.host is not None:
            yield f"--cluster cuda listens on this machine alone, not on {self.host}: leave out --host"

    def _contradictions_of_batch(self) -> Iterator[str]:
        if (elsewhere := self.scheduler or self.client) is not None:
            yield f"--cluster {self.cluster} starts workers, but those of {elsewhere} are given: leave out one of them"
        if not (self.workers or self.adapt):
            yield f"--cluster {self.cluster} does not know how many workers to start: give --workers"
        if self.host is not None:
            yield f"--cluster {self.cluster} listens on the site's interface, not on {self.host}: leave out --host"
