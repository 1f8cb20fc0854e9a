"""Requeue a SLURM job whose time is up before all blocks are done, as long as its runs make progress."""

from __future__ import annotations

from collections.abc import Callable

from emseg.flows.records.run_log import runs_without_progress
from emseg.flows.running.output_location import default_output
from emseg.slurm.job import SlurmJob
from emseg_core.errors import OutputError
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.lifecycle import is_taken, open_output

MAX_RUNS_WITHOUT_PROGRESS = 3
"""Consecutive runs that may end without finishing a block; after that, the time limit is too short for one."""
MAX_RESTARTS_WITHOUT_WORKERS = 50
"""Times that a job may end while its workers still wait in the queue, before the output is created."""


def requeue_job(volume: Place, output: Place | None, show: Callable[[str], None]) -> None:
    """Requeue the SLURM job that this process runs in, and do not return; or show why not, and return.

    Parameters
    ----------
    volume
        The volume of the run.
    output
        The output of the run; None for the default one.
    show
        Called with a line of text for the user.
    """
    job = SlurmJob.here()
    if job is None:
        show("not requeued: this process is not part of a SLURM job")
    elif not (state := job.state()).startswith("RUNNING"):
        show(f"not requeued: the job is {state or 'unknown to SLURM'}")
    elif why := _why_not(output or default_output(volume), job.restarts):
        show(f"not requeued: {why}")
    else:
        show(f"job {job.number} is requeued and will resume")
        job.requeue()


def _why_not(output: Place, restarts: int) -> str:
    """Return why another run would make no progress; empty if it may."""
    try:
        if not is_taken(output):
            return f"no worker joined in {restarts} runs" if restarts >= MAX_RESTARTS_WITHOUT_WORKERS else ""
        fruitless = runs_without_progress(open_output(output))
    except OutputError as error:
        return str(error)
    if fruitless < MAX_RUNS_WITHOUT_PROGRESS:
        return ""
    return f"the last {fruitless} runs finished no block: give the job more time"
