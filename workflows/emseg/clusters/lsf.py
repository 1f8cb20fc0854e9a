"""Dask workers as jobs of LSF. Written by its manual; not tried on a real one."""

from __future__ import annotations

from typing import Any

from emseg.clusters.jobs import JobWorker, LSFJob, memory_bytes, refuse
from emseg.slurm.site import Site


class WorkerJob(JobWorker, LSFJob):
    """A worker as a separate job."""


def requests(site: Site) -> dict[str, Any]:
    """Return what each worker job asks for, as keywords of dask-jobqueue's class.

    Raises
    ------
    InputError
        If a setting of the site has no counterpart.
    """
    refuse(site, "LSF", "qos", "gres")
    minutes = int((site.seconds or 0) / 60)
    memory = memory_bytes(site)
    return {
        "queue": site.partition or None,
        "project": site.account or None,
        "ncpus": site.cores,
        "mem": memory,
        "walltime": f"{minutes // 60}:{minutes % 60:02}",
        "job_directives_skip": [*([] if minutes else ["#BSUB -W "]), *([] if memory else ["#BSUB -M "])],
    }
