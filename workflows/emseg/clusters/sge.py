"""Dask workers as jobs of SGE."""

from __future__ import annotations

from typing import Any

from emseg.clusters.jobs import JobWorker, SGEJob, memory_bytes, refuse
from emseg.slurm.site import Site
from emseg_core.errors import InputError

LEAST_MEMORY = 2**31
"""SGE limits the address space of each process, of which libraries and threads take 1.3 GiB before any voxel is read."""


class WorkerJob(JobWorker, SGEJob):
    """A worker as a separate job."""


def requests(site: Site) -> dict[str, Any]:
    """Return what each worker job asks for, as keywords of dask-jobqueue's class.

    Raises
    ------
    InputError
        If a setting of the site has no counterpart, or no worker starts within its memory.
    """
    refuse(site, "SGE", "qos", "gres")
    if 0 < (whole := memory_bytes(site)) < LEAST_MEMORY:
        raise InputError(
            f"memory is {site.memory!r}, but SGE limits address space with it, of which a worker needs "
            f"{LEAST_MEMORY // 2**30} GiB: raise it, or set it to 'none' and give the site's own option in options"
        )
    memory = whole // site.cores  # of each slot
    return {
        "queue": site.partition or None,
        "project": site.account or None,
        "resource_spec": f"h_vmem={memory}" if memory else None,
        "walltime": f"{site.seconds:.0f}" if site.seconds else "",
        "job_directives_skip": [] if site.seconds else ["#$ -l h_rt="],
        "job_extra_directives": [*([f"-pe smp {site.cores}"] if site.cores > 1 else []), *site.options],
    }
