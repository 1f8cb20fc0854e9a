"""`emseg evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emseg_workflows.cli.saying import say
from emseg_workflows.cli.values import Location, Meaning, Pair

if TYPE_CHECKING:
    from emseg.store.place import Place


@click.command()
@click.argument("output", type=Location())
@click.argument("truth", type=Location(), required=False)
@click.option("--labels", type=Meaning(), help="The truth's values of each class: membrane=0,inside=255; several with +.")
@click.option("--ids", is_flag=True, help="The truth is instance ids, 0 not labelled: membrane is where two of them touch.")
@click.option("--planar", is_flag=True, help="With --ids: look at neighbours in the plane only, as in thick sections.")
@click.option("--ignore", type=int, multiple=True, metavar="VALUE", help="A value of the truth that does not count.")
@click.option("--class", "border", metavar="NAME", help="The class that parts segments; by default membrane or boundary.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="From which probability on a voxel is border.")
@click.option("--slices", type=Pair("first:stop"), help="Slices of OUTPUT, counted from 0; the truth may have these alone.")
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
        say(*str(matched).splitlines())
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
        say(*str(scored).splitlines())
    if with_seams:
        from emseg_workflows.flows.seams import seams  # noqa: PLC0415

        found = seams(output)
        said["seams"] = found.to_json()
        code = found.exit_code
        say(*str(found).splitlines())
    if json_file is not None:
        _write_json(json_file, said)
    sys.exit(code)


def _write_json(file: Path, document: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written ({error.strerror or error}): choose another with --json") from error
