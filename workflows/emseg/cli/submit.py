"""`emseg submit`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from emseg.cli.export import export
from emseg.cli.ingest import ingest
from emseg.cli.label import label
from emseg.cli.options import SETTINGS, TLS
from emseg.cli.run import run
from emseg.cli.saying import say
from emseg.cli.values import pair
from emseg.cli.verify import verify
from emseg.placement import Placement
from emseg.settings.run import RunSettings
from emseg.slurm.site import Site, read_site

if TYPE_CHECKING:
    from emseg.flows.submit import Submission

NOT_SUBMITTED = {"as_json", "cluster", "gpus", "grace", "host", "requeue", "scheduler", "site", *TLS}
"""Options of `emseg run` that a submission decides itself, or that make no sense there."""


OTHERS = {"export": (export, "target"), "ingest": (ingest, "volume"), "label": (label, "output"), "verify": (verify, "output")}
"""Other commands that can be submitted, each with the name of the argument beside which its logs are."""
PLACES = {*NOT_SUBMITTED, "workers", "adapt", "device", "workers_per_gpu"} - {"as_json"}
"""Options of them that the submission decides."""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument(
    "words", metavar="VOLUME|COMMAND [OPTIONS OF emseg run|COMMAND]", nargs=-1, type=click.UNPROCESSED, required=True
)
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
    """Run on a SLURM cluster: as a job that outlives this shell, and resumes until VOLUME is done.

    COMMAND is export, ingest, label or verify: `emseg submit label OUTPUT` submits `emseg label OUTPUT`.
    """
    from emseg.flows.submit import submit as flow

    placement = Placement(workers, adapt=adapt, cluster="slurm" if elastic else "srun")
    prepare = _command if words[0] in OTHERS else _run
    ready = prepare(list(words), read_site(site).replaced(**values), placement)
    if dry_run:
        say(*ready.script.removesuffix("\n").split("\n"))
        if ready.site.notes:
            say("", *(f"# note: {note}" for note in ready.site.notes))
        if ready.settings:
            say("", f"# {ready.folder / 'settings.toml'}", *ready.settings.splitlines())
        return
    say(f"job        {flow(ready)}")
    if words[0] not in OTHERS:
        say(f"watch      emseg status {ready.output}")
    say(f"log        {ready.folder}")


def _run(words: list[str], site: Site, placement: Placement) -> Submission:
    """Prepare a run."""
    from emseg.flows.submit import prepare_submission

    asked = _asked(words)
    volume, output, settings = (asked.pop(name) for name in ("volume", "output", "settings"))
    if asked.get("instances"):
        settings = replace(settings, probabilities=True)
    placement = replace(placement, device=asked.pop("device"), workers_per_gpu=asked.pop("workers_per_gpu"))
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
    return prepare_submission(volume, output, settings, site=site, placement=placement, options=options)


def _command(words: list[str], site: Site, placement: Placement) -> Submission:
    """Prepare another command than a run.

    Raises
    ------
    click.UsageError
        If it is not one that is submitted.
    """
    from emseg.flows.submit import prepare_command

    name, *typed = words
    command, written = OTHERS[name]
    context = command.make_context(f"emseg {name}", [*typed])
    for option in command.params:
        if option.name in PLACES and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} is not for a command that is submitted: leave it out")
    if name == "verify" and not context.params["repair"]:
        raise click.UsageError("verify is submitted to compute damaged data again: add --repair, or leave out submit")
    return prepare_command(name, typed, context.params[written], site=site, placement=placement)


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
