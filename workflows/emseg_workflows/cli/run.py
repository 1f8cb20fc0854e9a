"""`emseg run`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from emseg.box import Triple
from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.options import (
    channel_option,
    device_option,
    json_option,
    level_option,
    mask_option,
    model_option,
    of_level,
    placement_options,
    probabilities_option,
    pyramid_option,
    region_option,
    threads_option,
    tile_option,
    timepoint_option,
    tta_option,
)
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.terminal import on_terminal
from emseg_workflows.cli.values import Declared, Location
from emseg_workflows.slurm_job import SlurmJob
from emseg_workflows.stop import Stop, StoppedError

if TYPE_CHECKING:
    from emseg.store.place import Place
    from emseg_workflows.placement import WhereOnGpus


@click.command()
@click.argument("volume", type=Location())
@click.option(
    "-o",
    "--output",
    type=Location(),
    help="The output, also at s3:// or gs://; by default VOLUME.emseg.zarr beside it, or of a remote one here.",
)
@placement_options("Worker processes; by default one per core. 0: no Dask.", gpus=True)
@click.option("--requeue", is_flag=True, help="Queue the SLURM job that this runs in again when its time is up.")
@device_option
@click.option(
    "--backend",
    type=click.Choice(["torch", "openvino"]),
    help="Library that computes; by default OpenVINO on a CPU, if it is installed. Part of what an output is begun with.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Type of the activations. auto: a low one that is fast here, if it gives 99.9 % of a sample float32's labels.",
)
@model_option
@level_option
@channel_option
@timepoint_option
@region_option
@probabilities_option
@click.option(
    "--empty",
    type=Declared(),
    help="Blocks that see nothing but this grey value get this class, and are not predicted; by default all are.",
)
@click.option("--instances", is_flag=True, help="Label instances at the end, as `emseg label` does.")
@tta_option
@pyramid_option
@mask_option
@click.option(
    "--normalise",
    type=click.Choice(["volume", "slice"]),
    help="Measure intensities once per volume, or per z slice; by default as when the model was trained.",
)
@tile_option
@threads_option
@click.option("--overwrite", is_flag=True, help="Begin an output that is already there anew.")
@click.option("--mixed-hardware", is_flag=True, help="Accept workers that compute other last bits than the run began with.")
@click.option(
    "--performance-report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write Dask's report on the run: one file, to be opened in a browser.",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first block that fails.")
@click.option("--max-failures", type=click.IntRange(min=1), help="Stop after so many failed blocks; by default never.")
@click.option(
    "--block-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800,
    show_default=True,
    help="Seconds that a block may run before its worker is started anew.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=20,
    show_default=True,
    help="Seconds that blocks in hand get to end after SIGINT or SIGTERM; a second signal stops at once.",
)
@json_option
def run(
    volume: Place,
    output: Place | None,
    where: WhereOnGpus,
    requeue: bool,
    device: Literal["cpu", "cuda"] | None,
    backend: Literal["torch", "openvino"] | None,
    precision: Literal["auto", "float32", "bfloat16", "float16"],
    model: str | None,
    level: int | None,
    channel: str | None,
    timepoint: int | None,
    roi: str | None,
    probabilities: bool,
    empty: tuple[float, str] | None,
    instances: bool,
    tta: bool,
    pyramid: bool | None,
    mask: Path | None,
    normalise: Literal["volume", "slice"] | None,
    tile: Triple | None,
    threads: int,
    overwrite: bool,
    mixed_hardware: bool,
    performance_report: Path | None,
    fail_fast: bool,
    max_failures: int | None,
    block_timeout: float,
    grace: float,
    as_json: bool,
) -> None:
    """Segment VOLUME, or go on with a run that was stopped."""
    volume = of_level(volume, level)
    job = SlurmJob.here() if requeue else None
    stop = Stop(grace, job.seconds_left() if job else None)
    restarted = job is not None and job.restarts > 0  # what is begun anew is so once
    try:
        with on_terminal(stop) as terminal:
            from emseg_workflows.dispatch import Policy  # noqa: PLC0415
            from emseg_workflows.flows.segment import segment  # noqa: PLC0415

            report = segment(
                volume,
                output,
                channel=channel,
                timepoint=timepoint,
                model=model,
                region=roi,
                probabilities=probabilities or instances,
                tta=tta,
                pyramid=pyramid,
                mask=mask,
                empty=empty,
                normalise=normalise,
                tile=tile,
                threads=threads,
                **where,
                device=device,
                backend=backend,
                precision=None if precision == "auto" else precision,
                overwrite=overwrite and not restarted,
                mixed_hardware=mixed_hardware,
                performance_report=performance_report,
                policy=Policy(block_timeout, 1 if fail_fast else max_failures),
                **terminal,
            )
            labelled = None
            if instances and report.exit_code == 0:
                from emseg_workflows.flows.label import label as label_output  # noqa: PLC0415
                from emseg_workflows.flows.places import default_output  # noqa: PLC0415
                from emseg_workflows.placement import on_cpus  # noqa: PLC0415

                place = output or default_output(volume)
                labelled = label_output(place, **on_cpus(where), **terminal)
    except StoppedError as stopped:
        if requeue and stopped.number == signal.SIGTERM:
            _queue_again(volume, output)
        raise
    if as_json:
        told = {} if labelled is None else {"instances": labelled.to_json()}
        say(*json.dumps({**report.to_json(), **told}, indent=2).splitlines())
    elif labelled is not None:
        say(*str(labelled).splitlines())
    code = report.exit_code or (0 if labelled is None else labelled.exit_code)
    if code > 128:
        if requeue and code == 128 + signal.SIGTERM:
            _queue_again(volume, output)
        leave(stopped_by(code - 128), code)
    sys.exit(code)


def _queue_again(volume: Place, output: Place | None) -> None:
    from emseg_workflows.flows.requeue import queue_again  # noqa: PLC0415

    queue_again(volume, output, lambda message: say(message, err=True))
