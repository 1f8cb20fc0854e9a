"""`emseg evaluate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from emseg.cli.saying import say_result
from emseg.cli.values import Location, Meaning, pair
from emseg_core.store.files.place import Place


@click.command()
@click.argument("output", type=Location())
@click.argument("truth", type=Location(), required=False)
@click.option(
    "--labels", type=Meaning(), help="Values of the truth for each class: membrane=0,inside=255. Join several values with +."
)
@click.option("--ids", is_flag=True, help="TRUTH consists of instance ids, 0 for unlabelled; membrane is where two ids touch.")
@click.option("--planar", is_flag=True, help="With --ids: consider neighbours in the plane only, as for thick sections.")
@click.option(
    "--ignore", type=int, multiple=True, metavar="VALUE", help="Value of the truth that is not scored. May be repeated."
)
@click.option("--class", "border", metavar="NAME", help="Class that separates segments. Default: membrane or boundary.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Lowest probability of a border voxel.")
@click.option(
    "--slices", type=pair("first:stop"), help="Slices of OUTPUT to score, from 0; TRUTH may consist of these slices alone."
)
@click.option("--instances", is_flag=True, help="Compare the instance labels of `emseg label` with the ids in TRUTH.")
@click.option(
    "--name", default="instances", show_default=True, help="With --instances: name of the instance-label image in OUTPUT."
)
@click.option("--seams", "with_seams", is_flag=True, help="Look for seams at the faces of blocks and tiles; needs no TRUTH.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all scores to a JSON file.")
def evaluate(
    output: Place,
    truth: Place | None,
    slices: tuple[int, int] | None,
    instances: bool,
    name: str,
    with_seams: bool,
    json_file: Path | None,
    **meaning: Any,
) -> None:
    """Score OUTPUT against TRUTH, a TIFF stack or a Zarr volume of classes or instance ids."""
    if truth is None and not with_seams:
        raise click.UsageError("there is nothing to compare with: give TRUTH, or look for seams with --seams")
    document: dict[str, Any] = {}
    code = 0
    if truth is not None and instances:
        from emseg.flows.scoring.instances import evaluate_instances

        matched = evaluate_instances(output, truth, name=name, slices=slices)
        document["instances"] = matched.to_json()
        say_result(matched)
    elif truth is not None:
        from emseg.flows.evaluate import evaluate as flow

        scored = flow(output, truth, slices=slices, **meaning)
        document.update(scored.to_json())
        say_result(scored)
    if with_seams:
        from emseg.flows.seams import evaluate_seams

        found = evaluate_seams(output)
        document["seams"] = found.to_json()
        code = found.exit_code
        say_result(found)
    if json_file is not None:
        _write_json(json_file, document)
    sys.exit(code)


def _write_json(file: Path, document: dict[str, Any]) -> None:
    try:
        file.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written ({error.strerror or error}): choose another with --json") from error
