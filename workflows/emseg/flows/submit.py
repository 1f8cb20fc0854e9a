"""`emseg submit`: run a command as a SLURM job, which outlives the login shell. A run continues until the volume is done.

The script, the settings, the site and the logs are in ``OUT.slurm/`` beside the output.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emseg.flows.plan import plan
from emseg.flows.running.output_location import check_output_place, default_output
from emseg.placement import Placement
from emseg.runs.stop import REPORT_SECONDS
from emseg.settings.run import RunSettings
from emseg.settings.toml import to_toml
from emseg.slurm.job import REPLY_TIMEOUT_SECONDS, environment_for_jobs
from emseg.slurm.options import Option, without_patterns
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
    """A command as a SLURM job, ready to be submitted."""

    output: Place
    script: str
    settings: str
    """The file of settings that the job reads, TOML; empty if it reads none."""
    site: Site
    """What each worker is given."""
    command: str = "run"
    """Name of the command."""

    @property
    def folder(self) -> Path:
        """Folder of the script, the settings, the site and the logs."""
        return logs_of(self.output)

    @property
    def files(self) -> dict[str, str]:
        """Contents of the files in `folder` by their names; those of a run are not replaced by another command's."""
        if self.command != "run":
            return {f"{self.command}.sh": self.script, f"{self.command}-{SITE}": self.site.to_toml()}
        return {"job.sh": self.script, SETTINGS: self.settings, SITE: self.site.to_toml()}


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
    output = _in_folder(output)
    need = planned.cost.bytes_per_worker
    memory = site.memory or _megabytes(WORKER_MEMORY_FACTOR * need)
    site = replace(site, cpus=site.cpus or settings.threads, memory=memory)
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
    words = ["run", "--settings", str(logs_of(output) / SETTINGS)]
    return Submission(output, _script(output, site, placement, lead, words), to_toml(table), site)


def prepare_command(command: str, words: Sequence[str], output: str | Place, *, site: Site, placement: Placement) -> Submission:
    """Prepare another command than a run as a SLURM job, and write nothing.

    Parameters
    ----------
    command
        Its name, such as ``label``.
    words
        Its arguments and options, except those that say where it runs.
    output
        What it writes.
    site
        What the SLURM site asks for.
    placement
        How many workers, as for `prepare_submission`.

    Returns
    -------
    Submission

    Raises
    ------
    InputError
        If the memory of a worker is not known, or something does not fit together.
    """
    output = _in_folder(parse_place(output))
    workers = placement.workers or (placement.adapt[1] if placement.adapt else 0)
    if not workers:
        raise InputError(f"`emseg submit {command}` does not know how many workers to start: give --workers")
    if not (site.memory or site.option("memory")):
        raise InputError(
            f"`emseg submit {command}` does not know how much memory a worker needs: give --memory 16G, or none if the site "
            "takes no such option"
        )
    where = ["--adapt", ":".join(map(str, placement.adapt))] if placement.adapt else ["--workers", str(workers)]
    where += ["--cluster", placement.cluster, "--site", str(logs_of(output) / f"{command}-{SITE}")]
    site = replace(site, cpus=site.cores)
    script = _script(output, site, placement, _lead(site.seconds), [command, *words, *where])
    return Submission(output, script, "", site, command)


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
    for name, content in submission.files.items():
        (folder / name).write_text(content)
    script = folder / next(iter(submission.files))
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", script],
            capture_output=True,
            text=True,
            timeout=3 * REPLY_TIMEOUT_SECONDS,
            env=environment_for_jobs(),
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


def _in_folder(output: Place) -> Place:
    """Return the absolute place of an output, whose folder is there."""
    output = output.absolute()
    if isinstance(output, Path) and not output.parent.is_dir():
        raise InputError(f"{output} cannot be made, as {output.parent} is not a folder: make that first")
    return output


def _script(output: Place, site: Site, placement: Placement, lead: int, command: list[str]) -> str:
    """Return the script of the job that runs a command of emseg."""
    folder = logs_of(output)
    others = (
        Option("job-name", f"emseg-{output.name}"),
        Option("signal", f"B:TERM@{lead}"),
        Option("requeue"),
        Option("open-mode", "append"),
        Option("chdir", str(Path.cwd())),
        Option("output", f"{without_patterns(folder)}/%j.log"),
    )
    if placement.cluster == "slurm":
        headers = site.driver_options(_megabytes(DRIVER_BYTES), *others)
    else:
        headers = site.job_options(placement.workers or 1, *others)
    words = [sys.executable, "-m", "emseg", *command]
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


def _megabytes(size: float) -> str:
    """Return a number of bytes as SLURM reads it."""
    return f"{math.ceil(size / 2**20)}M"
