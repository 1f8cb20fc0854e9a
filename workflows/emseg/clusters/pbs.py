"""Dask workers as jobs of PBS. Written by its manual; not tried on a real one."""

from __future__ import annotations

from typing import Any

from emseg.clusters.jobs import JobWorker, PBSJob, memory_bytes, refuse
from emseg.slurm.site import Site


class WorkerJob(JobWorker, PBSJob):
    """A worker as a separate job."""


def requests(site: Site) -> dict[str, Any]:
    """Return what each worker job asks for, as keywords of dask-jobqueue's class.

    Raises
    ------
    InputError
        If a setting of the site has no counterpart.
    """
    refuse(site, "PBS", "qos", "gres")
    memory = f":mem={memory_bytes(site)}b" if memory_bytes(site) else ""
    return {
        "queue": site.partition or None,
        "account": site.account or None,
        "resource_spec": f"select=1:ncpus={site.cores}{memory}",
        "walltime": f"{site.seconds:.0f}" if site.seconds else "",
        "job_directives_skip": [] if site.seconds else ["#PBS -l walltime="],
    }
