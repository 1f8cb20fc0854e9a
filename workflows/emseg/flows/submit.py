"""`emseg submit`: a run as a SLURM job, which outlives the login shell and goes on until the volume is done.

Beside the output lie the script, the settings, the site and the logs: ``OUT.slurm/``.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emseg.flows.plan import plan
from emseg.flows.running.output_location import check_output_place, default_output
from emseg.placement import Placement
from emseg.runs.stop import REPORT_SECONDS
from emseg.settings.run import RunSettings
from emseg.settings.toml import to_toml
from emseg.slurm.job import REPLY_TIMEOUT_SECONDS
from emseg.slurm.site import JOB_NUMBERS_FILE, Site, logs_of
from emseg_core.errors import InputError
from emseg_core.store.files.place import Place, parse_place

SETTINGS, SITE = "settings.toml", "site.toml"
"""Files in the folder of the logs."""
LEAD_SECONDS = (30, 120)
"""Shortest and longest time before its end at which SLURM signals the driver; the signal may come a minute earlier."""
LEAD_SHARE = 0.1
"""In between, this share of the job's time."""
DRIVER_BYTES = 2 * 2**30
"""Memory of scheduler and driver."""
WORKER_MEMORY_FACTOR = 1.25
"""Memory of a worker, relative to what its plan needs."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as a SLURM job, ready to be submitted."""

    output: Place
    script: str
    settings: str
    """The file of settings that the job reads, TOML."""
    site: Site
    """What each worker is given."""

    @property
    def folder(self) -> Path:
        """Folder of the script, the settings, the site and the logs."""
        return logs_of(self.output)


def prepare_submission(
    volume: str | Place,
    output: str | Place | None = None,
    settings: RunSettings | None = None,
    *,
    site: Site,
    placement: Placement,
    options: Mapping[str, Any] | None = None,
) -> Submission:
    """Prepare a run as a SLURM job, and write nothing.

    Parameters
    ----------
    volume, output, settings
        As for `emseg.segment`.
    site
        What the SLURM site asks for.
    placement
        How many workers, as steps of the job (cluster ``srun``) or as jobs of their own beside a small one that drives
        (``slurm``).
    options
        Other options of ``emseg run`` by their names with underscores: ``{"overwrite": True, "block_timeout": 3600}``.

    Returns
    -------
    Submission

    Raises
    ------
    InputError
        If the run would be refused, or something does not fit together.
    """
    settings, volume = settings or RunSettings(), parse_place(volume)
    where = {name: getattr(placement, name) for name in ("workers", "adapt", "cluster", "device", "workers_per_gpu")}
    planned = plan(volume, settings, **where)
    output = parse_place(output) if output is not None else default_output(volume)
    check_output_place(output, volume)
    output = output.absolute()
    if isinstance(output, Path) and not output.parent.is_dir():
        raise InputError(f"{output} cannot be made, as {output.parent} is not a folder: make that first")
    need = planned.cost.bytes_per_worker
    site = site.replaced(cpus=site.cpus or settings.threads, memory=site.memory or _megabytes(WORKER_MEMORY_FACTOR * need))
    lead = _lead(site.seconds)
    table = {
        "volume": str(volume.absolute()),
        "output": str(output),
        **settings.to_table(),
        **{name: value for name, value in where.items() if value is not None},
        **(options or {}),
        "site": str(logs_of(output) / SITE),
        "requeue": True,
        "grace": lead - REPORT_SECONDS,
    }
    return Submission(output, _script(output, site, placement, lead), to_toml(table), site)


def submit(submission: Submission) -> str:
    """Submit a job.

    Parameters
    ----------
    submission
        The job, as `prepare_submission` returns it.

    Returns
    -------
    str
        Its number.

    Raises
    ------
    InputError
        If there is no SLURM here, or it refuses.
    """
    folder = submission.folder
    folder.mkdir(exist_ok=True)
    script = folder / "job.sh"
    script.write_text(submission.script)
    (folder / SETTINGS).write_text(submission.settings)
    (folder / SITE).write_text(submission.site.to_toml())
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", script], capture_output=True, text=True, timeout=3 * REPLY_TIMEOUT_SECONDS
        )
    except FileNotFoundError as error:
        raise InputError("there is no sbatch on this machine: submit where SLURM is, or use `emseg run`") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"SLURM does not answer within {3 * REPLY_TIMEOUT_SECONDS:.0f} s: try again later") from error
    if done.returncode:
        raise InputError(f"SLURM refuses the job ({' '.join(done.stderr.split())}): change the options or the site's values")
    number = done.stdout.strip().partition(";")[0]
    with (folder / JOB_NUMBERS_FILE).open("a") as jobs:
        jobs.write(f"{number}\n")
    return number


def _script(output: Place, site: Site, placement: Placement, lead: int) -> str:
    """Return the script of the job."""
    folder, workers = logs_of(output), placement.workers
    if placement.cluster == "slurm":
        size = ["--ntasks=1", "--cpus-per-task=1", f"--mem={_megabytes(DRIVER_BYTES)}"]
    else:
        size = [f"--ntasks={workers}", f"--cpus-per-task={site.cpus}", *site.task_options, *_memory_for(site)]
    headers = [
        f"--job-name=emseg-{output.name}",
        *size,
        *site.job_options,
        f"--signal=B:TERM@{lead}",
        "--requeue",
        "--open-mode=append",
        f"--chdir={Path.cwd()}",
        f"--output={folder}/%j.log",
    ]
    words = [sys.executable, "-m", "emseg", "run", "--settings", str(folder / SETTINGS)]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(header)}" for header in headers),
            *site.prologue,
            "export OMP_NUM_THREADS=1",
            "# The proxy of the notebook that has submitted this leads to the machine of the notebook.",
            "unset JUPYTERHUB_SERVICE_PREFIX",
            "# The driver takes the place of the shell, so that SLURM's signal reaches it.",
            f"exec {shlex.join(words)}",
            "",
        ]
    )


def _lead(seconds: float | None) -> int:
    """Return how many seconds before its end SLURM signals a job of this length."""
    least, most = LEAD_SECONDS
    return most if seconds is None else round(min(most, max(least, LEAD_SHARE * seconds)))


def _memory_for(site: Site) -> list[str]:
    """Return the option for the memory of a job whose tasks may lie on any nodes."""
    number, unit = (site.memory[:-1], site.memory[-1]) if site.memory[-1].isalpha() else (site.memory, "M")
    kilobytes = int(number) * {"K": 1, "M": 2**10, "G": 2**20, "T": 2**30}[unit]
    return [f"--mem-per-cpu={math.ceil(kilobytes / 1024 / site.cpus)}M"]


def _megabytes(size: float) -> str:
    """Return a number of bytes as SLURM reads it."""
    return f"{math.ceil(size / 2**20)}M"
