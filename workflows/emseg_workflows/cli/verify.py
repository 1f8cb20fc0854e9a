"""`emseg verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from emseg_workflows.cli.options import device_option, json_option, placement_options
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.terminal import on_terminal
from emseg_workflows.cli.values import Location, LocationOrNothing

if TYPE_CHECKING:
    from emseg.store.place import Place
    from emseg_workflows.flows.repair import Soundness
    from emseg_workflows.flows.verify import Verdict
    from emseg_workflows.placement import WhereOnGpus


@click.command()
@click.argument("output", type=Location())
@click.option("--boxes", type=click.IntRange(min=1), default=8, show_default=True, help="Random boxes to compute again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed that the boxes are drawn from.")
@click.option(
    "--volume",
    type=LocationOrNothing(),
    is_flag=False,
    flag_value="",
    metavar="[PATH]",
    help="Also read all of the volume that blocks have read, and compare; with a path if it was moved since the run.",
)
@click.option("--model", metavar="NAME|FILE", help="The model, if it was moved since the run.")
@click.option("--checksums", is_flag=True, help="Read each stored byte instead, and compute nothing.")
@click.option("--repair", is_flag=True, help="As --checksums, and compute again what is damaged or missing.")
@click.option("--mask", type=click.Path(path_type=Path), help="The mask of the run, if --repair asks for it.")
@device_option
@placement_options(
    "Worker processes of --repair, by default one per core, and of --volume, by default 0. 0: no Dask.", gpus=True
)
@json_option
def verify(
    output: Place,
    boxes: int,
    seed: int,
    volume: Place | Literal[""] | None,
    model: str | None,
    checksums: bool,
    repair: bool,
    mask: Path | None,
    where: WhereOnGpus,
    device: Literal["cpu", "cuda"] | None,
    as_json: bool,
) -> None:
    """Prove on OUTPUT that tiling left no trace: compute random boxes again with other tiles, and compare.

    With --volume, prove as well that the volume has not been changed since: it is read as the run read it. With --checksums,
    prove instead that all that is stored can be read back as it was written.
    """
    reread, place = volume is not None, volume or None
    workers = where["workers"]
    placed = {"mask": mask, **where}
    if reread and not (checksums or repair):
        del placed["workers"]
    if not repair and (told := {name: value for name, value in placed.items() if value not in (None, "local")}):
        name, value = next(iter(told.items()))
        whose = "--repair and --volume, none of which is" if name == "workers" else "--repair, which is not"
        raise click.UsageError(f"--{name.replace('_', '-')} {value} is for {whose} given")
    if checksums and not repair and (reread or model is not None):
        name = "volume" if reread else "model"
        raise click.UsageError(f"--checksums reads no {name}: leave out one of --checksums and --{name}, or give --repair")
    if repair:
        with on_terminal() as terminal:
            from emseg_workflows.flows.repair import repair as mend  # noqa: PLC0415

            found: Soundness | Verdict = mend(output, volume=place, model=model, mask=mask, device=device, **where, **terminal)
    elif checksums:
        from emseg_workflows.flows.repair import check  # noqa: PLC0415

        found = check(output)
    else:
        with on_terminal() as terminal:
            from emseg_workflows.flows.verify import verify as flow  # noqa: PLC0415

            found = flow(
                output,
                boxes=boxes,
                seed=seed,
                volume=place,
                model=model,
                device=device or "cpu",
                reread=reread,
                workers=workers or 0,
                **terminal,
            )
    say(*(json.dumps(found.to_json(), indent=2) if as_json else str(found)).splitlines())
    sys.exit(found.exit_code)
