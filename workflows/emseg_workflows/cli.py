"""The command ``emseg``: each command parses, calls one flow, prints, and leaves with an exit code.

    0 done   1 unexpected   2 bad input or refused, nothing written   3 finished with failed blocks, or not complete
    130, 143 stopped by a signal

Heavy imports stay inside the commands, so that ``emseg --help`` is quick.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from emseg import __version__
from emseg.box import Triple, triple
from emseg.errors import EmsegError, UnfinishedError
from emseg_workflows.slurm_job import SlurmJob
from emseg_workflows.stop import Stop, StoppedError

if TYPE_CHECKING:
    from emseg.grid.layout import Layout
    from emseg.store.place import Place
    from emseg_workflows.flows.repair import Soundness
    from emseg_workflows.flows.verify import Verdict


Command = TypeVar("Command", bound=Callable[..., Any])

CONNECTIVITY: dict[str, Literal[6, 18, 26]] = {"6": 6, "18": 18, "26": 26}
"""Neighbours of a voxel, as they are typed."""
SHOWN = 8
"""Layouts that `emseg plan --explain` shows."""


class Location(click.ParamType["Place"]):
    """A volume or an output as it is typed: a path, or the address of a remote one, which a path would lose a slash of."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ARG002
        """Where it is."""
        from emseg.store.place import place_of  # noqa: PLC0415

        return place_of(value)


class Numbers(click.ParamType[Triple]):
    """Three whole numbers as they are typed after ``--tile``: ``z,y,x``."""

    name = "z,y,x"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        """The numbers."""
        try:
            return triple(int(part) for part in value.split(",")) if isinstance(value, str) else triple(value)
        except ValueError:
            self.fail(f"{value!r} is not three whole numbers z,y,x", param, ctx)


class GpuNumbers(click.ParamType[tuple[int, ...]]):
    """Numbers of GPUs as they are typed after ``--gpus``: ``0,2``."""

    name = "n,n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        try:
            return tuple(int(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers n,n", param, ctx)


class Bounds(click.ParamType[tuple[int, int]]):
    """The least and the most of something, as they are typed after ``--adapt``: ``1:8``."""

    name = "min:max"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers."""
        try:
            least, most = (int(part) for part in value.split(":")) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not two whole numbers min:max", param, ctx)
        return least, most


class Span(click.ParamType[tuple[int, int]]):
    """Slices as they are typed after ``--slices``: ``18:24``."""

    name = "first:stop"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers."""
        try:
            first, stop = (int(part) for part in value.split(":")) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not two whole numbers first:stop", param, ctx)
        return first, stop


class Declared(click.ParamType[tuple[float, str]]):
    """A grey value and a class as they are typed after ``--empty``: ``0=inside``."""

    name = "value=class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        """Both."""
        try:
            number, name = value.split("=") if isinstance(value, str) else value
            return float(number), name
        except ValueError:
            self.fail(f"{value!r} is not a grey value and a class, value=class", param, ctx)


class Meaning(click.ParamType[dict[str, tuple[int, ...]]]):
    """The values that stand for each class, as they are typed after ``--labels``: ``membrane=0,inside=128+255``."""

    name = "class=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, tuple[int, ...]]:
        """The values by the class's name."""
        if not isinstance(value, str):
            return dict(value)
        meaning: dict[str, tuple[int, ...]] = {}
        try:
            for part in value.split(","):
                name, values = part.split("=")
                if name in meaning:
                    self.fail(f"{value!r} names {name} twice: join its values with +", param, ctx)
                meaning[name] = tuple(int(number) for number in values.split("+"))
        except ValueError:
            self.fail(f"{value!r} is not of the form class=value,class=value+value", param, ctx)
        return meaning


model_option = click.option(
    "--model", metavar="NAME|FILE", help="A bundled model (see `emseg models`) or a model file; by default the bundled one."
)
level_option = click.option(
    "--level", type=click.IntRange(min=0), help="Of the volume's pyramid; by default 0, the finest. As naming its array."
)
channel_option = click.option(
    "--channel", metavar="N|NAME", help="Of a volume with several channels, the number or the name of one; by default as begun."
)
timepoint_option = click.option(
    "--timepoint", type=click.IntRange(min=0), help="Of a volume with several timepoints; by default as begun."
)
region_option = click.option(
    "--roi",
    metavar="Z0:Z1,Y0:Y1,X0:X1",
    help="Part of the volume, in voxels, or with nm at the end in nanometres; by default all.",
)
tile_option = click.option("--tile", type=Numbers(), help="Shape of one network input, in voxels; by default chosen for you.")
probabilities_option = click.option(
    "--probabilities", is_flag=True, help="Store the probability of each class beside the labels."
)
tta_option = click.option(
    "--tta", is_flag=True, help="Average over rotations by 90 degrees and flips of the image plane: 8 times the arithmetic."
)
pyramid_option = click.option(
    "--pyramid/--no-pyramid",
    default=None,
    help="Whether viewers get coarser levels of what is larger than they can show at once; by default as begun, else yes.",
)
mask_option = click.option(
    "--mask", type=click.Path(path_type=Path), help="A Zarr of any voxel size: blocks where it is 0 throughout are left out."
)
adapt_option = click.option(
    "--adapt", type=Bounds(), help="Least and most workers: as many as there are blocks for, instead of --workers."
)
cpu_cluster_option = click.option(
    "--cluster",
    type=click.Choice(["local", "srun", "slurm"]),
    default="local",
    show_default=True,
    help="Where workers start: the cores here, steps of this SLURM job, or SLURM jobs of their own.",
)
site_option = click.option(
    "--site", type=click.Path(path_type=Path), help="What SLURM is told for each worker, see deploy/slurm/site.toml."
)
device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What predictors compute on; by default the GPUs of --cluster cuda, and the CPU elsewhere.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads per predictor; part of the plan."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def elsewhere_options(command: Command) -> Command:
    """The options of a command whose workers may be on other hosts."""
    path = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option(
                "--host", metavar="ADDRESS", help="This machine's address, at which workers on other hosts may join, in TLS."
            ),
            click.option("--scheduler", metavar="ADDRESS", help="Use the Dask cluster whose scheduler is at this address."),
            click.option("--tls-ca-file", type=path, help="The authority that the scheduler's certificate is from."),
            click.option("--tls-cert", type=path, help="The certificate to show to the scheduler."),
            click.option("--tls-key", type=path, help="The key of that certificate."),
        )
    ):
        command = option(command)
    return command


def copying_options(command: Command) -> Command:
    """The options of a command whose workers copy files."""
    workers_option = click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Worker processes; by default one per core, or none for less than 2 GiB. 0: no Dask.",
    )
    return workers_option(adapt_option(elsewhere_options(cpu_cluster_option(site_option(command)))))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def cli() -> None:
    """Segment electron-microscopy volumes of any size, exactly as one pass over the whole volume would.

    \b
    emseg ingest STACK.tif volume.zarr --voxel-size 50 4 4
    emseg run volume.zarr --workers 8
    emseg preview volume.emseg.zarr
    """


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("volume", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="PATH", help="Of an HDF5 file or an N5 container; by default the only one.")
@click.option("--voxel-size", type=float, nargs=3, metavar="Z Y X", help="Size of a voxel, in nanometres.")
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Fill slices that are missing in a folder with 0, and list them; in N5 and precomputed, chunks.",
)
@click.option("--overwrite", is_flag=True, help="Replace a volume that is already there.")
@copying_options
def ingest(
    source: Path,
    volume: Path,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    site: Path | None,
    **options: Any,
) -> None:
    """Make the Zarr volume VOLUME from SOURCE, or go on with that.

    SOURCE is a multi-page TIFF, MRC or HDF5 file, a folder of TIFF or PNG slices, N5, or Neuroglancer precomputed.
    """
    stop = Stop()
    with stop.on_signals():
        from emseg_workflows.console import RunConsole  # noqa: PLC0415
        from emseg_workflows.flows.ingest import ingest as flow  # noqa: PLC0415
        from emseg_workflows.site import read_site  # noqa: PLC0415

        with RunConsole() as console:
            made = flow(
                source,
                volume,
                tls=_tls(tls_ca_file, tls_cert, tls_key),
                site=read_site(site) if site else None,
                **options,
                stop=stop,
                on_event=console,
            )
    spec = made.spec
    click.echo(f"{volume}: {' x '.join(map(str, spec.shape))} {spec.dtype}, {_voxel_size(spec.scale, spec.units)}")
    if made.missing:
        click.echo(f"missing, and filled with 0: z = {', '.join(map(str, made.missing))}")


@cli.command()
@click.argument("volume", type=Location())
@model_option
@level_option
@channel_option
@timepoint_option
@region_option
@tile_option
@probabilities_option
@tta_option
@pyramid_option
@mask_option
@device_option
@threads_option
@click.option("--explain", is_flag=True, help="Show the layouts that were considered, and what each would cost.")
@json_option
def plan(
    volume: Place,
    model: str | None,
    level: int | None,
    channel: str | None,
    timepoint: int | None,
    roi: str | None,
    tile: Triple | None,
    probabilities: bool,
    tta: bool,
    pyramid: bool | None,
    mask: Path | None,
    device: Literal["cpu", "cuda"] | None,
    threads: int,
    explain: bool,
    as_json: bool,
) -> None:
    """Say what a run on VOLUME would do and cost, and stop there."""
    from emseg.grid.cost import cost_of  # noqa: PLC0415
    from emseg_workflows.flows.plan import levels_for, outside_of, plan_run  # noqa: PLC0415

    planned = plan_run(
        _of_level(volume, level),
        channel=channel,
        timepoint=timepoint,
        model=model,
        region=roi,
        tile=tile,
        tta=tta,
        device=device,
        threads=threads,
    )
    made = planned.plan
    cost = cost_of(made, planned.volume, probabilities, tta, levels_for(planned.volume, made.region, pyramid))
    left_out = outside_of(mask, made, planned.volume)
    outside = 0 if left_out is None else int(left_out.sum())
    if as_json:
        layouts = {"layouts": [asdict(layout) for layout in planned.layouts]} if explain else {}
        click.echo(json.dumps({"plan": made.to_json(), "cost": cost.to_json(), "outside": outside, **layouts}, indent=2))
        return
    for name, value in (
        ("region", str(made.region)),
        (
            "blocks",
            f"{cost.blocks} of {' x '.join(map(str, made.unit))} voxels (z, y, x)"
            + (f"; {outside} lie outside the mask" if outside else ""),
        ),
        ("tiles", f"{cost.tiles} of {' x '.join(map(str, made.tile))} voxels"),
        ("arithmetic", f"{cost.flops / 1e12:.3g} TFLOP, {cost.flops / made.region.voxels / 1e3:.0f} kFLOP per voxel"),
        ("reading", f"{_size(cost.bytes_read)}, {cost.bytes_read / cost.bytes_needed:.2f} times what is needed"),
        ("memory", f"{_size(cost.bytes_per_worker)} per worker; on a GPU {_size(cost.bytes_per_predictor)} of them"),
        ("output", f"{_size(cost.output_bytes)} before compression, in {cost.output_files} files"),
    ):
        click.echo(f"{name:<11}{value}")
    if explain:
        _explain(planned.layouts, cost.bytes_needed)


def _explain(layouts: list[Layout], needed: int) -> None:
    """The cheapest layout of each write unit."""
    best: dict[Triple, Layout] = {}
    for layout in layouts:
        best.setdefault(layout.unit, layout)
    first, least = layouts[0], min(layout.flops for layout in layouts)
    click.echo(f"\n{'write unit':<20}{'tile':<20}{'blocks':>9}{'arithmetic':>12}{'reading':>9}{'tile memory':>13}{'price':>8}")
    for layout in islice(best.values(), SHOWN):
        unit, tile = (" x ".join(map(str, shape)) for shape in (layout.unit, layout.tile))
        click.echo(
            f"{unit:<20}{tile:<20}{layout.blocks:>9}{layout.flops / least:>12.2f}{layout.bytes_read / needed:>9.2f}"
            f"{_size(layout.tile_bytes):>13}{layout.price / first.price:>8.3f}"
        )
    click.echo(
        f"\nOf {len(layouts)} that leave enough blocks to share out, the first is taken. The price is that of the arithmetic\n"
        "(here times the least of all), of what is read and decompressed (times what is needed), and of each call of\n"
        "the network; and each doubling of a tile's memory must save some of it."
    )


@cli.command()
@click.argument("volume", type=Location())
@click.option(
    "-o",
    "--output",
    type=Location(),
    help="The output, also at s3:// or gs://; by default VOLUME.emseg.zarr beside it, or of a remote one here.",
)
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes; by default one per core. 0: no Dask.")
@adapt_option
@elsewhere_options
@click.option(
    "--cluster",
    type=click.Choice(["local", "cuda", "srun", "slurm"]),
    default="local",
    show_default=True,
    help="Where workers start: the cores here, the GPUs here, steps of this SLURM job, or SLURM jobs of their own.",
)
@click.option("--gpus", type=GpuNumbers(), help="The GPUs of --cluster cuda, as nvidia-smi numbers them; by default all.")
@click.option("--workers-per-gpu", type=click.IntRange(min=1), help="Workers that share a GPU; by default one for four cores.")
@site_option
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
    workers: int | None,
    adapt: tuple[int, int] | None,
    host: str | None,
    scheduler: str | None,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    cluster: Literal["local", "cuda", "srun", "slurm"],
    gpus: tuple[int, ...] | None,
    workers_per_gpu: int | None,
    site: Path | None,
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
    volume = _of_level(volume, level)
    job = SlurmJob.here() if requeue else None
    stop = Stop(grace, job.seconds_left() if job else None)
    restarted = job is not None and job.restarts > 0  # what is begun anew is so once
    try:
        with stop.on_signals():
            from emseg_workflows.console import RunConsole  # noqa: PLC0415
            from emseg_workflows.dispatch import Policy  # noqa: PLC0415
            from emseg_workflows.flows.segment import segment  # noqa: PLC0415
            from emseg_workflows.site import read_site  # noqa: PLC0415

            tls, told_site = _tls(tls_ca_file, tls_cert, tls_key), read_site(site) if site else None
            with RunConsole() as console:
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
                    workers=workers,
                    adapt=adapt,
                    host=host,
                    scheduler=scheduler,
                    tls=tls,
                    cluster=cluster,
                    gpus=gpus,
                    workers_per_gpu=workers_per_gpu,
                    site=told_site,
                    device=device,
                    backend=backend,
                    precision=None if precision == "auto" else precision,
                    overwrite=overwrite and not restarted,
                    mixed_hardware=mixed_hardware,
                    performance_report=performance_report,
                    policy=Policy(block_timeout, 1 if fail_fast else max_failures),
                    stop=stop,
                    on_event=console,
                )
                labelled = None
                if instances and report.exit_code == 0:
                    from emseg_workflows.flows.label import label as label_output  # noqa: PLC0415
                    from emseg_workflows.flows.places import default_output  # noqa: PLC0415

                    place = output or default_output(volume)
                    labelled = label_output(
                        place,
                        workers=None if cluster == "cuda" else workers,
                        adapt=adapt,
                        host=host,
                        scheduler=scheduler,
                        tls=tls,
                        cluster="local" if cluster == "cuda" else cluster,
                        site=told_site,
                        stop=stop,
                        on_event=console,
                    )
    except StoppedError as stopped:
        if requeue and stopped.number == signal.SIGTERM:
            _queue_again(volume, output)
        raise
    if as_json:
        told = {} if labelled is None else {"instances": labelled.to_json()}
        click.echo(json.dumps({**report.to_json(), **told}, indent=2))
    elif labelled is not None:
        click.echo(labelled)
    code = report.exit_code or (0 if labelled is None else labelled.exit_code)
    if code > 128:
        if requeue and code == 128 + signal.SIGTERM:
            _queue_again(volume, output)
        _leave(_stopped(code - 128), code)
    sys.exit(code)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="VOLUME [OPTIONS OF emseg run]", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--workers", type=click.IntRange(min=1), help="Workers.")
@adapt_option
@click.option(
    "--site", type=click.Path(path_type=Path), help="A TOML file with what follows and more, see deploy/slurm/site.toml."
)
@click.option("--partition", default="", help="The partition.")
@click.option("--account", default="", help="The account.")
@click.option("--qos", default="", help="The quality of service.")
@click.option(
    "--time", default="", metavar="H:M:S", help="Longest that a job may take; it queues itself again until all is done."
)
@click.option("--gres", default="", metavar="gpu:1", help="What each worker needs besides cores and memory.")
@click.option("--cpus", type=click.IntRange(min=1), default=None, help="Cores of each worker; by default one per thread.")
@click.option("--memory", default="", metavar="16G", help="Memory of each worker; by default what the plan needs.")
@click.option("--elastic", is_flag=True, help="Each worker is a job of its own, started, lost and replaced one by one.")
@click.option("--dry-run", is_flag=True, help="Print the script, and submit nothing.")
def submit(
    words: tuple[str, ...],
    workers: int | None,
    adapt: tuple[int, int] | None,
    site: Path | None,
    partition: str,
    account: str,
    qos: str,
    time: str,
    gres: str,
    cpus: int | None,
    memory: str,
    elastic: bool,
    dry_run: bool,
) -> None:
    """Run on a SLURM cluster: as a job that outlives this shell, and goes on until VOLUME is done."""
    from emseg_workflows.flows.submit import prepare_submission  # noqa: PLC0415
    from emseg_workflows.flows.submit import submit as flow  # noqa: PLC0415
    from emseg_workflows.placement import Placement  # noqa: PLC0415
    from emseg_workflows.site import read_site  # noqa: PLC0415

    asked = run.make_context("emseg run", list(words)).params
    for name in ("host", "scheduler", "tls_ca_file", "gpus", "site", "requeue"):
        if asked[name]:
            raise click.UsageError(f"--{name} is not for a run that is submitted: leave it out")
    others = {"partition": partition, "account": account, "qos": qos, "time": time, "gres": gres, "memory": memory}
    ready = prepare_submission(
        _of_level(asked["volume"], asked["level"]),
        asked["output"],
        words,
        read_site(site).but(**others, cpus=cpus),
        placement=Placement(workers, adapt=adapt, cluster="slurm" if elastic else "srun"),
        channel=asked["channel"],
        timepoint=asked["timepoint"],
        model=asked["model"],
        region=asked["roi"],
        tile=asked["tile"],
        probabilities=asked["probabilities"] or asked["instances"],
        tta=asked["tta"],
        threads=asked["threads"],
    )
    if dry_run:
        click.echo(ready.script, nl=False)
        return
    click.echo(f"job        {flow(ready)}")
    click.echo(f"watch      emseg status {ready.output}")
    click.echo(f"log        {ready.folder}")


@cli.command()
@click.argument("output", type=Location())
@click.option(
    "--watch",
    is_flag=False,
    flag_value=10.0,
    type=click.FloatRange(min=0, min_open=True),
    metavar="[SECONDS]",
    help="Tell again every so many seconds, 10 if none are given, until the run ends; leaves with its exit code.",
)
@json_option
def status(output: Place, watch: float | None, as_json: bool) -> None:
    """Say how far OUTPUT is: blocks done, failed and left, and whether a run goes on."""
    from emseg_workflows.flows.status import status as flow  # noqa: PLC0415

    if watch is not None:
        sys.exit(_watched(output, watch, as_json))
    found = flow(output)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))


@cli.command()
@click.argument("output", type=Location())
@click.option("--boxes", type=click.IntRange(min=1), default=8, show_default=True, help="Random boxes to compute again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed that the boxes are drawn from.")
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
@click.option("--model", metavar="NAME|FILE", help="The model, if it was moved since the run.")
@click.option("--checksums", is_flag=True, help="Read each stored byte instead, and compute nothing.")
@click.option("--repair", is_flag=True, help="As --checksums, and compute again what is damaged or missing.")
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes of --repair, as in `emseg run`.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What to compute on.")
@json_option
def verify(
    output: Place,
    boxes: int,
    seed: int,
    volume: Place | None,
    model: str | None,
    checksums: bool,
    repair: bool,
    workers: int | None,
    device: Literal["cpu", "cuda"],
    as_json: bool,
) -> None:
    """Prove on OUTPUT that tiling left no trace: compute random boxes again with other tiles, and compare.

    With --checksums, prove instead that each block can be read back as it was written.
    """
    if workers is not None and not repair:
        raise click.UsageError(f"--workers {workers} is for --repair, which is not given")
    if repair:
        found: Soundness | Verdict = _repaired(output, volume, model, workers, device)
    elif checksums:
        from emseg_workflows.flows.repair import check  # noqa: PLC0415

        found = check(output)
    else:
        from emseg_workflows.flows.verify import verify as flow  # noqa: PLC0415

        found = flow(output, boxes=boxes, seed=seed, volume=volume, model=model, device=device)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))
    sys.exit(found.exit_code)


@cli.command()
@click.argument("output", type=Location())
@click.option(
    "--method",
    type=click.Choice(["watershed", "components"]),
    default="watershed",
    show_default=True,
    help="Fragments of the boundary's probability, merged by its mean between them; or what hangs together of one class.",
)
@click.option(
    "--class",
    "class_name",
    metavar="NAME",
    help="The boundary, or for components what is labelled; by default membrane, inside.",
)
@click.option("--threshold", type=float, help="Fragments are merged below this mean probability.  [default: 0.56]")
@click.option("--smoothing", type=int, help="How often the boundary is smoothed before fragments grow.  [default: 1]")
@click.option("--planar/--solid", default=None, help="Grow fragments in z slices, or not; by default as voxels are shaped.")
@click.option(
    "--connectivity", type=click.Choice(["6", "18", "26"]), default="6", show_default=True, help="Neighbours, for components."
)
@click.option("--smallest", type=click.IntRange(min=0), default=0, show_default=True, help="Voxels below which one is dropped.")
@click.option("--name", default="instances", show_default=True, help="Of the image of instance labels in OUTPUT.")
@click.option("--allow-incomplete", is_flag=True, help="Label what there is; the rest stays 0, not computed.")
@click.option("--overwrite", is_flag=True, help="Replace instance labels that were made with other settings.")
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes; by default one per core. 0: no Dask.")
@adapt_option
@elsewhere_options
@cpu_cluster_option
@site_option
@json_option
def label(
    as_json: bool,
    output: Place,
    connectivity: Literal["6", "18", "26"],
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    site: Path | None,
    **options: Any,
) -> None:
    """Give each neuron in OUTPUT a number of its own, or go on with that."""
    stop = Stop()
    with stop.on_signals():
        from emseg_workflows.console import RunConsole  # noqa: PLC0415
        from emseg_workflows.flows.label import label as label_output  # noqa: PLC0415
        from emseg_workflows.site import read_site  # noqa: PLC0415

        with RunConsole() as console:
            labelled = label_output(
                output,
                connectivity=CONNECTIVITY[connectivity],
                tls=_tls(tls_ca_file, tls_cert, tls_key),
                site=read_site(site) if site else None,
                **options,
                stop=stop,
                on_event=console,
            )
    click.echo(json.dumps(labelled.to_json(), indent=2) if as_json else labelled)
    if labelled.exit_code > 128:
        _leave(_stopped(labelled.exit_code - 128), labelled.exit_code)
    sys.exit(labelled.exit_code)


@cli.command()
@click.argument("output", type=Location())
@click.argument("truth", type=Location(), required=False)
@click.option("--labels", type=Meaning(), help="The truth's values of each class: membrane=0,inside=255; several with +.")
@click.option("--ids", is_flag=True, help="The truth is instance ids, 0 not labelled: membrane is where two of them touch.")
@click.option("--planar", is_flag=True, help="With --ids: look at neighbours in the plane only, as in thick sections.")
@click.option("--ignore", type=int, multiple=True, metavar="VALUE", help="A value of the truth that does not count.")
@click.option("--class", "border", metavar="NAME", help="The class that parts segments; by default membrane or boundary.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="From which probability on a voxel is border.")
@click.option("--slices", type=Span(), help="Slices of OUTPUT, counted from 0; the truth may have these alone.")
@click.option("--instances", is_flag=True, help="Compare the instance labels of `emseg label` with the truth's ids.")
@click.option("--name", default="instances", show_default=True, help="With --instances: the image of instance labels.")
@click.option("--seams", "with_seams", is_flag=True, help="Look for seams at the faces of blocks and tiles; needs no truth.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all that was found, as JSON.")
def evaluate(
    output: Place,
    truth: Place | None,
    labels: dict[str, tuple[int, ...]] | None,
    ids: bool,
    planar: bool,
    ignore: tuple[int, ...],
    border: str | None,
    threshold: float,
    slices: tuple[int, int] | None,
    instances: bool,
    name: str,
    with_seams: bool,
    json_file: Path | None,
) -> None:
    """Say how good OUTPUT is against TRUTH, a TIFF stack or a Zarr volume of classes or instance ids."""
    if truth is None and not with_seams:
        raise click.UsageError("there is nothing to compare with: name the TRUTH, or look for --seams")
    said: dict[str, Any] = {}
    code = 0
    if truth is not None and instances:
        from emseg_workflows.flows.matching import compare_instances  # noqa: PLC0415

        matched = compare_instances(output, truth, name=name, slices=slices)
        said["instances"] = matched.to_json()
        click.echo(matched)
    elif truth is not None:
        from emseg_workflows.flows.evaluate import evaluate as flow  # noqa: PLC0415

        scored = flow(
            output,
            truth,
            labels=labels,
            ids=ids,
            planar=planar,
            ignore=ignore,
            border=border,
            threshold=threshold,
            slices=slices,
        )
        said.update(scored.to_json())
        click.echo(scored)
    if with_seams:
        from emseg_workflows.flows.seams import seams  # noqa: PLC0415

        found = seams(output)
        said["seams"] = found.to_json()
        code = found.exit_code
        click.echo(found)
    if json_file is not None:
        _write_json(json_file, said)
    sys.exit(code)


@cli.command()
@click.argument("output", type=Location())
@click.option("-o", "--picture", type=click.Path(path_type=Path), help="The PNG to write; by default OUTPUT.png beside it.")
@click.option("--slice", "z", type=int, help="z slice of the output; by default the middle one.")
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
def preview(output: Place, picture: Path | None, z: int | None, volume: Place | None) -> None:
    """Draw one slice of OUTPUT as a PNG: raw, labels, and both in one."""
    from emseg_workflows.flows.preview import preview as flow  # noqa: PLC0415

    click.echo(flow(output, picture, z=z, volume=volume))


@cli.command()
@click.argument("output", type=Location())
@click.option(
    "-o",
    "--page",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="By default OUTPUT.report.html beside the output.",
)
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
@click.option("--overwrite", is_flag=True, help="Replace a file that no `emseg report` has made.")
def report(output: Place, page: Path | None, volume: Place | None, overwrite: bool) -> None:
    """Write a page about OUTPUT, finished or not: settings, progress, slices, speed. One HTML file, without a network."""
    from emseg_workflows.flows.report import report_page  # noqa: PLC0415

    click.echo(report_page(output, page, volume=volume, overwrite=overwrite))


@cli.command()
@click.argument("output", type=Location())
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1 to serve at; by default a free one.")
@click.option("--link", is_flag=True, help="Print the long address, with all that is shown and from where.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option("--volume", type=Location(), help="The volume, if it was moved since the run.")
def view(output: Place, port: int, link: bool, no_browser: bool, volume: Place | None) -> None:
    """Show OUTPUT in a browser until Ctrl-C: raw, classes, instances and probabilities.

    Only browsers of this machine reach it, and only at the address that is printed. To share what you see, copy the
    address from the browser: it opens the same view for whoever reaches the same port of this machine, through the SSH tunnel
    that is told, as long as this command runs.
    """
    from emseg_workflows.flows.view import view as flow  # noqa: PLC0415

    try:
        with flow(output, volume=volume, port=port) as shown:
            for note in shown.notes:
                click.echo(f"note: {note}", err=True)
            click.echo(shown.link if link else shown.url)
            if no_browser or not shown.open_browser():
                click.echo(f"from another machine: {shown.tunnel}", err=True)
            shown.wait()
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        _leave(f"stopped by {signal.Signals(number).name}: nothing is served any more", 128 + number)


@cli.command()
@click.argument("output", type=Location())
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--instances",
    is_flag=False,
    flag_value="instances",
    metavar="[NAME]",
    help="Export instance labels of `emseg label`, those called instances if no name is given.",
)
@click.option("--probability", metavar="CLASS", help="Export the probability of a class, 0 to 254 for 0 to 1.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["tiff", "ome-zarr-0.4", "ome-zarr-0.5", "precomputed"]),
    help="What to write; by default what TARGET ends with: .tif a TIFF, .zarr OME-Zarr 0.5.",
)
@click.option("--allow-incomplete", is_flag=True, help="Export what there is; the rest is 255, of instances 0.")
@click.option("--overwrite", is_flag=True, help="Replace an export that is already there.")
@copying_options
def export(
    output: Place,
    target: Path,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    site: Path | None,
    **options: Any,
) -> None:
    """Write the classes in OUTPUT, or instances, or a probability, as TARGET.

    That is a TIFF stack, which one process writes, or with all levels OME-Zarr or Neuroglancer precomputed.
    """
    stop = Stop()
    with stop.on_signals():
        from emseg_workflows.console import RunConsole  # noqa: PLC0415
        from emseg_workflows.flows.export import export as flow  # noqa: PLC0415
        from emseg_workflows.site import read_site  # noqa: PLC0415

        with RunConsole() as console:
            made = flow(
                output,
                target,
                tls=_tls(tls_ca_file, tls_cert, tls_key),
                site=read_site(site) if site else None,
                **options,
                stop=stop,
                on_event=console,
                tell=lambda line: click.echo(line, err=True),
            )
    click.echo(made)


@cli.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the bundled models; `emseg models show` tells of one, or of a file."""
    if context.invoked_subcommand is not None:
        return
    from emseg.model.bundled import bundled_models  # noqa: PLC0415

    _tell_models(bundled_models(), as_json)


@models.command()
@click.argument("model", metavar="NAME|FILE")
@json_option
def show(model: str, as_json: bool) -> None:
    """Print what a MODEL expects and gives, and where it comes from."""
    from emseg.model.bundled import resolve_model  # noqa: PLC0415

    _tell_models({model: resolve_model(model)}, as_json)


def _tell_models(paths: Mapping[str, Path], as_json: bool) -> None:
    from emseg.model.source import describe  # noqa: PLC0415

    known = {name: describe(path) for name, path in paths.items()}
    if as_json:
        click.echo(json.dumps({name: {"spec": spec.to_json(), "card": card} for name, (spec, card) in known.items()}, indent=2))
        return
    for name, (spec, card) in known.items():
        context, lattice = (" x ".join(map(str, sizes)) for sizes in (spec.context, spec.lattice))
        click.echo(f"{name}: classes {', '.join(spec.classes)}, {spec.gives}; {spec.parameters} parameters")
        click.echo(f"    sees: {context} voxels (z, y, x) beyond each side of what it labels, on a lattice of {lattice}")
        for key, value in (*spec.remarks(), *card.items()):
            click.echo(f"    {key}: {value}")


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a training that was stopped.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="What to train on.", show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Processes on this machine that share each batch; with cuda, each takes a GPU.",
    show_default=True,
)
def train(config: Path, resume: bool, device: Literal["cpu", "cuda"], processes: int) -> None:
    """Train a network as the TOML file CONFIG says.

    The model is written when it is done; its progress and pictures of what it finds lie beside it from the start.
    """
    from emseg_workflows.flows.processes import (  # noqa: PLC0415
        end_with_starter,
        failing_in_turn,
        leads,
        see_own_gpu,
        start_processes,
    )
    from emseg_workflows.flows.train import train as flow  # noqa: PLC0415

    if processes > 1:
        words = ["train", str(config), "--device", device, *(["--resume"] if resume else [])]
        sys.exit(start_processes(words, processes, device))

    def show(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == progress.steps:
            click.echo(progress, err=True)

    try:
        with failing_in_turn():
            end_with_starter()
            if device == "cuda":
                see_own_gpu()
            path = flow(config, resume=resume, device=device, on_progress=show)
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun, which was signalled too, says it again
        _leave(f"stopped by {signal.Signals(number).name}: with --resume it goes on from the latest validation", 128 + number)
    if leads():
        click.echo(path)


def main() -> None:
    """Run the command line, and leave with the exit code that its end deserves."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(standalone_mode=False)
    except UnfinishedError as error:
        _leave(f"error: {error}", 3)
    except EmsegError as error:
        _leave(f"error: {' '.join(str(error).split())}", 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "emseg"
        _leave(f"error: {error.format_message().rstrip('.')}: see `{command} --help`", 2)
    except (KeyboardInterrupt, click.Abort):
        _leave(_stopped(signal.SIGINT), 130)
    except StoppedError as stopped:
        _leave(_stopped(stopped.number), 128 + stopped.number)


def _of_level(volume: Place, level: int | None) -> Place:
    """The volume, or the array of a level of its pyramid."""
    if level is None:
        return volume
    from emseg.store.volume import level_path  # noqa: PLC0415

    return level_path(volume, level)


def _tls(authority: Path | None, certificate: Path | None, key: Path | None) -> tuple[Path, Path, Path] | None:
    if authority and certificate and key:
        return authority, certificate, key
    if authority or certificate or key:
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key go together: give all three, or none")
    return None


def _queue_again(volume: Place, output: Place | None) -> None:
    from emseg_workflows.flows.requeue import queue_again  # noqa: PLC0415

    queue_again(volume, output, lambda message: click.echo(message, err=True))


def _repaired(
    output: Place, volume: Place | None, model: str | None, workers: int | None, device: Literal["cpu", "cuda"]
) -> Soundness:
    stop = Stop()
    with stop.on_signals():
        from emseg_workflows.console import RunConsole  # noqa: PLC0415
        from emseg_workflows.flows.repair import repair  # noqa: PLC0415

        with RunConsole() as console:
            return repair(output, volume=volume, model=model, workers=workers, device=device, stop=stop, on_event=console)


def _watched(output: Place, every: float, as_json: bool) -> int:
    """The exit code that a run's end deserves, once it has ended; Ctrl-C ends the watching alone."""
    from emseg_workflows.flows.status import watch  # noqa: PLC0415

    drawn = 0
    try:
        for found in watch(output, every):
            text = json.dumps(found.to_json()) if as_json else str(found)
            redrawn = sys.stdout.isatty() and not as_json
            click.echo((f"\x1b[{drawn}F\x1b[J" if redrawn and drawn else "") + text + ("" if redrawn or as_json else "\n"))
            columns = shutil.get_terminal_size().columns
            drawn = sum(max(1, -(-len(line) // columns)) for line in text.splitlines())
    except KeyboardInterrupt:
        return 0
    return found.exit_code


def _write_json(file: Path, document: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written ({error.strerror or error}): choose another with --json") from error


def _leave(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module's signature
    raise StoppedError(number)


def _stopped(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}: what is written stays; the same command goes on from there"


def _voxel_size(scale: tuple[float, ...], units: tuple[str | None, ...]) -> str:
    size = f"voxels of {' x '.join(f'{length:g}' for length in scale)}"
    if None not in units:
        return f"{size} {units[-1]}"
    return "voxel size not stated" if any(units) or set(scale) == {1.0} else f"{size}, unit not stated"


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
