"""The one place that chooses what a worker works with: Zarr in, torch in between, Zarr out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from emseg.accuracy import accuracy_of
from emseg.block import Bench, segment_block
from emseg.box import Triple
from emseg.canary import speed_of
from emseg.errors import ModelError, NumericsError
from emseg.grid.blocks import Block
from emseg.grid.reading import CACHE_BYTES
from emseg.grid.symmetry import SymmetricPredictor
from emseg.model.device import Device
from emseg.model.foreign import ForeignModel
from emseg.model.own import OwnModel
from emseg.model.source import ModelPlace, load
from emseg.normalise import Normalisation
from emseg.outcome import Outcome
from emseg.ports import Predictor
from emseg.recipe import Recipe
from emseg.specs.network import NetworkSpec
from emseg.specs.numerics import Accuracy, Backend, Numerics, Precision
from emseg.specs.volume import Part
from emseg.store.lease import Token
from emseg.store.ledger import Output
from emseg.store.place import Place

if TYPE_CHECKING:
    from emseg.model.backend import SomePredictor
    from emseg.model.file import ModelFile

MALLOPT = {-1: 2**24, -3: 2**20}
"""Parameters of glibc: bytes at the heap's end that go back to the kernel, and of a buffer that gets pages of its own."""
ENOUGH = 0.999
"""Least share of voxels that a precision chosen for the user labels as float32 does."""


class Work(Protocol):
    """Something to be done to each of many blocks; travels once to each worker."""

    @property
    def name(self) -> str:
        """What the tasks of blocks are called on the dashboard: a verb."""
        ...

    @property
    def device(self) -> Device:
        """What it is done on."""
        ...

    @property
    def workers_per_gpu(self) -> int:
        """Most workers that may share a GPU."""
        ...

    def opened(
        self, turn: AbstractContextManager[object] | None = None
    ) -> AbstractContextManager[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What does it to a block in this process, several at a time, and how it computes, if last bits depend on that.

        Parameters
        ----------
        turn
            Held by the block whose turn it is at a predictor; None if blocks come one after another.
        """
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """The work of `emseg run`: segmenting blocks."""

    recipe: Recipe
    volume: Place
    model: ModelPlace
    output: Place
    token: Token
    """The right to write."""
    mixed_hardware: bool = False
    """Whether workers may compute with other numerics than the recipe's."""
    device: Device = "cpu"
    """What predictors compute on."""
    workers_per_gpu: int = 1
    """Most workers that may share a GPU."""
    name: str = "segment"

    @contextmanager
    def opened(
        self, turn: AbstractContextManager[object] | None = None
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """What segments a block, and how it computes; raises what `open_bench` does."""
        with open_bench(self, turn) as (bench, output, numerics):
            corner = output.region.start

            def segment(block: Block) -> Outcome:
                outcome = segment_block(bench, block)
                return replace(outcome, sent=output.levels[0].take_sent(block.write.relative_to(corner)))

            yield segment, numerics


@contextmanager
def open_bench(job: Job, turn: AbstractContextManager[object] | None = None) -> Iterator[tuple[Bench, Output, Numerics]]:
    """A bench for this process, the output that it writes to, and how it computes, released at the end of the ``with``.

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
    from emseg.store.output import open_output  # noqa: PLC0415
    from emseg.store.volume import await_volume  # noqa: PLC0415

    recipe = job.recipe
    model = load(job.model, recipe.plan.model)
    if model.digest != recipe.model_digest:
        raise ModelError(
            f"the model {job.model} has the digest {model.digest[:12]}, but the run began with {recipe.model_digest[:12]}: "
            "put the old one back, or start over with --overwrite"
        )
    begun = recipe.numerics
    predictor = open_predictor(model, begun.library, begun.precision, begun.threads, job.device)
    numerics = _numerics(model, predictor, recipe.plan.tile, begun.threads, begun.precision, job.device)
    if numerics != recipe.numerics and not job.mixed_hardware:
        raise NumericsError(
            f"the run computes with {recipe.numerics}, but this worker with {numerics}: use the hardware and versions of the "
            "run, or accept other last bits with --mixed-hardware"
        )
    output = open_output(job.output, job.token)
    volume = await_volume(job.volume, CACHE_BYTES, recipe.volume.part)
    yield Bench(recipe, volume, augmented(predictor, recipe), output, turn or nullcontext()), output, numerics


def keep_small_buffers() -> None:
    """Have glibc use the memory of a chunk for the next one.

    Dask sets the variable ``MALLOC_TRIM_THRESHOLD_`` for its workers. From then on glibc gets each buffer of 128 KiB from the
    kernel, page by page, and gives it back at once: half as much CPU time again as reading, stitching and writing take.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return
    for parameter, size in MALLOPT.items():
        mallopt(parameter, size)


def augmented(predictor: Predictor, recipe: Recipe) -> Predictor:
    """What a run predicts with, made of the predictor of its network.

    Numerics and their canary are those of the network alone: what test-time augmentation adds is the same NumPy
    arithmetic on each of its tiles, as it is for the probabilities of any run.
    """
    return SymmetricPredictor(predictor) if recipe.tta else predictor


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried out on a worker before a run begins."""

    volume: Place
    part: Part | None
    """Which of the volumes there, if it holds several."""
    model: ModelPlace
    spec: NetworkSpec
    """Of the model."""
    normalisation: Normalisation
    tile: Triple
    """Shape (z, y, x) in voxels of the run's tiles."""
    threads: int
    device: Device
    backend: Backend
    precision: Precision | None
    """None for the lowest that gives the labels of float32 nearly everywhere."""
    measured: bool
    """Whether the accuracy of this precision is known already."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a run computes, and what was found out before."""

    numerics: Numerics
    flops_per_second: float
    """Of a predictor, on a small tile."""
    accuracy: Accuracy | None = None
    """Of its precision, if that is below float32 and was not known."""
    refused: tuple[tuple[Precision, Accuracy], ...] = ()
    """Lower precisions whose labels agree too little with those of float32."""


def try_out(trial: Trial) -> Choice:
    """How a predictor computes in this process, how accurately, and how fast.

    Which precision is chosen depends on the hardware, the weights and the voxels alone, not on how fast anything was.

    Raises
    ------
    DeviceError
        If the device or the precision is not to be had.
    """
    from emseg.model.backend import low_precisions, open_predictor  # noqa: PLC0415
    from emseg.store.volume import open_volume  # noqa: PLC0415

    model = load(trial.model, trial.spec)

    def opened(precision: Precision) -> SomePredictor:
        return open_predictor(model, trial.backend, precision, trial.threads, trial.device)

    def choice(predictor: SomePredictor, precision: Precision, accuracy: Accuracy | None = None) -> Choice:
        numerics = _numerics(model, predictor, trial.tile, trial.threads, precision, trial.device)
        return Choice(numerics, speed_of(predictor, trial.tile), accuracy, tuple(refused))

    refused: list[tuple[Precision, Accuracy]] = []
    if trial.precision == "float32" or (trial.precision is not None and trial.measured):
        return choice(opened(trial.precision), trial.precision)
    exact, volume = opened("float32"), open_volume(trial.volume, part=trial.part)
    tried = () if isinstance(model, ForeignModel | OwnModel) else low_precisions(trial.device)
    for precision in (trial.precision,) if trial.precision is not None else tried:
        fast = opened(precision)
        accuracy = accuracy_of(fast, exact, volume, trial.normalisation)
        if trial.precision is not None or accuracy.agreement >= ENOUGH:
            return choice(fast, precision, accuracy)
        refused.append((precision, accuracy))
    return choice(exact, "float32")


_known: dict[tuple[str, type, Triple, int, Precision, Device], Numerics] = {}
"""Numerics of this process by digest of the model, predictor, tile, threads, precision and device: a canary takes as long as
a tile."""


def _numerics(
    model: ModelFile | ForeignModel | OwnModel,
    predictor: SomePredictor,
    tile: Triple,
    threads: int,
    precision: Precision,
    device: Device,
) -> Numerics:
    case = model.digest, type(predictor), tile, threads, precision, device
    if case not in _known:
        _known[case] = predictor.numerics(tile)
    return _known[case]
