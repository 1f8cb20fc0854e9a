"""Trial of a model on a worker before a run: how it computes, how accurately and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emseg_core.accuracy import accuracy_of, predict_sample, sample_boxes
from emseg_core.box import Triple
from emseg_core.canary import speed_of
from emseg_core.errors import BlockError
from emseg_core.metrics.affinities import better_reading, lines_of, mostly_cut
from emseg_core.model.device import Device
from emseg_core.model.ensemble import EnsembleModel
from emseg_core.model.external_model import ExternalModel
from emseg_core.model.model_place import ModelPlace, load
from emseg_core.model.python_predictor import PythonModel
from emseg_core.normalise import Normalisation
from emseg_core.specs.heads import parts_of
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Accuracy, Backend, Numerics, Precision
from emseg_core.specs.volume import Selection
from emseg_core.store.files.place import Place

if TYPE_CHECKING:
    from emseg_core.model.base_predictor import BasePredictor
    from emseg_core.model.file import ModelFile

MIN_AGREEMENT = 0.999
"""Minimum fraction of voxels that an automatically chosen precision must label as float32 does."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial on a worker before a run."""

    volume: Place
    part: Selection | None
    """Selects one of several volumes."""
    model: ModelPlace
    spec: NetworkSpec
    """Specification of the model."""
    normalisation: Normalisation
    tile: Triple
    """Shape (z, y, x) of the run's tiles in voxels."""
    threads: int
    device: Device
    backend: Backend
    precision: Precision | None
    """None for the lowest that gives the labels of float32 nearly everywhere."""
    measured: bool
    """Whether the accuracy of this precision is already known."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a run computes, with the measurements of its trial."""

    numerics: Numerics
    flops_per_second: float
    """Speed of a predictor on a small tile, in FLOP/s."""
    accuracy: Accuracy | None = None
    """Accuracy of the precision, if it is below float32 and was not known."""
    refused: tuple[tuple[Precision, Accuracy], ...] = ()
    """Lower precisions whose labels differ too much from those of float32."""
    doubts: tuple[str, ...] = ()
    """What on the sample speaks against the stated meaning of the heads."""


def try_out(trial: Trial) -> Choice:
    """Choose the precision of a predictor in this process, and measure its accuracy and speed.

    The choice depends on the hardware, the weights and the voxels alone, not on any measured time.

    Parameters
    ----------
    trial
        The trial.

    Returns
    -------
    Choice
        Numerics, speed and accuracy.

    Raises
    ------
    DeviceError
        If the device or the precision is not available.
    """
    from emseg_core.model.backend import low_precisions, open_predictor
    from emseg_core.store.volumes.volume import open_volume

    model = load(trial.model, trial.spec)

    def opened(precision: Precision) -> BasePredictor:
        return open_predictor(model, trial.backend, precision, trial.threads, trial.device)

    def choice(predictor: BasePredictor, precision: Precision, accuracy: Accuracy | None = None) -> Choice:
        _tried[_identity(model), trial.backend, precision, trial.threads, trial.device] = predictor
        numerics = numerics_of(model, predictor, trial.tile, trial.threads, precision, trial.device)
        return Choice(numerics, speed_of(predictor, trial.tile), accuracy, tuple(refused), tuple(_doubts(trial, predictor)))

    refused: list[tuple[Precision, Accuracy]] = []
    if trial.precision == "float32" or (trial.precision is not None and trial.measured):
        return choice(opened(trial.precision), trial.precision)
    exact, volume = opened("float32"), open_volume(trial.volume, part=trial.part)
    tried = () if isinstance(model, PythonModel) else low_precisions(trial.device)
    for precision in (trial.precision,) if trial.precision is not None else tried:
        fast = opened(precision)
        accuracy = accuracy_of(fast, exact, volume, trial.normalisation)
        if trial.precision is not None or accuracy.agreement >= MIN_AGREEMENT:
            return choice(fast, precision, accuracy)
        refused.append((precision, accuracy))
    return choice(exact, "float32")


def _doubts(trial: Trial, predictor: BasePredictor) -> Iterator[str]:
    """Yield what the affinities of some boxes say against their stated meaning. A started output has been told before."""
    heads = [(head, part) for head, part in parts_of(predictor.spec.heads) if head.kind == "affinities"]
    if not heads or trial.measured:
        return
    from emseg_core.store.volumes.volume import open_volume

    volume, found = open_volume(trial.volume, part=trial.part), []
    for box in sample_boxes(predictor.spec, volume.spec.box):
        with suppress(BlockError):  # a run reports it
            found.append(predict_sample(predictor, volume, trial.normalisation, box))
    for head, part in heads:
        boxes = [box[part] for box in found]
        if mostly_cut(head, boxes):
            yield (
                f"the head {head.name} cuts most edges, as if 1 and 0 were exchanged: check repulsive = "
                f"{str(head.repulsive).lower()}"
            )
        elif (better := better_reading(head, boxes)) is not None:
            reading, fit, stated = better
            yield (
                f"the head {head.name} seems to be stated wrongly: {stated.share:.1%} of its squares of four voxels have a "
                f"single cut edge, which no labels have, but {fit.share:.1%} with {lines_of(reading, head)}: check what was "
                "trained"
            )


def _identity(model: ModelFile | ExternalModel | PythonModel | EnsembleModel) -> str:
    """Return what tells a model from others: its digest, and its frozen statistics, if it has any."""
    frozen = model.norms if isinstance(model, ExternalModel) else ()
    return f"{model.digest} {frozen}" if frozen else model.digest


_tried: dict[tuple[str, Backend, Precision, int, Device], BasePredictor] = {}
"""The predictor of a trial in this process, until a run takes it."""


def take_predictor(
    model: ModelFile | ExternalModel | PythonModel | EnsembleModel,
    backend: Backend,
    precision: Precision,
    threads: int,
    device: Device,
) -> BasePredictor:
    """Open a predictor, or take that of the trial of this run, which has compiled its network.

    Returns
    -------
    TorchPredictor, OpenVinoPredictor, OnnxPredictor, PythonPredictor or EnsemblePredictor
        As `emseg_core.model.backend.open_predictor` returns.

    Raises
    ------
    DeviceError
        If the library, the device or the precision is not available.
    """
    from emseg_core.model.backend import open_predictor

    tried = _tried.pop((_identity(model), backend, precision, threads, device), None)
    _tried.clear()
    return tried or open_predictor(model, backend, precision, threads, device)


def warm_up(trial: Trial) -> None:
    """Import and read what a run needs while another worker tries the model. The run itself reports any errors."""
    with suppress(Exception):
        from emseg_core.model.backend import open_predictor
        from emseg_core.store.volumes.volume import open_volume

        open_volume(trial.volume, part=trial.part)
        model = load(trial.model, trial.spec)
        if not isinstance(model, PythonModel):  # a class of the user is instantiated once for each worker, by the run
            open_predictor(model, trial.backend, "float32", trial.threads, trial.device)


_known: dict[tuple[str, type, Triple, int, Precision, Device], Numerics] = {}
"""Numerics of this process by digest of the model, predictor, tile, threads, precision and device: a canary takes as long as
a tile.
"""


def numerics_of(
    model: ModelFile | ExternalModel | PythonModel | EnsembleModel,
    predictor: BasePredictor,
    tile: Triple,
    threads: int,
    precision: Precision,
    device: Device,
) -> Numerics:
    """Return how a predictor computes in this process; computed once per case, as its canary is a whole tile.

    Parameters
    ----------
    model
        The model.
    predictor
        Its predictor in this process.
    tile
        Shape (z, y, x) of the tiles, in voxels.
    threads
        Number of threads of the predictor.
    precision
        Precision in which it computes.
    device
        Device on which it computes.

    Returns
    -------
    Numerics
        Library, precision, hardware, and hash of the canary tile.
    """
    case = _identity(model), type(predictor), tile, threads, precision, device
    if case not in _known:
        _known[case] = predictor.numerics(tile)
    return _known[case]
