"""`emseg submit`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from emseg.cli.options import SETTINGS, TLS
from emseg.cli.run import run
from emseg.cli.saying import say
from emseg.cli.values import pair
from emseg.placement import Placement
from emseg.settings.run import RunSettings
from emseg.slurm.site import read_site

NOT_SUBMITTED = {"as_json", "cluster", "gpus", "grace", "host", "requeue", "scheduler", "site", *TLS}
"""Options of `emseg run` that a submission decides itself, or that make no sense there."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", metavar="VOLUME [OPTIONS OF emseg run]", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("--workers", type=click.IntRange(min=1), help="Number of workers.")
@click.option(
    "--adapt", type=pair("min:max"), help="Fewest and most workers: as many as there are blocks for, instead of --workers."
)
@click.option(
    "--site", type=click.Path(path_type=Path), help="TOML file with the following values and more, see deploy/slurm/site.toml."
)
@click.option("--partition", default="", help="Partition.")
@click.option("--account", default="", help="Account.")
@click.option("--qos", default="", help="Quality of service.")
@click.option("--time", default="", metavar="H:M:S", help="Time limit of a job; it goes back into the queue until all is done.")
@click.option("--gres", default="", metavar="gpu:1", help="GPUs of each worker; other generic resources count per node.")
@click.option("--cpus", type=click.IntRange(min=1), default=None, help="Cores of each worker. Default: one per thread.")
@click.option(
    "--memory", default="", metavar="16G", help="Memory of each worker; none: no option for it. Default: what the plan needs."
)
@click.option(
    "--elastic", is_flag=True, help="Run each worker as a job of its own; they are started, lost and replaced one by one."
)
@click.option("--dry-run", is_flag=True, help="Print the script and the settings, and submit nothing.")
def submit(
    words: tuple[str, ...],
    workers: int | None,
    adapt: tuple[int, int] | None,
    site: Path | None,
    elastic: bool,
    dry_run: bool,
    **values: Any,
) -> None:
    """Run on a SLURM cluster: as a job that outlives this shell, and resumes until VOLUME is done."""
    from emseg.flows.submit import prepare_submission
    from emseg.flows.submit import submit as flow

    asked = _asked(list(words))
    settings = asked.pop("settings")
    if asked.get("instances"):
        settings = replace(settings, probabilities=True)
    ready = prepare_submission(
        asked.pop("volume"),
        asked.pop("output"),
        settings,
        site=read_site(site).replaced(**values),
        placement=Placement(
            workers,
            adapt=adapt,
            cluster="slurm" if elastic else "srun",
            device=asked.pop("device"),
            workers_per_gpu=asked.pop("workers_per_gpu"),
        ),
        options={name: str(value) if isinstance(value, Path) else value for name, value in asked.items()},
    )
    if dry_run:
        say(*ready.script.removesuffix("\n").split("\n"))
        if ready.site.notes:
            say("", *(f"# note: {note}" for note in ready.site.notes))
        say("", f"# {ready.folder / 'settings.toml'}", *ready.settings.splitlines())
        return
    say(f"job        {flow(ready)}")
    say(f"watch      emseg status {ready.output}")
    say(f"log        {ready.folder}")


def _asked(words: list[str]) -> dict[str, Any]:
    """Return what is asked for with the options of ``emseg run``: those that differ from their defaults.

    Raises
    ------
    click.UsageError
        If one of them is not for a run that is submitted.
    """
    context = run.make_context("emseg run", words)
    kept = {"volume": context.params["volume"], "output": context.params["output"]}
    typed = {
        option.name: context.params[option.name]
        for option in run.params
        if option.name in context.params and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT
    }
    for name in typed:
        if name in NOT_SUBMITTED:
            raise click.UsageError(f"--{name.replace('_', '-')} is not for a run that is submitted: leave it out")
    values = {name: typed.pop(name) for name in SETTINGS if name in typed}
    if values.get("precision") == "auto":
        del values["precision"]
    given = {"device": None, "workers_per_gpu": None, **typed, **kept}
    return {**given, "settings": RunSettings(**values)}
