"""`emseg run`."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from emseg.cli.exit import exit_stopped
from emseg.cli.options import json_option, placement_options, settings_options
from emseg.cli.saying import say, say_json, say_result
from emseg.cli.terminal import on_terminal
from emseg.cli.values import Location
from emseg.placement import WhereOnGpus, on_cpus
from emseg.runs.stop import Stop, StoppedError
from emseg.settings.run import RunSettings
from emseg.settings.toml import read_table
from emseg.slurm.job import SlurmJob
from emseg_core.store.files.place import Place


def _read_settings(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:  # noqa: ARG001  click's
    """Take the values of a file as defaults of the options."""
    if path is None:
        return
    names = {option.name for option in context.command.params} - {"settings_file", "as_json"}
    table = read_table(path, names)
    several = {option.name for option in context.command.params if option.multiple}
    context.default_map = {
        name: [value] if name in several and isinstance(value, str) else value for name, value in table.items()
    }


@click.command()
@click.argument("volume", type=Location())
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    is_eager=True,
    expose_value=False,
    callback=_read_settings,
    help="Read options from a TOML file, as `emseg submit` writes it; options that are typed take precedence.",
)
@click.option(
    "-o",
    "--output",
    type=Location(),
    help="The output, also at s3:// or gs://. Default: VOLUME.emseg.zarr beside the volume; of a remote volume, here.",
)
@settings_options()
@placement_options(gpus=True)
@click.option("--instances", is_flag=True, help="Label instances at the end, as `emseg label` does.")
@click.option("--requeue", is_flag=True, help="Put the SLURM job that this runs in back into the queue when its time is up.")
@click.option("--overwrite", is_flag=True, help="Start over if there is an output already.")
@click.option(
    "--mixed-hardware", is_flag=True, help="Allow workers whose results may differ in the last bits (other CPU or GPU type)."
)
@click.option(
    "--performance-report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write Dask's performance report of the run: one file, to be opened in a browser.",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first block that fails.")
@click.option("--max-failures", type=click.IntRange(min=1), help="Stop after N failed blocks.  [default: never]", metavar="N")
@click.option(
    "--block-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800,
    show_default=True,
    help="Seconds that a block may take before its worker is restarted.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=20,
    show_default=True,
    help="Seconds that blocks in progress get to finish after SIGINT or SIGTERM; a second signal stops at once.",
)
@json_option
def run(
    volume: Place,
    output: Place | None,
    settings: RunSettings,
    where: WhereOnGpus,
    instances: bool,
    requeue: bool,
    overwrite: bool,
    fail_fast: bool,
    max_failures: int | None,
    block_timeout: float,
    grace: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Segment VOLUME, or resume an earlier run."""
    if requeue and (cluster := where.get("cluster")) in ("lsf", "pbs", "sge"):
        raise click.UsageError(f"--requeue is for SLURM, not for --cluster {cluster}: leave it out, and run the command again")
    job = SlurmJob.here() if requeue else None
    stop = Stop(grace, job.seconds_left() if job else None)
    restarted = job is not None and job.restarts > 0  # what is started over is so once
    try:
        with on_terminal(stop, where) as terminal:
            from emseg.flows.segment import segment
            from emseg.runs.dispatch import Policy

            report = segment(
                volume,
                output,
                replace(settings, probabilities=settings.probabilities or instances),
                overwrite=overwrite and not restarted,
                policy=Policy(block_timeout, 1 if fail_fast else max_failures),
                **options,
                **where,
                **terminal,
            )
            labelled = None
            if instances and report.exit_code == 0:
                from emseg.flows.label import label as label_output
                from emseg.flows.running.output_location import default_output

                place = output or default_output(settings.level_of(volume))
                labelled = label_output(place, **on_cpus(where), **terminal)
    except StoppedError as stopped:
        if requeue and stopped.number == signal.SIGTERM:
            _queue_again(settings.level_of(volume), output)
        raise
    if as_json:
        say_json({**report.to_json(), **({"instances": labelled.to_json()} if labelled is not None else {})})
    elif labelled is not None:
        say_result(labelled)
    code = report.exit_code or (0 if labelled is None else labelled.exit_code)
    if code > 128:
        if requeue and code == 128 + signal.SIGTERM:
            _queue_again(settings.level_of(volume), output)
        exit_stopped(code - 128)
    sys.exit(code)


def _queue_again(volume: Place, output: Place | None) -> None:
    """Put the job back into the queue, if anything is left."""
    from emseg.flows.running.requeue import requeue_job

    requeue_job(volume, output, lambda message: say(message, err=True))
