"""`emseg evaluate`: how good a class map is, against a known truth.

Voxels are counted in all slices together. Segments, and how their borders can be warped, are scored slice by slice, by the
protocol of the ISBI 2012 challenge (`emseg.metrics.isbi`), and their scores are means over the slices. A few slices are in
memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.errors import InputError
from emseg.grid.stitch import QUANTA
from emseg.metrics.components import Labels, components
from emseg.metrics.isbi import FINE, TENTHS, border_scores
from emseg.metrics.partition import Scores
from emseg.metrics.pixel import Histogram, confusion, counts_of, pixel_error, precision_recall, reliability
from emseg.metrics.warping import Warped, warp
from emseg.printable import printable_lines
from emseg.store.place import Address, Place, place_of
from emseg.store.source import open_slices
from emseg.truth import BORDERS, IGNORE
from emseg_workflows.flows.compared import Truth, chosen_slices, open_class_map


@dataclass(frozen=True, slots=True)
class SliceScores:
    """What was found in one slice, at the threshold that was given."""

    z: int
    """Number of the slice in the output, from 0."""
    segments: Scores
    warped: Warped
    curves: NDArray[np.float64] | None
    """V_Rand and V_Info at each of the fine thresholds, ``(2, 51) float64``; None without probabilities."""


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
    asked: float
    """From which probability on a voxel is to be border."""
    table: NDArray[np.int64] = field(init=False)
    """Voxels by true and by predicted class, ``(true, predicted) int64``."""
    histogram: Histogram | None = None
    """The border's probabilities; None if there are none."""
    found: list[SliceScores] = field(default_factory=list)
    """Scores of the slices in which the truth has a segment."""

    def __post_init__(self) -> None:
        self.table = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def add(self, z: int, labels: NDArray[np.uint8], truth: NDArray[np.uint8], stored: NDArray[np.uint8] | None) -> None:
        """Score some slices from number `z` on: classes, true classes and the border's probabilities, ``(z, y, x) uint8``."""
        self.table += confusion(labels, truth, len(self.classes))
        if self.border is None:
            return
        label = self.classes.index(self.border)
        borders = labels == label if stored is None else stored >= self.asked * QUANTA
        if stored is not None:
            self.histogram = (self.histogram or Histogram.empty()) + Histogram.of(stored, truth, label)
        for place, (border, true) in enumerate(zip(borders, truth, strict=True)):
            known = true != IGNORE
            inside = known & (true != label)
            if inside.any():
                segments = components(inside)
                curves = None if stored is None else _curves(stored[place], segments)
                scores = border_scores(border, segments)
                self.found.append(SliceScores(z + place, scores, warp(~border, inside, known), curves))

    @property
    def threshold(self) -> float | None:
        """From which probability on a voxel is border; None where the labels say it, without probabilities."""
        return None if self.histogram is None else self.asked

    @property
    def sweep(self) -> Sweep | None:
        """The mean scores at each of the fine thresholds; None without probabilities."""
        curves = [one.curves for one in self.found if one.curves is not None]
        if not curves:
            return None
        rand, info = np.mean(curves, axis=0).tolist()
        return Sweep(FINE, tuple(rand), tuple(info))

    def to_json(self) -> dict[str, Any]:
        """All that was found, as JSON values."""
        sweep = self.sweep
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
            "sweep": {name: list(values) for name, values in asdict(sweep).items()} if sweep else None,
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
        return printable_lines([*lines, *self._segment_lines(), *self._probability_lines()])

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
        if (sweep := self.sweep) is None:
            return None
        return {
            step: {
                name: dict(zip(("threshold", "score"), sweep.best(values, grid), strict=True))
                for name, values in (("rand", sweep.rand), ("info", sweep.info))
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
    output: str | Place,
    truth: str | Path | Address,
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
        known = Truth(place_of(truth), stack.enter_context(open_slices(truth)), labels, ids, planar, ignore)
        made = open_class_map(place_of(output), known, stack)
        first, stop, shift = chosen_slices(made, known, slices)
        chosen = _border(made.classes, border)
        result = Evaluation(str(output), str(truth), made.classes, (first, stop), chosen, threshold)
        for start in range(first, stop, made.depth):
            end = min(start + made.depth, stop)
            stored = None if chosen is None else made.probability(made.classes.index(chosen), start, end)
            result.add(start, made.labels(start, end), known.classes(start - shift, end - shift, made.classes), stored)
    return result


def _curves(stored: NDArray[np.uint8], segments: Labels) -> NDArray[np.float64]:
    """V_Rand and V_Info of a slice at each of the fine thresholds, ``(2, 51) float64``."""
    scores = [border_scores(stored >= threshold * QUANTA, segments) for threshold in FINE]
    return np.array([[one.rand for one in scores], [one.info for one in scores]])


def _border(classes: tuple[str, ...], asked: str | None) -> str | None:
    if asked is not None and asked not in classes:
        raise InputError(f"there is no class {asked!r}: the classes are {', '.join(classes)}")
    return asked or next((name for name in BORDERS if name in classes), None)
