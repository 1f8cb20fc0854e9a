"""Options that several commands have; those of a run are made from the fields of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emseg.cli.values import Declared, GpuNumbers, Numbers, Pair

if TYPE_CHECKING:
    from emseg_core.store.files.place import Place

Command = Callable[..., None]

SETTINGS: dict[str, dict[str, Any]] = {
    "channel": {"metavar": "N|NAME"},
    "timepoint": {"type": click.IntRange(min=0)},
    "level": {"type": click.IntRange(min=0)},
    "model": {"metavar": "NAME|FILE"},
    "roi": {"metavar": "Z0:Z1,Y0:Y1,X0:X1"},
    "probabilities": {"is_flag": True},
    "empty": {"type": Declared()},
    "tta": {"is_flag": True},
    "pyramid": {"param_decls": ["--pyramid/--no-pyramid"], "default": None},
    "mask": {"type": click.Path(path_type=Path)},
    "normalise": {"type": click.Choice(["volume", "slice"])},
    "tile": {"type": Numbers()},
    "threads": {"type": click.IntRange(min=1), "default": 1, "show_default": True},
    "backend": {"type": click.Choice(["torch", "openvino"])},
    "precision": {"type": click.Choice(["auto", "float32", "bfloat16", "float16"]), "default": "auto", "show_default": True},
}
"""How each field of `RunSettings` is typed; a class of the user's own is named from Python alone."""
NOT_TYPED = {"predictor"}
"""Fields of `RunSettings` without an option."""
PLACEMENT: dict[str, dict[str, Any]] = {
    "workers": {"type": click.IntRange(min=0)},
    "adapt": {"type": Pair("min:max")},
    "host": {"metavar": "ADDRESS"},
    "scheduler": {"metavar": "ADDRESS"},
    "cluster": {"type": click.Choice(["local", "srun", "slurm"]), "default": "local", "show_default": True},
    "site": {"type": click.Path(path_type=Path)},
}
"""How fields of `Placement` are typed."""
ON_GPUS: dict[str, dict[str, Any]] = {
    "cluster": {"type": click.Choice(["local", "cuda", "srun", "slurm"]), "default": "local", "show_default": True},
    "device": {"type": click.Choice(["cpu", "cuda"])},
    "gpus": {"type": GpuNumbers()},
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
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What predictors compute on. Default: the CPU.",
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
        from emseg.settings.run import RunSettings

        texts = {entry.name: entry.metadata["text"] for entry in fields(RunSettings)}
        names = [name for name in SETTINGS if name not in left_out]

        @wraps(command)
        def with_settings(**given: Any) -> None:
            values = {name: given.pop(name) for name in names}
            if values.get("precision") == "auto":
                values["precision"] = None
            command(settings=RunSettings(**values), **given)

        return _with_options(with_settings, {name: (SETTINGS[name], texts[name]) for name in names})

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
        from emseg.placement import Placement

        texts = {entry.name: entry.metadata["text"] for entry in fields(Placement)}
        if workers:
            texts["workers"] = workers
        typed = {**PLACEMENT, **(ON_GPUS if gpus else {})}

        @wraps(command)
        def placed(**given: Any) -> None:
            from emseg.slurm.site import read_site

            where = {name: given.pop(name) for name in typed}
            where["tls"] = _tls(*(given.pop(name) for name in TLS))
            where["site"] = read_site(where["site"]) if where["site"] else None
            command(where=where, **given)

        options = {name: (how, texts[name]) for name, how in typed.items()}
        return _with_options(placed, {**options, **{name: ({"type": click.Path(path_type=Path)}, TLS[name]) for name in TLS}})

    return decorate


def _with_options(command: Command, options: dict[str, tuple[dict[str, Any], str]]) -> Command:
    """Add options, by their names, with how they are typed and their help."""
    for name, (how, text) in reversed(options.items()):
        arguments = {**how, "help": text}
        declared = arguments.pop("param_decls", [f"--{name.replace('_', '-')}"])
        command = click.option(*declared, **arguments)(command)
    return command


def _tls(authority: Path | None, certificate: Path | None, key: Path | None) -> tuple[Path, Path, Path] | None:
    """Return the three files, or None if none is given."""
    if authority and certificate and key:
        return authority, certificate, key
    if authority or certificate or key:
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key go together: give all three, or none")
    return None


def of_level(volume: Place, level: int | None) -> Place:
    """Return the volume, or the array of a level of its pyramid."""
    if level is None:
        return volume
    from emseg_core.store.volumes.volume import level_path

    return level_path(volume, level)
