"""`emseg models`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emseg.cli.options import json_option
from emseg.cli.saying import say, say_json, say_result

if TYPE_CHECKING:
    from emseg_core.specs.network import NetworkSpec


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the bundled models; `emseg models show` describes one of them, or a file."""
    if context.invoked_subcommand is not None:
        return
    from emseg_core.model.bundled import bundled_models
    from emseg_core.model.header import read_header  # imports less than what describes any model

    _print_models({name: read_header(path) for name, path in bundled_models().items()}, as_json)


@models.command()
@click.argument("names", metavar="NAME|FILE...", nargs=-1, required=True)
@json_option
def show(names: tuple[str, ...], as_json: bool) -> None:
    """Describe a model: what it expects, what it predicts and where it comes from. Several are also described together."""
    from emseg_core.model.model_place import describe, locate_model

    known = {name: describe(locate_model(name)) for name in names}
    if len(names) > 1:
        known["ensemble"] = describe(locate_model(names))
    _print_models(known, as_json)


@models.command()
@click.argument("package", type=click.Path(path_type=Path))
@json_option
def check(package: Path, as_json: bool) -> None:
    """Run the test inputs of a BioImage.IO PACKAGE as a run would, and compare with its test outputs."""
    from emseg_core.model.package_check import check_package

    found = check_package(package)
    say_result(found, as_json)
    sys.exit(0 if found.holds else 1)


@models.command()
@click.argument("model", metavar="NAME|FILE")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an existing TARGET.")
def export(model: str, target: Path, overwrite: bool) -> None:
    """Write a network trained with emseg to TARGET, for other tools.

    TARGET is an ONNX file (.onnx), a program of torch.export (.pt2), or a BioImage.IO package (.zip, or a folder). What the
    file cannot say is written to TARGET.toml beside it.
    """
    from emseg_core.model.bundled import resolve_model
    from emseg_core.model.export_model import export_model

    say(f"wrote {' and '.join(map(str, export_model(resolve_model(model), target, overwrite=overwrite)))}")


def _print_models(known: Mapping[str, tuple[NetworkSpec, dict[str, str]]], as_json: bool) -> None:
    if as_json:
        document = {name: {"spec": spec.to_json(), "card": card} for name, (spec, card) in known.items()}
        say_json(document)
        return
    for name, (spec, card) in known.items():
        context, lattice = (" x ".join(map(str, sizes)) for sizes in (spec.context, spec.lattice))
        classes = f"classes {', '.join(spec.classes)}, " if spec.classes else ""
        say(f"{name}: {classes}{spec.gives}; {spec.parameters} parameters")
        say(f"    sees: {context} voxels (z, y, x) beyond each side of what it labels, on a lattice of {lattice}")
        for key, value in (*spec.remarks(), *card.items()):
            say(f"    {key}: {value}")
