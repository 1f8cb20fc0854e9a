"""`emseg submit`: a run as a SLURM job, which outlives the login shell and goes on until the volume is done.

Beside the output lie the script, the site and the logs: ``OUT.slurm/``.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emseg.box import Triple
from emseg.errors import InputError
from emseg.grid.cost import cost_of
from emseg.store.place import Place
from emseg_workflows.flows.places import check_output_place, default_output
from emseg_workflows.flows.plan import plan_run
from emseg_workflows.placement import Placement
from emseg_workflows.site import JOBS, Site, logs_of
from emseg_workflows.slurm_job import ANSWER
from emseg_workflows.stop import LAST

LEADS = (30, 120)
"""Least and most seconds before its end at which SLURM signals the driver; the signal may come a minute earlier."""
SHARE = 0.1
"""Share of the job's time that this is in between."""
DRIVER_MEMORY = 2 * 2**30
"""Bytes of memory of scheduler and driver."""
ROOM = 1.25
"""Memory that a worker gets, by what its plan needs."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as a SLURM job, ready to be submitted."""

    output: Place
    script: str
    site: Site
    """What each worker is given."""

    @property
    def folder(self) -> Path:
        """Where script, site and logs are."""
        return logs_of(self.output)


def prepare_submission(
    volume: Place,
    output: Place | None,
    options: Sequence[str],
    site: Site,
    *,
    placement: Placement,
    channel: int | str | None = None,
    timepoint: int | None = None,
    model: str | None = None,
    region: str | None = None,
    tile: Triple | None = None,
    probabilities: bool = False,
    tta: bool = False,
    threads: int = 1,
) -> Submission:
    """The job that runs ``emseg run`` with these options on a volume; nothing is written.

    Parameters
    ----------
    options
        The words after ``emseg run``, volume and output included; the other keywords say what of them matters here.
    placement
        How many workers, as steps of the job or as jobs of their own beside a small one that drives.

    Raises
    ------
    InputError
        If the run would be refused, or something does not fit together.
    """
    planned = plan_run(
        volume,
        channel=channel,
        timepoint=timepoint,
        model=model,
        region=region,
        tile=tile,
        tta=tta,
        threads=threads,
        placement=placement,
    )
    output = output or default_output(volume)
    check_output_place(output, volume)
    output = output.absolute()
    if isinstance(output, Path) and not output.parent.is_dir():
        raise InputError(f"{output} cannot be made, as {output.parent} is not a folder: make that first")
    need = cost_of(planned.plan, planned.volume, probabilities, tta).bytes_per_worker
    site = site.but(cpus=site.cpus or threads, memory=site.memory or _megabytes(ROOM * need))
    return Submission(output, _script(output, options, site, placement), site)


def submit(submission: Submission) -> str:
    """Submits a job, and returns its number.

    Raises
    ------
    InputError
        If there is no SLURM here, or it refuses.
    """
    folder = submission.folder
    folder.mkdir(exist_ok=True)
    script = folder / "job.sh"
    script.write_text(submission.script)
    (folder / "site.toml").write_text(submission.site.to_toml())
    try:
        done = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True, timeout=3 * ANSWER)
    except FileNotFoundError as error:
        raise InputError("there is no sbatch on this machine: submit where SLURM is, or use `emseg run`") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"SLURM does not answer within {3 * ANSWER:.0f} s: try again later") from error
    if done.returncode:
        raise InputError(f"SLURM refuses the job ({' '.join(done.stderr.split())}): change the options or the site's values")
    number = done.stdout.strip().partition(";")[0]
    with (folder / JOBS).open("a") as jobs:
        jobs.write(f"{number}\n")
    return number


def _script(output: Place, options: Sequence[str], site: Site, placement: Placement) -> str:
    folder, lead, workers = logs_of(output), _lead(site.seconds), placement.workers
    if placement.cluster == "slurm":
        size = ["--ntasks=1", "--cpus-per-task=1", f"--mem={_megabytes(DRIVER_MEMORY)}"]
    else:
        size = [f"--ntasks={workers}", f"--cpus-per-task={site.cpus}", *site.each_task, *_memory_for(site)]
    headers = [
        f"--job-name=emseg-{output.name}",
        *size,
        *site.header,
        f"--signal=B:TERM@{lead}",
        "--requeue",
        "--open-mode=append",
        f"--chdir={Path.cwd()}",
        f"--output={folder}/%j.log",
    ]
    words = [sys.executable, "-m", "emseg_workflows", "run", *options, "--output", str(output)]
    words += ["--cluster", placement.cluster]
    words += ["--workers", str(workers)] if placement.adapt is None else ["--adapt", "{}:{}".format(*placement.adapt)]
    words += ["--site", str(folder / "site.toml"), "--requeue", "--grace", f"{lead - LAST:g}"]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {shlex.quote(header)}" for header in headers),
            *site.prologue,
            "export OMP_NUM_THREADS=1",
            "# The driver takes the place of the shell, so that SLURM's signal reaches it.",
            f"exec {shlex.join(words)}",
            "",
        ]
    )


def _lead(seconds: float | None) -> int:
    least, most = LEADS
    return most if seconds is None else round(min(most, max(least, SHARE * seconds)))


def _memory_for(site: Site) -> list[str]:
    """Memory of a job whose tasks may lie on any nodes."""
    number, unit = (site.memory[:-1], site.memory[-1]) if site.memory[-1].isalpha() else (site.memory, "M")
    kilobytes = int(number) * {"K": 1, "M": 2**10, "G": 2**20, "T": 2**30}[unit]
    return [f"--mem-per-cpu={math.ceil(kilobytes / 1024 / site.cpus)}M"]


def _megabytes(size: float) -> str:
    return f"{math.ceil(size / 2**20)}M"
