"""`emseg evaluate`: how good a class map is, against a known truth.

Voxels are counted in all slices together. Segments, and how their borders can be warped, are scored slice by slice, by the
protocol of the ISBI 2012 challenge (`emseg.metrics.isbi`), and their scores are means over the slices. A few slices are in
memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import InputError, OutputError
from emseg.grid.stitch import QUANTA
from emseg.metrics.components import components
from emseg.metrics.isbi import FINE, TENTHS, border_scores
from emseg.metrics.partition import Scores
from emseg.metrics.pixel import Histogram, confusion, counts_of, pixel_error, precision_recall, reliability
from emseg.metrics.warping import Warped, warp
from emseg.store.ledger import Output
from emseg.store.output import is_output, open_output
from emseg.store.source import SliceSource, open_slices
from emseg.truth import CLASSES, IGNORE, check_meaning, class_truth, membrane_truth
from emseg_workflows.flows.record import recipe_of

BORDERS = ("membrane", "boundary")
"""Names of a class that parts segments, the first that an output has."""

ClassSlices = Callable[[int, int], NDArray[np.uint8]]
"""The classes ``(z, y, x) uint8`` of slices from one number to before another."""


@dataclass(frozen=True, slots=True)
class SliceScores:
    """What was found in one slice, at the threshold that was given."""

    z: int
    """Number of the slice in the output, from 0."""
    segments: Scores
    warped: Warped


@dataclass(frozen=True, slots=True)
class Sweep:
    """Mean scores over the slices at each threshold."""

    thresholds: tuple[float, ...]
    rand: tuple[float, ...]
    """V_Rand, thinned."""
    info: tuple[float, ...]
    """V_Info, thinned."""

    def best(self, values: Sequence[float], among: Sequence[float]) -> tuple[float, float]:
        """The threshold, among some of them, with the highest value, and that value."""
        value, threshold = max(
            (value, -threshold) for threshold, value in zip(self.thresholds, values, strict=True) if threshold in among
        )
        return -threshold, value


@dataclass(slots=True)
class Evaluation:
    """How good a class map is."""

    output: str
    truth: str
    classes: tuple[str, ...]
    slices: tuple[int, int]
    """First slice of the output that was scored, and the one after the last."""
    border: str | None
    """The class that parts segments; None if there is no such class."""
    threshold: float | None
    """From which probability on a voxel is border; None where the labels say it, without probabilities."""
    table: NDArray[np.int64]
    """Voxels by true and by predicted class, ``(true, predicted) int64``."""
    found: list[SliceScores] = field(default_factory=list)
    """Scores of the slices in which the truth has a segment."""
    sweep: Sweep | None = None
    histogram: Histogram | None = None
    """The border's probabilities."""

    def to_json(self) -> dict[str, Any]:
        """All that was found, as JSON values."""
        voxels = {"scored": int(self.table.sum()), "error": pixel_error(self.table), "confusion": self.table.tolist()}
        return {
            "output": self.output,
            "truth": self.truth,
            "slices": list(self.slices),
            "voxels": voxels,
            "classes": {name: self._class(label) for label, name in enumerate(self.classes)},
            "border": self.border,
            "threshold": self.threshold,
            "segments": {name: self._mean(name) for name in Scores.__slots__} if self.found else None,
            "warping_error": self._warping() if self.found else None,
            "by_slice": [
                {"z": one.z, **asdict(one.segments), "warping_error": one.warped.error, **asdict(one.warped)}
                for one in self.found
            ],
            "sweep": {name: list(values) for name, values in asdict(self.sweep).items()} if self.sweep else None,
            "best": self._best(),
            "probabilities": self._probabilities(),
        }

    def __str__(self) -> str:
        first, stop = self.slices
        lines = [
            f"output     {self.output}",
            f"truth      {self.truth}, slices {first} to {stop - 1}, {int(self.table.sum())} voxels",
            "",
            f"{'class':<16}{'F1':>7}{'precision':>11}{'recall':>8}{'IoU':>7}{'voxels':>12}",
        ]
        for label, name in enumerate(self.classes):
            one = self._class(label)
            scores = f"{one['f1']:>7.3f}{one['precision']:>11.3f}{one['recall']:>8.3f}{one['iou']:>7.3f}"
            lines.append(f"{name:<16}{scores}{one['voxels']:>12}")
        lines += ["", f"pixels     {pixel_error(self.table):.4f} of them have a wrong class"]
        return "\n".join([*lines, *self._segment_lines(), *self._probability_lines()])

    def _segment_lines(self) -> Iterator[str]:
        if self.border is None:
            yield f"segments   not scored, as no class is called {' or '.join(BORDERS)}: name one with --class"
            return
        if not self.found:
            yield f"segments   not scored, as the truth is {self.border} everywhere"
            return
        at = "where the labels say so" if self.threshold is None else f"from {self.threshold:g} on"
        yield f"segments   parted by {self.border} {at}, borders thinned, mean of {len(self.found)} slices"
        for name, key in (("V_Rand", "rand"), ("V_Info", "info")):
            whole, split, merge = (self._mean(one) for one in (key, f"{key}_split", f"{key}_merge"))
            yield f"  {name:<9}{whole:.4f}  (split {split:.4f}, merge {merge:.4f})"
        split, merge = self._mean("variation_split"), self._mean("variation_merge")
        yield f"  variation of information {split + merge:.4f} bits (split {split:.4f}, merge {merge:.4f})"
        yield f"  Rand error {self._mean('rand_error'):.4f}, adapted {self._mean('adapted_rand_error'):.4f}"
        yield f"  warping error {self._warping():.6f}"

    def _probability_lines(self) -> Iterator[str]:
        if self.border is None:
            return
        if self.histogram is None:
            yield "thresholds not tried, as there are no probabilities: a run with --probabilities stores them"
            return
        for grid, best in (self._best() or {}).items():
            rand, info = best["rand"], best["info"]
            yield (
                f"best       V_Rand {rand['score']:.4f} from {rand['threshold']:g} on, "
                f"V_Info {info['score']:.4f} from {info['threshold']:g} on, in steps of {grid}"
            )
        if known := self._probabilities():
            yield (
                f"curve      average precision {known['average_precision']:.4f}, "
                f"best F1 {known['best_f1']:.4f} from {known['best_threshold']:.3f} on"
            )
            yield f"calibrated to within {known['expected_calibration_error']:.4f} on average"

    def _class(self, label: int) -> dict[str, Any]:
        counts = counts_of(self.table, label)
        return {
            "f1": counts.f1,
            "precision": counts.precision,
            "recall": counts.recall,
            "iou": counts.iou,
            "voxels": counts.found + counts.missed,
        }

    def _mean(self, name: str) -> float:
        return math.fsum(getattr(one.segments, name) for one in self.found) / len(self.found)

    def _warping(self) -> float:
        return math.fsum(one.warped.error for one in self.found) / len(self.found)

    def _best(self) -> dict[str, Any] | None:
        if self.sweep is None:
            return None
        return {
            step: {
                name: dict(zip(("threshold", "score"), self.sweep.best(values, grid), strict=True))
                for name, values in (("rand", self.sweep.rand), ("info", self.sweep.info))
            }
            for step, grid in (("0.1", TENTHS), ("0.02", FINE))
        }

    def _probabilities(self) -> dict[str, Any] | None:
        if self.histogram is None or not self.histogram.members.any():
            return None
        curve, bins = precision_recall(self.histogram), reliability(self.histogram)
        threshold, best = curve.best
        return {
            "average_precision": curve.average_precision,
            "best_f1": best,
            "best_threshold": threshold,
            "expected_calibration_error": bins.expected_error,
            "reliability": {name: getattr(bins, name).tolist() for name in ("voxels", "stated", "observed")},
        }


def evaluate(
    output: str | Path,
    truth: str | Path,
    *,
    labels: Mapping[str, tuple[int, ...]] | None = None,
    ids: bool = False,
    planar: bool = False,
    ignore: tuple[int, ...] = (),
    border: str | None = None,
    threshold: float = 0.5,
    slices: tuple[int, int] | None = None,
) -> Evaluation:
    """How good an output is, against the truth for it.

    Parameters
    ----------
    output
        What a run has written; or a TIFF stack or Zarr volume that has the values of the truth.
    truth
        A TIFF stack or Zarr volume of class values or instance ids, for the output or for the whole volume that was
        segmented.
    labels
        The values of the truth that stand for each class, by the class's name.
    ids
        The truth is instance ids, 0 for not labelled: membrane is where two of them touch.
    planar
        With `ids`, look at neighbours in the plane only; see `emseg.truth.membrane_truth`.
    ignore
        Values of the truth that do not count.
    border
        The class that parts segments; by default the one called membrane or boundary.
    threshold
        From which probability on a voxel is border.
    slices
        First slice of the output, counted from 0, and the one after the last; the truth may have these alone.

    Raises
    ------
    InputError
        If output and truth do not fit each other, either cannot be read, or the output is not complete.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold {threshold:g} is no probability: give one from 0 to 1")
    with ExitStack() as stack:
        known = _Truth(Path(truth), stack.enter_context(open_slices(truth)), labels, ids, planar, ignore)
        made = _prediction(Path(output), known, stack)
        check_meaning(known.meaning, made.classes, ignore)
        chosen = _border(made.classes, border)
        first, stop, shift = _range(made, known, slices)
        size = len(made.classes)
        with_sweep = chosen is not None and made.keeps_probabilities
        result = Evaluation(
            output=str(output),
            truth=str(truth),
            classes=made.classes,
            slices=(first, stop),
            border=chosen,
            threshold=threshold if with_sweep else None,
            table=np.zeros((size, size), np.int64),
        )
        curves: list[tuple[list[float], list[float]]] = []
        for start in range(first, stop, made.depth):
            end = min(start + made.depth, stop)
            true, predicted = known.classes(start - shift, end - shift, made.classes), made.labels(start, end)
            result.table += confusion(predicted, true, size)
            if chosen is None:
                continue
            label = made.classes.index(chosen)
            stored = made.probability(label, start, end) if with_sweep else None
            if stored is not None:
                result.histogram = (result.histogram or Histogram.empty()) + Histogram.of(stored, true, label)
            for place in range(end - start):
                plane = predicted[place] == label if stored is None else stored[place] >= threshold * QUANTA
                scored = _slice(start + place, plane, true[place], label)
                if scored is None:
                    continue
                result.found.append(scored)
                if stored is not None:
                    curves.append(_curve(stored[place], true[place], label))
    if curves:
        rand, info = np.mean(curves, axis=0).tolist()
        result.sweep = Sweep(FINE, tuple(rand), tuple(info))
    return result


def _slice(z: int, border: NDArray[np.bool_], truth: NDArray[np.uint8], label: int) -> SliceScores | None:
    """The scores of a slice; None if the truth has no segment in it."""
    known = truth != IGNORE
    inside = known & (truth != label)
    if not inside.any():
        return None
    return SliceScores(z, border_scores(border, components(inside)), warp(~border, inside, known))


def _curve(stored: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> tuple[list[float], list[float]]:
    """V_Rand and V_Info of a slice at each of the fine thresholds."""
    segments = components((truth != IGNORE) & (truth != label))
    scores = [border_scores(stored >= threshold * QUANTA, segments) for threshold in FINE]
    return [one.rand for one in scores], [one.info for one in scores]


class _Prediction(Protocol):
    """A class map, read slice by slice."""

    path: Path
    shape: Triple
    classes: tuple[str, ...]
    depth: int
    """Slices that are read at once."""
    keeps_probabilities: bool

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]: ...

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8]: ...


class _Stored:
    """The output of a run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.path = output.path
        self.shape = output.region.shape
        self.classes = output.classes
        self.depth = output.chunk[0]
        self.keeps_probabilities = output.keeps_probabilities

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._output.read_labels(self._box(start, stop))

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        stored: NDArray[np.uint8] = self._output.read_probabilities(self._box(start, stop))[label]
        return stored

    def _box(self, start: int, stop: int) -> Box:
        return Box((start, 0, 0), (stop, *self.shape[1:])).shift(self._output.region.start)


class _Plain:
    """Somebody's volume of class values, which mean what those of the truth do."""

    depth = 1
    keeps_probabilities = False

    def __init__(self, path: Path, source: SliceSource, truth: _Truth) -> None:
        self.path = path
        self.shape = source.shape
        self.classes = tuple(truth.meaning)
        self._source = source
        self._truth = truth

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        meaning = {name: (label,) for label, name in enumerate(CLASSES)} if self._truth.ids else self._truth.meaning
        with _where(self.path, start, stop):
            return class_truth(_whole_numbers(self._source.read(start, stop)), meaning, self.classes)

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        raise NotImplementedError


class _Truth:
    """The truth, read slice by slice."""

    def __init__(
        self,
        path: Path,
        source: SliceSource,
        labels: Mapping[str, tuple[int, ...]] | None,
        ids: bool,
        planar: bool,
        ignore: tuple[int, ...],
    ) -> None:
        if ids == bool(labels):
            raise InputError(
                f"what the values of {path} mean must be said in one way: the classes, with --labels membrane=0,inside=255 "
                "say, or --ids for instance ids"
            )
        self.path = path
        self.shape = source.shape
        self.ids = ids
        self.meaning: Mapping[str, tuple[int, ...]] = labels or dict.fromkeys(CLASSES, ())
        self._source = source
        self._planar = planar
        self._ignore = ignore
        self._part = Box.of_shape(source.shape)

    def crop(self, part: Box) -> None:
        """Count slices, rows and columns from the start of a part, and leave out what lies beyond it."""
        self._part = part
        self.shape = part.shape

    def classes(self, start: int, stop: int, names: tuple[str, ...]) -> NDArray[np.uint8]:
        """Class ``(z, y, x) uint8`` of each voxel of some slices, by its place among the names; 255 ignore."""
        start, stop = start + self._part.start[0], stop + self._part.start[0]
        plane = self._part.slices()[1:]
        if not self.ids:
            with _where(self.path, start, stop):
                values = _whole_numbers(self._source.read(start, stop))[:, *plane]
                return class_truth(values, self.meaning, names, self._ignore)
        before, after = max(0, start - 1), min(self._source.shape[0], stop + 1)  # the neighbours in z
        with _where(self.path, before, after):
            values = _whole_numbers(self._source.read(before, after))
        values[np.isin(values, self._ignore)] = 0
        made = membrane_truth(values, planar=self._planar)[start - before : stop - before]
        places = np.full(IGNORE + 1, IGNORE, np.uint8)
        places[: len(CLASSES)] = [names.index(name) for name in CLASSES]
        return places[made[:, *plane]]


@contextmanager
def _where(path: Path, start: int, stop: int) -> Iterator[None]:
    """Says in which slices of a volume there is a value that cannot be used."""
    try:
        yield
    except InputError as error:
        where = f"slice {start}" if stop == start + 1 else f"slices {start} to {stop - 1}"
        raise InputError(f"in {where} of {path}, {error}") from error


def _whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """The values as whole numbers, if they are such."""
    if values.dtype.kind != "f":
        return values
    whole = np.isfinite(values) & (values == np.floor(values))
    if not whole.all():
        odd = float(values[~whole].flat[0])
        raise InputError(f"there is the value {odd:g}, but classes and ids are whole numbers: give labels, not grey values")
    return values.astype(np.int64)


def _prediction(path: Path, truth: _Truth, stack: ExitStack) -> _Prediction:
    if not is_output(path):
        return _Plain(path, stack.enter_context(open_slices(path)), truth)
    output = open_output(path)
    check_complete(output)
    missing = [name for name in CLASSES if name not in output.classes]
    if truth.ids and missing:
        raise InputError(
            f"ids become {' and '.join(CLASSES)}, but the classes of {path} are {', '.join(output.classes)}: give a truth of "
            "classes, with --labels"
        )
    if truth.shape != output.region.shape and truth.shape == recipe_of(output).volume.shape:
        truth.crop(output.region)
    return _Stored(output)


def check_complete(output: Output) -> None:
    """Refuse an output with blocks that are not computed.

    Raises
    ------
    OutputError
        If there is one.
    """
    done = output.done_units()
    if not done.all():
        left = f"{np.count_nonzero(~done)} of {done.size} blocks of {output.path}"
        raise OutputError(f"{left} are not computed: finish it with `emseg run` first")


def _border(classes: tuple[str, ...], asked: str | None) -> str | None:
    if asked is not None and asked not in classes:
        raise InputError(f"there is no class {asked!r}: the classes are {', '.join(classes)}")
    return asked or next((name for name in BORDERS if name in classes), None)


def _range(made: _Prediction, known: _Truth, slices: tuple[int, int] | None) -> tuple[int, int, int]:
    """First slice of the output and the one after the last, and which of the output's is slice 0 of the truth."""
    depth, *plane = made.shape
    first, stop = slices or (0, depth)
    if not 0 <= first < stop <= depth:
        raise InputError(
            f"{made.path} has slices 0 to {depth - 1}: give some of them with --slices 0:{depth}, not {first}:{stop}"
        )
    if list(known.shape[1:]) != plane:
        raise InputError(
            f"slices of {made.path} have shape {tuple(plane)}, but those of {known.path} {known.shape[1:]}: give the truth of "
            "what the output covers"
        )
    if known.shape[0] == depth:
        return first, stop, 0
    if known.shape[0] == stop - first:
        return first, stop, first
    which = f"{made.path} has {depth} slices" + (f", of which {stop - first} were chosen" if slices else "")
    raise InputError(
        f"{which}, but {known.path} has {known.shape[0]}: say with --slices A:B for which slices of the output it is the truth"
    )
