"""`emseg evaluate`: compare a class map with ground truth.

Voxels are counted over all slices together. Segments and the warping error are scored slice by slice, by the protocol of the
ISBI 2012 challenge (`emseg_core.metrics.isbi`), and averaged over the slices. Only a few slices are in memory at a time.
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

from emseg.flows.scoring.inputs import Truth, chosen_slices, open_class_map
from emseg_core.errors import InputError
from emseg_core.grid.stitch import QUANTA
from emseg_core.metrics.components import Labels, components
from emseg_core.metrics.isbi import FINE, TENTHS, border_scores
from emseg_core.metrics.partition import Scores
from emseg_core.metrics.pixel import Histogram, confusion, counts_of, pixel_error, precision_recall, reliability
from emseg_core.metrics.warping import Warped, warp
from emseg_core.printable import printable_lines
from emseg_core.store.files.place import Address, Place, parse_place
from emseg_core.store.stacks.source import open_slices
from emseg_core.truth import BORDERS, IGNORE


@dataclass(frozen=True, slots=True)
class SliceScores:
    """Scores of one slice at the given threshold."""

    z: int
    """Index of the slice in the output, from 0."""
    segments: Scores
    warped: Warped
    curves: NDArray[np.float64] | None
    """V_Rand and V_Info at each of the fine thresholds, ``(2, 51) float64``; None without probabilities."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Scores at each threshold, averaged over the slices."""

    thresholds: tuple[float, ...]
    rand: tuple[float, ...]
    """V_Rand with thinned borders, at each threshold."""
    info: tuple[float, ...]
    """V_Info with thinned borders, at each threshold."""

    def best(self, values: Sequence[float], among: Sequence[float]) -> tuple[float, float]:
        """Return the threshold with the highest value, and that value.

        Parameters
        ----------
        values
            A score at each of the thresholds.
        among
            The thresholds to choose from. The lowest one wins a tie.

        Returns
        -------
        tuple of float
            The threshold and the score.
        """
        value, threshold = max(
            (value, -threshold) for threshold, value in zip(self.thresholds, values, strict=True) if threshold in among
        )
        return -threshold, value


@dataclass(slots=True)
class Evaluation:
    """Scores of a class map."""

    output: str
    truth: str
    classes: tuple[str, ...]
    slices: tuple[int, int]
    """First scored slice of the output, and the one after the last."""
    border: str | None
    """The class that separates segments; None if there is no such class."""
    requested_threshold: float
    """Lowest probability at which a voxel counts as border."""
    table: NDArray[np.int64] = field(init=False)
    """Confusion matrix in voxels, ``(true, predicted) int64``."""
    histogram: Histogram | None = None
    """Histogram of the border's probabilities; None if none are stored."""
    slice_scores: list[SliceScores] = field(default_factory=list)
    """Scores of each slice in which the truth has a segment."""

    def __post_init__(self) -> None:
        self.table = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def add(self, z: int, labels: NDArray[np.uint8], truth: NDArray[np.uint8], stored: NDArray[np.uint8] | None) -> None:
        """Score consecutive slices.

        Parameters
        ----------
        z
            Index of the first of them in the output.
        labels
            Predicted class of each voxel, ``(z, y, x) uint8``.
        truth
            True class of each voxel, ``(z, y, x) uint8``.
        stored
            Stored probability of the border, ``(z, y, x) uint8`` from 0 to 254; None if there is none.
        """
        self.table += confusion(labels, truth, len(self.classes))
        if self.border is None:
            return
        label = self.classes.index(self.border)
        borders = labels == label if stored is None else stored >= self.requested_threshold * QUANTA
        if stored is not None:
            self.histogram = (self.histogram or Histogram.empty()) + Histogram.of(stored, truth, label)
        for place, (border, true) in enumerate(zip(borders, truth, strict=True)):
            known = true != IGNORE
            inside = known & (true != label)
            if inside.any():
                segments = components(inside)
                curves = None if stored is None else _curves(stored[place], segments)
                scores = border_scores(border, segments)
                self.slice_scores.append(SliceScores(z + place, scores, warp(~border, inside, known), curves))

    @property
    def threshold(self) -> float | None:
        """Lowest probability at which a voxel counts as border; None if labels were used, as no probabilities are stored."""
        return None if self.histogram is None else self.requested_threshold

    @property
    def sweep(self) -> Sweep | None:
        """Mean scores at each of the fine thresholds; None without probabilities."""
        curves = [one.curves for one in self.slice_scores if one.curves is not None]
        if not curves:
            return None
        rand, info = np.mean(curves, axis=0).tolist()
        return Sweep(FINE, tuple(rand), tuple(info))

    def to_json(self) -> dict[str, Any]:
        """Return all scores as JSON values."""
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
            "segments": {name: self._mean(name) for name in Scores.__slots__} if self.slice_scores else None,
            "warping_error": self._warping() if self.slice_scores else None,
            "by_slice": [
                {"z": one.z, **asdict(one.segments), "warping_error": one.warped.error, **asdict(one.warped)}
                for one in self.slice_scores
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
        lines += ["", f"voxels     {100 * pixel_error(self.table):.2f} % of voxels have the wrong class"]
        return printable_lines([*lines, *self._segment_lines(), *self._probability_lines()])

    def _segment_lines(self) -> Iterator[str]:
        if self.border is None:
            yield f"segments   not scored, because no class is called {' or '.join(BORDERS)}: choose one with --class"
            return
        if not self.slice_scores:
            yield f"segments   not scored, because the truth is {self.border} everywhere"
            return
        border = f"label {self.border}" if self.threshold is None else f"{self.border} probability >= {self.threshold:g}"
        mean = f"mean over {len(self.slice_scores)} slice{'s' if len(self.slice_scores) != 1 else ''}"
        yield f"segments   {border} separates cells; borders thinned to one pixel; {mean}"
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
            yield "thresholds not compared, because no probabilities are stored: run with --probabilities to store them"
            return
        for grid, best in (self._best() or {}).items():
            rand, info = best["rand"], best["info"]
            yield (
                f"best       V_Rand {rand['score']:.4f} at threshold {rand['threshold']:g}, "
                f"V_Info {info['score']:.4f} at threshold {info['threshold']:g} (thresholds in steps of {grid})"
            )
        if known := self._probabilities():
            yield (
                f"curve      average precision {known['average_precision']:.4f}, "
                f"best F1 {known['best_f1']:.4f} at threshold {known['best_threshold']:.3f}"
            )
            yield f"calibration expected error {known['expected_calibration_error']:.4f}"

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
        return math.fsum(getattr(one.segments, name) for one in self.slice_scores) / len(self.slice_scores)

    def _warping(self) -> float:
        return math.fsum(one.warped.error for one in self.slice_scores) / len(self.slice_scores)

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
    """Score an output against ground truth.

    Parameters
    ----------
    output
        The output of a run; or a TIFF stack or Zarr volume with the same values as the truth.
    truth
        A TIFF stack or Zarr volume of class values or instance ids, for the output or for the whole volume that was
        segmented.
    labels
        The values of the truth that stand for each class, by the class's name.
    ids
        The truth consists of instance ids, with 0 for unlabelled voxels: membrane is where two ids touch.
    planar
        With `ids`, consider neighbours in the plane only; see `emseg_core.truth.membrane_truth`.
    ignore
        Values of the truth that are not scored.
    border
        The class that separates segments; by default the one called membrane or boundary.
    threshold
        Lowest probability at which a voxel counts as border.
    slices
        First slice of the output, counted from 0, and the one after the last; the truth may consist of these slices alone.

    Returns
    -------
    Evaluation
        The scores.

    Raises
    ------
    InputError
        If output and truth do not fit each other, either cannot be read, or the output is not complete.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold:g}, but probabilities are from 0 to 1: choose another with --threshold")
    with ExitStack() as stack:
        true = Truth(parse_place(truth), stack.enter_context(open_slices(truth)), labels, ids, planar, ignore)
        predicted = open_class_map(parse_place(output), true, stack)
        first, stop, shift = chosen_slices(predicted, true, slices)
        classes, chosen = predicted.classes, _border_class(predicted.classes, border)
        result = Evaluation(str(output), str(truth), classes, (first, stop), chosen, threshold)
        for start in range(first, stop, predicted.depth):
            end = min(start + predicted.depth, stop)
            stored = None if chosen is None else predicted.probability(classes.index(chosen), start, end)
            result.add(start, predicted.labels(start, end), true.classes(start - shift, end - shift, classes), stored)
    return result


def _curves(stored: NDArray[np.uint8], segments: Labels) -> NDArray[np.float64]:
    """Return V_Rand and V_Info of a slice at each of the fine thresholds, ``(2, 51) float64``."""
    scores = [border_scores(stored >= threshold * QUANTA, segments) for threshold in FINE]
    return np.array([[one.rand for one in scores], [one.info for one in scores]])


def _border_class(classes: tuple[str, ...], requested: str | None) -> str | None:
    if requested is not None and requested not in classes:
        raise InputError(f"there is no class {requested!r}: choose one of {', '.join(classes)} with --class")
    return requested or next((name for name in BORDERS if name in classes), None)
