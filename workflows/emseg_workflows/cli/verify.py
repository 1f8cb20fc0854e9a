"""`emseg verify`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Literal

import click

from emseg_workflows.cli.options import json_option
from emseg_workflows.cli.terminal import on_terminal
from emseg_workflows.cli.values import Location

if TYPE_CHECKING:
    from emseg.store.place import Place
    from emseg_workflows.flows.repair import Soundness
    from emseg_workflows.flows.verify import Verdict


@click.command()
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
        with on_terminal() as terminal:
            from emseg_workflows.flows.repair import repair as mend  # noqa: PLC0415

            found: Soundness | Verdict = mend(output, volume=volume, model=model, workers=workers, device=device, **terminal)
    elif checksums:
        from emseg_workflows.flows.repair import check  # noqa: PLC0415

        found = check(output)
    else:
        from emseg_workflows.flows.verify import verify as flow  # noqa: PLC0415

        found = flow(output, boxes=boxes, seed=seed, volume=volume, model=model, device=device)
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))
    sys.exit(found.exit_code)
