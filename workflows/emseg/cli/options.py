"""Options that several commands have; those of a run are made from the fields of its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from emseg.cli.values import EMPTY, GPUS, NAMES, TRIPLE, pair
from emseg.placement import Placement
from emseg.settings.fields import texts_of
from emseg.settings.run import RunSettings
from emseg.slurm.site import read_site

Command = Callable[..., None]


def one_or_several(context: click.Context, parameter: click.Parameter, models: tuple[str, ...]) -> Any:  # noqa: ARG001  click's
    """Return the values of an option that may be repeated.

    Parameters
    ----------
    context, parameter
        As click gives them to each callback.
    models
        What was typed.

    Returns
    -------
    str, tuple of str or None
        None if nothing was typed; the only value; or all of them.
    """
    return models if len(models) > 1 else next(iter(models), None)


SETTINGS: dict[str, dict[str, Any]] = {
    "channel": {"metavar": "N|NAME"},
    "timepoint": {"type": click.IntRange(min=0)},
    "level": {"type": click.IntRange(min=0)},
    "model": {"metavar": "NAME|FILE", "multiple": True, "callback": one_or_several},
    "roi": {"metavar": "Z0:Z1,Y0:Y1,X0:X1"},
    "probabilities": {"is_flag": True},
    "heads": {"type": NAMES},
    "empty": {"type": EMPTY},
    "tta": {"is_flag": True},
    "pyramid": {"param_decls": ["--pyramid/--no-pyramid"], "default": None},
    "mask": {"type": click.Path(path_type=Path)},
    "normalise": {"type": click.Choice(["volume", "slice"])},
    "norms": {"type": click.Choice(["frozen", "tile"])},
    "tile": {"type": TRIPLE},
    "threads": {"type": click.IntRange(min=1), "default": 1, "show_default": True},
    "backend": {"type": click.Choice(["torch", "openvino"])},
    "precision": {"type": click.Choice(["auto", "float32", "bfloat16", "float16"]), "default": "auto", "show_default": True},
}
"""How each field of `RunSettings` is typed; a class of the user's own is named from Python alone."""
NOT_TYPED = {"predictor"}
"""Fields of `RunSettings` without an option."""
BATCH = ("srun", "slurm", "lsf", "pbs", "sge")
"""Values of --cluster where a batch system starts the workers."""
PLACEMENT: dict[str, dict[str, Any]] = {
    "workers": {"type": click.IntRange(min=0)},
    "adapt": {"type": pair("min:max")},
    "host": {"metavar": "ADDRESS"},
    "scheduler": {"metavar": "ADDRESS"},
    "cluster": {"type": click.Choice(["local", *BATCH]), "default": "local", "show_default": True},
    "site": {"type": click.Path(path_type=Path)},
}
"""How fields of `Placement` are typed."""
ON_GPUS: dict[str, dict[str, Any]] = {
    "cluster": {"type": click.Choice(["local", "cuda", *BATCH]), "default": "local", "show_default": True},
    "device": {"type": click.Choice(["cpu", "cuda"])},
    "gpus": {"type": GPUS},
    "workers_per_gpu": {"type": click.IntRange(min=1)},
}
"""The same where predictors run."""
TLS = {
    "tls_ca_file": "Certificate of the authority that signed the scheduler's certificate.",
    "tls_cert": "Certificate to show to the scheduler.",
    "tls_key": "Key of that certificate.",
}
"""Options for the one field ``tls``, with their help."""
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="What predictors compute on. Default: the CPU."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_options(*left_out: str) -> Callable[[Command], Command]:
    """Add the options that are made from `RunSettings`; the command gets them as one, ``settings``.

    Parameters
    ----------
    *left_out
        Fields without an option.

    Returns
    -------
    Callable
        The decorator of a command.
    """

    def decorate(command: Command) -> Command:
        typed = {name: how for name, how in SETTINGS.items() if name not in left_out}

        @wraps(command)
        def with_settings(**given: Any) -> None:
            values = {name: given.pop(name) for name in typed}
            if values.get("precision") == "auto":
                values["precision"] = None
            command(settings=RunSettings(**values), **given)

        return _with_options(with_settings, typed, texts_of(RunSettings))

    return decorate


def placement_options(workers: str = "", *, gpus: bool = False) -> Callable[[Command], Command]:
    """Add the options that are made from `Placement`; the command gets them as one, ``where``.

    Parameters
    ----------
    workers
        Help of ``--workers``, if not that of the field.
    gpus
        Whether predictors run.

    Returns
    -------
    Callable
        The decorator of a command.
    """

    def decorate(command: Command) -> Command:
        texts = texts_of(Placement) | TLS | ({"workers": workers} if workers else {})
        typed = {**PLACEMENT, **(ON_GPUS if gpus else {})}
        files = {name: {"type": click.Path(path_type=Path)} for name in TLS}

        @wraps(command)
        def placed(**given: Any) -> None:
            where = {name: given.pop(name) for name in typed}
            where["tls"] = _tls(tuple(given.pop(name) for name in TLS))
            where["site"] = read_site(where["site"]) if where["site"] else None
            command(where=where, **given)

        return _with_options(placed, {**typed, **files}, texts)

    return decorate


def _with_options(command: Command, typed: dict[str, dict[str, Any]], texts: dict[str, str]) -> Command:
    """Add options, by how each is typed, with their help."""
    for name, how in reversed(typed.items()):
        arguments = {**how, "help": texts[name]}
        declared = arguments.pop("param_decls", [f"--{name.replace('_', '-')}"])
        command = click.option(*declared, **arguments)(command)
    return command


def _tls(files: tuple[Path | None, ...]) -> tuple[Path | None, ...] | None:
    """Return the three files, or None if none is given."""
    if any(files) and not all(files):
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key go together: give all three, or none")
    return files if all(files) else None
