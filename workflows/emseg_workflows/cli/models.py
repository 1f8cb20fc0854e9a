"""`emseg models`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from emseg_workflows.cli.options import json_option
from emseg_workflows.cli.saying import say


@click.group(invoke_without_command=True)
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
        told = {name: {"spec": spec.to_json(), "card": card} for name, (spec, card) in known.items()}
        say(*json.dumps(told, indent=2).splitlines())
        return
    for name, (spec, card) in known.items():
        context, lattice = (" x ".join(map(str, sizes)) for sizes in (spec.context, spec.lattice))
        say(f"{name}: classes {', '.join(spec.classes)}, {spec.gives}; {spec.parameters} parameters")
        say(f"    sees: {context} voxels (z, y, x) beyond each side of what it labels, on a lattice of {lattice}")
        for key, value in (*spec.remarks(), *card.items()):
            say(f"    {key}: {value}")
