"""What a SLURM job does when its time is up and blocks are left: it queues itself again, as long as that leads somewhere."""

from __future__ import annotations

from collections.abc import Callable

from emseg.errors import OutputError
from emseg.store.output import is_taken, open_output
from emseg.store.place import Place
from emseg_workflows.flows.places import default_output
from emseg_workflows.flows.record import fruitless_runs
from emseg_workflows.slurm_job import SlurmJob

FRUITLESS = 3
"""Runs in a row that may end without a block done; after that the time is too short for one."""
WAITS = 50
"""Times that a job may end while its workers still wait in the queue, before anything is begun."""


def queue_again(volume: Place, output: Place | None, tell: Callable[[str], None]) -> None:
    """Queues the job that this process runs in again and does not return; or tells why not, and returns."""
    job = SlurmJob.here()
    if job is None:
        tell("not queued again: this process is in no SLURM job")
    elif not (state := job.state()).startswith("RUNNING"):
        tell(f"not queued again: the job is {state or 'not known to SLURM'}")
    elif why := _in_vain(output or default_output(volume), job.restarts):
        tell(f"not queued again: {why}")
    else:
        tell(f"job {job.number} queues itself again, to go on")
        job.requeue()


def _in_vain(output: Place, restarts: int) -> str:
    """Why another run would lead nowhere; empty if it may."""
    try:
        if not is_taken(output):
            return f"no worker came in {restarts} runs" if restarts >= WAITS else ""
        fruitless = fruitless_runs(open_output(output))
    except OutputError as error:
        return str(error)
    return f"the last {fruitless} runs have done no block: give the job more time" if fruitless >= FRUITLESS else ""
