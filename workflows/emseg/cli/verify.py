"""`emseg verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from emseg.cli.options import json_option, one_or_several, placement_options
from emseg.cli.saying import say_result
from emseg.cli.terminal import on_terminal
from emseg.cli.values import Location, LocationOrNothing
from emseg.placement import WhereOnGpus
from emseg_core.store.files.place import Place

if TYPE_CHECKING:
    from emseg.flows.repair import ChecksumReport
    from emseg.flows.verify import Verdict


@click.command()
@click.argument("output", type=Location())
@click.option("--boxes", type=click.IntRange(min=1), default=8, show_default=True, help="Random boxes to compute again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random boxes.")
@click.option(
    "--volume",
    type=LocationOrNothing(),
    is_flag=False,
    flag_value="",
    metavar="[PATH]",
    help="Also read the volume again, and compare it with what the run read. Give PATH if it was moved since the run.",
)
@click.option(
    "--model",
    metavar="NAME|FILE",
    multiple=True,
    callback=one_or_several,
    help="Bundled model or path of the model, if it was moved since the run; of an ensemble, all of them in their order.",
)
@click.option("--checksums", is_flag=True, help="Check the checksums of all stored data instead of computing boxes.")
@click.option("--repair", is_flag=True, help="Check checksums as --checksums does, and compute damaged or missing data again.")
@click.option("--mask", type=click.Path(path_type=Path), help="Mask of the run, if --repair asks for it.")
@placement_options("Worker processes. Default: one per core with --repair, 0 with --volume. 0: no Dask.", gpus=True)
@json_option
def verify(
    output: Place,
    volume: Place | Literal[""] | None,
    model: str | tuple[str, ...] | None,
    checksums: bool,
    repair: bool,
    mask: Path | None,
    where: WhereOnGpus,
    as_json: bool,
    **sample: Any,
) -> None:
    """Check that tiling left no trace in OUTPUT: compute random boxes again with other tiles, and compare.

    With --volume, also check that the volume has not changed since the run read it. With --checksums, check instead that all
    stored data can be read back as it was written.
    """
    reread, place = volume is not None, volume or None
    placed = {"mask": mask, **{name: value for name, value in where.items() if name != "device"}}
    if reread and not (checksums or repair):
        del placed["workers"]
    if not repair and (unused := {name: value for name, value in placed.items() if value not in (None, "local")}):
        name, value = next(iter(unused.items()))
        option = f"--{name.replace('_', '-')}"
        needed = "--repair or --volume" if name == "workers" else "--repair"
        raise click.UsageError(f"{option} {value} has no effect without {needed}: omit {option}, or give {needed}")
    if checksums and not repair and (reread or model is not None):
        name = "volume" if reread else "model"
        raise click.UsageError(f"--checksums does not read the {name}: omit --checksums or --{name}, or give --repair")
    if repair:
        with on_terminal() as terminal:
            from emseg.flows.repair import repair as repair_output

            found: ChecksumReport | Verdict = repair_output(output, volume=place, model=model, mask=mask, **where, **terminal)
    elif checksums:
        from emseg.flows.repair import verify_checksums

        found = verify_checksums(output)
    else:
        with on_terminal() as terminal:
            from emseg.flows.verify import verify as flow

            found = flow(
                output,
                volume=place,
                model=model,
                device=where["device"] or "cpu",
                reread=reread,
                workers=where["workers"] or 0,
                **sample,
                **terminal,
            )
    say_result(found, as_json)
    sys.exit(found.exit_code)
