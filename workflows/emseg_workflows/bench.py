"""The one place that chooses what a worker works with: Zarr in, torch in between, Zarr out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emseg.block import Bench
from emseg.box import Triple
from emseg.errors import ModelError, NumericsError
from emseg.grid.reading import CACHE_BYTES
from emseg.model.device import Device
from emseg.recipe import Recipe
from emseg.specs.numerics import Backend, Numerics
from emseg.store.lease import Token

if TYPE_CHECKING:
    from emseg.model.file import ModelFile
    from emseg.model.openvino_predictor import OpenVinoPredictor
    from emseg.model.predictor import TorchPredictor


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to set up its bench; travels once to each worker."""

    recipe: Recipe
    volume: Path
    model: Path
    output: Path
    token: Token
    """The right to write."""
    mixed_hardware: bool = False
    """Whether workers may compute with other numerics than the recipe's."""
    device: Device = "cpu"
    """What predictors compute on."""
    workers_per_gpu: int = 1
    """Most workers that may share a GPU."""


@contextmanager
def open_bench(job: Job, turn: AbstractContextManager[object] | None = None) -> Iterator[tuple[Bench, Numerics]]:
    """A bench for this process and how it computes, released at the end of the ``with``.

    Parameters
    ----------
    turn
        Held by the block whose turn it is at the predictor; None if blocks come one after another.

    Raises
    ------
    ModelError
        If the model file is not the one that the run was planned with.
    NumericsError
        If this process computes other bytes than the run, and that is not allowed.
    DeviceError
        If this process cannot compute on the run's device.
    """
    from emseg.model.backend import open_predictor  # noqa: PLC0415  torch takes seconds to import
    from emseg.model.file import load_model  # noqa: PLC0415
    from emseg.store.output import open_output  # noqa: PLC0415
    from emseg.store.volume import open_volume  # noqa: PLC0415

    recipe = job.recipe
    model = load_model(job.model)
    if model.digest != recipe.model_digest:
        raise ModelError(
            f"the model {job.model} has the digest {model.digest[:12]}, but the run began with {recipe.model_digest[:12]}: "
            "put the old file back, or start over with --overwrite"
        )
    predictor = open_predictor(model, recipe.numerics.library, recipe.numerics.threads, job.device)
    numerics = _numerics(model, predictor, recipe.plan.tile, recipe.numerics.threads, job.device)
    if numerics != recipe.numerics and not job.mixed_hardware:
        raise NumericsError(
            f"the run computes with {recipe.numerics}, but this worker with {numerics}: use the hardware and versions of the "
            "run, or accept other last bits with --mixed-hardware"
        )
    output = open_output(job.output, job.token)
    yield Bench(recipe, open_volume(job.volume, CACHE_BYTES), predictor, output, turn or nullcontext()), numerics


def local_numerics(model: Path, tile: Triple, threads: int, device: Device, backend: Backend) -> Numerics:
    """The numerics of a predictor in this process, for tiles of this shape (z, y, x) in voxels."""
    from emseg.model.backend import open_predictor  # noqa: PLC0415
    from emseg.model.file import load_model  # noqa: PLC0415

    loaded = load_model(model)
    return _numerics(loaded, open_predictor(loaded, backend, threads, device), tile, threads, device)


_known: dict[tuple[str, type, Triple, int, Device], Numerics] = {}
"""Numerics of this process by digest of the model, predictor, tile, threads and device: a canary takes as long as a tile."""


def _numerics(
    model: ModelFile, predictor: TorchPredictor | OpenVinoPredictor, tile: Triple, threads: int, device: Device
) -> Numerics:
    case = model.digest, type(predictor), tile, threads, device
    if case not in _known:
        _known[case] = predictor.numerics(tile)
    return _known[case]
