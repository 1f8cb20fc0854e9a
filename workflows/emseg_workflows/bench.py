"""The one place that chooses what a worker works with: Zarr in, torch in between, Zarr out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from emseg.block import Bench
from emseg.errors import ModelError
from emseg.recipe import Recipe
from emseg.specs.numerics import Numerics


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to set up its bench; travels once to each worker."""

    recipe: Recipe
    volume: Path
    model: Path
    output: Path


@contextmanager
def open_bench(job: Job, turn: AbstractContextManager[object] | None = None) -> Iterator[Bench]:
    """A bench for this process, released at the end of the ``with``.

    Parameters
    ----------
    turn
        Held by the block whose turn it is at the predictor; None if blocks come one after another.

    Raises
    ------
    ModelError
        If the model file is not the one that the run was planned with.
    """
    from emseg.model.file import load_model  # noqa: PLC0415  torch takes seconds to import
    from emseg.model.predictor import TorchPredictor  # noqa: PLC0415
    from emseg.store.output import open_output  # noqa: PLC0415
    from emseg.store.volume import open_volume  # noqa: PLC0415

    model = load_model(job.model)
    if model.digest != job.recipe.model_digest:
        raise ModelError(
            f"the model {job.model} has the digest {model.digest[:12]}, but the run began with {job.recipe.model_digest[:12]}: "
            "put the old file back, or start over with --overwrite"
        )
    predictor = TorchPredictor(model.network(), job.recipe.numerics.threads)
    yield Bench(job.recipe, open_volume(job.volume), predictor, open_output(job.output), turn or nullcontext())


def local_numerics(threads: int) -> Numerics:
    """The numerics of a predictor in this process."""
    from emseg.model.predictor import numerics_here  # noqa: PLC0415

    return numerics_here(threads)
