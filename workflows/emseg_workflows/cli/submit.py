"""`emseg submit`."""

from __future__ import annotations

from pathlib import Path

import click

from emseg_workflows.cli.options import adapt_option, of_level
from emseg_workflows.cli.run import run
from emseg_workflows.cli.saying import say


@click.command(context_settings={"ignore_unknown_options": True})
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
        of_level(asked["volume"], asked["level"]),
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
        say(*ready.script.removesuffix("\n").split("\n"))
        return
    say(f"job        {flow(ready)}")
    say(f"watch      emseg status {ready.output}")
    say(f"log        {ready.folder}")
