"""Dask workers as jobs of SGE. Written by its manual; not tried on a real one."""

from __future__ import annotations

from typing import Any

from emseg.clusters.jobs import JobWorker, SGEJob, memory_bytes, refuse
from emseg.slurm.site import Site


class WorkerJob(JobWorker, SGEJob):
    """A worker as a separate job."""


def requests(site: Site) -> dict[str, Any]:
    """Return what each worker job asks for, as keywords of dask-jobqueue's class.

    Raises
    ------
    InputError
        If a setting of the site has no counterpart.
    """
    refuse(site, "SGE", "qos", "gres")
    memory = memory_bytes(site) // site.cores  # of each slot
    return {
        "queue": site.partition or None,
        "project": site.account or None,
        "resource_spec": f"h_vmem={memory}" if memory else None,
        "walltime": f"{site.seconds:.0f}" if site.seconds else "",
        "job_directives_skip": [] if site.seconds else ["#$ -l h_rt="],
        "job_extra_directives": [*([f"-pe smp {site.cores}"] if site.cores > 1 else []), *site.options],
    }
