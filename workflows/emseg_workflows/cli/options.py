"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emseg_workflows.cli.values import GpuNumbers, Numbers, Pair

if TYPE_CHECKING:
    from emseg.store.place import Place


model_option = click.option(
    "--model", metavar="NAME|FILE", help="A bundled model (see `emseg models`) or a model file; by default the bundled one."
)
level_option = click.option(
    "--level", type=click.IntRange(min=0), help="Of the volume's pyramid; by default 0, the finest. As naming its array."
)
channel_option = click.option(
    "--channel", metavar="N|NAME", help="Of a volume with several channels, the number or the name of one; by default as begun."
)
timepoint_option = click.option(
    "--timepoint", type=click.IntRange(min=0), help="Of a volume with several timepoints; by default as begun."
)
region_option = click.option(
    "--roi",
    metavar="Z0:Z1,Y0:Y1,X0:X1",
    help="Part of the volume, in voxels, or with nm at the end in nanometres; by default all.",
)
tile_option = click.option("--tile", type=Numbers(), help="Shape of one network input, in voxels; by default chosen for you.")
probabilities_option = click.option(
    "--probabilities", is_flag=True, help="Store the probability of each class beside the labels."
)
tta_option = click.option(
    "--tta", is_flag=True, help="Average over rotations by 90 degrees and flips of the image plane: 8 times the arithmetic."
)
pyramid_option = click.option(
    "--pyramid/--no-pyramid",
    default=None,
    help="Whether viewers get coarser levels of what is larger than they can show at once; by default as begun, else yes.",
)
mask_option = click.option(
    "--mask", type=click.Path(path_type=Path), help="A Zarr of any voxel size: blocks where it is 0 throughout are left out."
)
adapt_option = click.option(
    "--adapt", type=Pair("min:max"), help="Least and most workers: as many as there are blocks for, instead of --workers."
)
device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="What predictors compute on; by default the GPUs of --cluster cuda, and the CPU elsewhere.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads per predictor; part of the plan."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FILE = click.Path(path_type=Path)
_ELSEWHERE = (
    click.option("--host", metavar="ADDRESS", help="This machine's address, at which workers on other hosts may join, in TLS."),
    click.option("--scheduler", metavar="ADDRESS", help="Use the Dask cluster whose scheduler is at this address."),
    click.option("--tls-ca-file", type=_FILE, help="The authority that the scheduler's certificate is from."),
    click.option("--tls-cert", type=_FILE, help="The certificate to show to the scheduler."),
    click.option("--tls-key", type=_FILE, help="The key of that certificate."),
)
_GPUS = (
    click.option("--gpus", type=GpuNumbers(), help="The GPUs of --cluster cuda, as nvidia-smi numbers them; by default all."),
    click.option(
        "--workers-per-gpu", type=click.IntRange(min=1), help="Workers that share a GPU; by default one for four cores."
    ),
)
_SITE = click.option("--site", type=_FILE, help="What SLURM is told for each worker, see deploy/slurm/site.toml.")


def placement_options(workers: str, *, gpus: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that say who computes, and where; the command gets them as one, ``where``.

    Parameters
    ----------
    workers
        Help of ``--workers``.
    gpus
        Whether these may be GPUs.
    """
    number = click.option("--workers", type=click.IntRange(min=0), help=workers)
    cluster = click.option(
        "--cluster",
        type=click.Choice(["local", *(["cuda"] if gpus else []), "srun", "slurm"]),
        default="local",
        show_default=True,
        help=f"Where workers start: the cores here, {'the GPUs here, ' if gpus else ''}steps of this SLURM job, or SLURM "
        "jobs of their own.",
    )
    options = (number, adapt_option, *_ELSEWHERE, cluster, *(_GPUS if gpus else ()), _SITE)
    names = ("workers", "adapt", "host", "scheduler", "cluster", *(("gpus", "workers_per_gpu") if gpus else ()))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def placed(
            tls_ca_file: Path | None, tls_cert: Path | None, tls_key: Path | None, site: Path | None, **given: Any
        ) -> None:
            from emseg_workflows.site import read_site  # noqa: PLC0415

            where = {name: given.pop(name) for name in names}
            where["tls"] = _tls(tls_ca_file, tls_cert, tls_key)
            where["site"] = read_site(site) if site else None
            command(where=where, **given)

        for option in reversed(options):
            placed = option(placed)
        return placed

    return decorate


def _tls(authority: Path | None, certificate: Path | None, key: Path | None) -> tuple[Path, Path, Path] | None:
    if authority and certificate and key:
        return authority, certificate, key
    if authority or certificate or key:
        raise click.UsageError("--tls-ca-file, --tls-cert and --tls-key go together: give all three, or none")
    return None


def of_level(volume: Place, level: int | None) -> Place:
    """The volume, or the array of a level of its pyramid."""
    if level is None:
        return volume
    from emseg.store.volume import level_path  # noqa: PLC0415

    return level_path(volume, level)
