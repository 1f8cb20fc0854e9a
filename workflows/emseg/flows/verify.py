"""`emseg verify`: check on a user's own output that tiling left no trace.

Random boxes of the output are computed again with the numerics of the run, once with the run's tiles and once with tiles of
another shape that start elsewhere on the lattice. Half of the boxes lie across corners of blocks, where a seam would be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import model_of, recipe_of, volume_of
from emseg.flows.records.same_volume import VolumeComparison, compare_all
from emseg.flows.running.stages import StageRunner
from emseg.launch import Launch, check_limits, open_executor
from emseg.placement import Placement
from emseg.runs.dispatch import Policy
from emseg.runs.events import Observer
from emseg.runs.notices import log
from emseg.runs.stop import Stop, StoppedError
from emseg.tasks.segmenting import with_augmentation
from emseg_core.block import predict_box, read_seen
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError, ModelError, OutputError
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA, quantise
from emseg_core.model.backend import backend_of, low_precisions, open_predictor
from emseg_core.model.device import Device
from emseg_core.model.model_place import load
from emseg_core.normalise import survey
from emseg_core.outcome import Stopwatch
from emseg_core.ports import Predictor, VolumeReader
from emseg_core.printable import printable_lines
from emseg_core.recipe import Recipe
from emseg_core.specs.heads import StoredImage, parts_of
from emseg_core.specs.numerics import Accuracy
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.files.lease import newest_run
from emseg_core.store.files.place import Address, Place
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume

FLOAT32_TOLERANCE = 1e-4
"""Largest difference between two float32 computations of the same probability."""
LOW_PRECISION_FACTOR = 2
"""Two computations in low precision differ by at most this many times the difference of one of them from float32."""
BOX_EDGE_VOXELS = 48
"""Edge length of a box."""


@dataclass(slots=True)
class Verdict:
    """Result of the comparison. Counts are voxels, or stored probabilities."""

    boxes: int = 0
    voxels: int = 0
    not_computed: int = 0
    """Voxels that the run has not computed; they are not compared."""
    ties: int = 0
    """Labels that differ where the two best classes, or probability and threshold, are within `tolerance`."""
    wrong_labels: int = 0
    """Labels that differ elsewhere."""
    wrong_probabilities: int = 0
    """Stored probabilities and values that differ from the computed ones by more than rounding."""
    largest_difference: float = 0.0
    """Largest difference between a probability computed with the run's tiles and with the other tiles; of other values,
    relative to the largest of their channel in the box, or to 1.
    """
    units: int = 0
    """Write units of coarser levels that were computed again from the next finer level."""
    wrong_units: int = 0
    """How many of these differ from what is stored."""
    failures: list[str] = field(default_factory=list)
    """Boxes that could not be read or computed, each with the cause."""
    same_numerics: bool = True
    """Whether this machine computes with the same numerics as the run."""
    tolerance: float = FLOAT32_TOLERANCE
    """Largest difference of probabilities that rounding explains."""
    accuracy: Accuracy | None = None
    """Accuracy of the run's low precision against float32, measured when the run started; None if it computed in float32."""
    reread: VolumeComparison | None = None
    """Result of reading the volume again; None if `reread` was not given."""

    @property
    def holds(self) -> bool:
        """Whether the output is the same as from one pass over the whole volume."""
        wrong = self.wrong_labels or self.wrong_probabilities or self.wrong_units or self.failures
        wrong = wrong or (self.reread is not None and not self.reread.same)
        return not (wrong or self.largest_difference > self.tolerance)

    @property
    def exit_code(self) -> int:
        """0 if the output is correct, else 3."""
        return 0 if self.holds else 3

    @property
    def allowed_quanta(self) -> int:
        """Largest difference of stored probabilities that rounding explains, in units of 1/254."""
        return max(1, math.ceil(QUANTA * self.tolerance))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        allowed = f"{self.tolerance:.2g}"
        lines = [
            f"boxes      {self.boxes} computed again with other tiles: {self.voxels} voxels compared, "
            f"{self.not_computed} not computed by the run",
            f"labels     {self.wrong_labels} wrong, {self.ties} ties decided differently",
            f"stored     {self.wrong_probabilities} probabilities outside rounding ({self.allowed_quanta}/{QUANTA})",
            f"computed   the two tilings differ by at most {self.largest_difference:.2g} (allowed: {allowed})",
        ]
        if self.units:
            lines.append(f"levels     {self.wrong_units} of {self.units} write units of coarser levels wrong")
        if self.accuracy is not None:
            lines.append(f"precision  {self.accuracy}")
        if not self.same_numerics:
            lines.append(
                "note       this machine computes with other numerics than the run, so ties may be decided differently"
            )
        lines += [f"failed     {failure}" for failure in self.failures]
        if self.reread is not None:
            lines += str(self.reread).splitlines()
        same = "PASS: labels are the same as from one pass over the whole volume"
        lines.append(f"verdict    {same if self.holds else 'FAIL: the output differs from one pass over the whole volume'}")
        return printable_lines(lines)


def verify(
    output: str | Place,
    *,
    boxes: int = 8,
    seed: int = 0,
    volume: str | Path | Address | None = None,
    model: str | Path | Sequence[str | Path] | None = None,
    predictor: str | None = None,
    device: Device = "cpu",
    reread: bool = False,
    workers: int = 0,
    stop: Stop | None = None,
    on_event: Observer | None = None,
) -> Verdict:
    """Compute random boxes of an output again, and compare them with what is stored.

    Parameters
    ----------
    output
        The output of a run.
    boxes
        Number of boxes to compute again.
    seed
        Seed of the random boxes.
    volume, model
        Where the volume and the model are, if they were moved since the run.
    predictor
        Your own predictor class, ``module:Class``, if the run used one.
    device
        Device to compute on, ``cpu`` or ``cuda``. On another one than the run's, ties may be decided differently.
    reread
        Also read the volume again, and compare it with what each block read. If it differs, no box is computed.
    workers, stop, on_event
        As for `emseg.segment`; workers only read the volume.

    Returns
    -------
    Verdict
        What was compared, and whether the output is correct.

    Raises
    ------
    InputError
        If the output, its volume or its model is missing or has changed, or no box contains a computed voxel.
    StoppedError
        If `stop` was asked for.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    source, stop = volume_of(stored, volume), stop or Stop()
    found = _reread(stored, source, workers, stop, on_event or log) if reread else None
    if found is not None and not found.same:
        return Verdict(reread=found)
    _check_same_voxels(source, recipe)
    weights = model_of(stored, model, predictor)
    loaded = load(weights, recipe.plan.model)
    if loaded.digest != recipe.model_digest:
        raise ModelError(
            f"{weights} has digest {loaded.digest[:12]}, the run's model {recipe.model_digest[:12]}: give that with --model"
        )
    installed = backend_of(weights, device)
    backend = recipe.numerics.library if installed == "openvino" else installed
    precision = recipe.numerics.precision
    if precision != "float32" and precision not in low_precisions(device):
        precision = "float32"
    network = open_predictor(loaded, backend, precision, recipe.numerics.threads, device)
    verdict = Verdict(
        same_numerics=network.numerics(recipe.plan.tile) == recipe.numerics, accuracy=recipe.accuracy, reread=found
    )
    if recipe.accuracy is not None:
        verdict.tolerance = max(FLOAT32_TOLERANCE, LOW_PRECISION_FACTOR * recipe.accuracy.largest_difference)
    for box, tile, lead in _draw_boxes(recipe.plan, boxes, seed):
        if stop.number:
            raise StoppedError(stop.number)
        verdict.boxes += 1
        try:
            _compare(verdict, stored, source, with_augmentation(network, recipe), recipe, box, tile, lead)
        except BlockError as error:
            verdict.failures.append(f"{box}: {error}")
    _compare_levels(verdict, stored, boxes, seed)
    if not verdict.voxels and not verdict.failures:
        raise OutputError(f"the run has computed no voxel of {boxes} random boxes of {output}: finish the run first")
    return verdict


def _reread(stored: Output, source: ZarrVolume, workers: int, stop: Stop, notify: Observer) -> VolumeComparison:
    """Read the volume again and compare it with what the blocks read."""
    check_limits(Placement(workers=workers))
    launch = Launch(Placement(workers=workers), stored.outside.size, 1, stored.path, notify)
    with open_executor(launch, stop) as executor:
        stages = StageRunner(stored.path, executor, None, Policy(), stop, notify)
        found = compare_all(stored, newest_run(stored.records), source.path, stages)
    if stop.number:
        raise StoppedError(stop.number)
    return found


def _compare(
    verdict: Verdict,
    stored: Output,
    source: VolumeReader,
    predictor: Predictor,
    recipe: Recipe,
    box: Box,
    tile: Triple,
    lead: Triple,
) -> None:
    """Compare one box and add the result."""
    found = {image.name: stored.read(image.name, box) for image in stored.images}
    last = found[stored.images[-1].name]  # written last: where it is computed, all are
    computed = ~np.isnan(last) if last.dtype.kind == "f" else last != NOT_COMPUTED
    computed = computed.reshape(-1, *box.shape).all(axis=0)
    declared = _declared(source, recipe, box)
    verdict.not_computed += int(np.count_nonzero(~computed))
    if not computed.any():
        return
    verdict.voxels += int(np.count_nonzero(computed))
    as_run = predict_box(source, predictor, recipe.normalisation, box, recipe.plan.tile, (0, 0, 0))
    other = predict_box(source, predictor, recipe.normalisation, box, tile, lead)
    parts = {head.name: part for head, part in parts_of(predictor.spec.heads)}
    for head in recipe.stored_heads:
        values, again = as_run[parts[head.name]], other[parts[head.name]]
        difference = np.abs(values - again) / (_size_of(again) if head.kind == "values" else 1)
        verdict.largest_difference = max(verdict.largest_difference, float(difference.max()))
    for image in stored.images:
        values, voxels = other[parts[image.head.name]], found[image.name]
        if image.content == "labels":
            _compare_labels(verdict, image, voxels, values, computed, declared, recipe)
        else:
            # the probabilities of declared blocks are not predicted
            off = _off(image, voxels, values, verdict)
            verdict.wrong_probabilities += int(np.count_nonzero(off & computed & ~declared))


def _compare_labels(
    verdict: Verdict,
    image: StoredImage,
    labels: NDArray[np.uint8],
    values: NDArray[np.float32],
    computed: NDArray[np.bool_],
    declared: NDArray[np.bool_],
    recipe: Recipe,
) -> None:
    """Compare labels with those that probabilities ``(class, z, y, x)`` give, and add the result."""
    if image.head.kind == "classes":
        expected = values.argmax(axis=0)
        if recipe.empty is not None:
            expected[declared] = recipe.empty.label
        best = np.sort(values, axis=0)
        tied = best[-1] - best[-2] <= verdict.tolerance if len(best) > 1 else np.zeros(labels.shape, bool)
    else:
        number = image.head.channels.index(image.name)
        expected = values[number] >= np.float32(image.head.thresholds[number])
        tied = np.abs(values[number] - image.head.thresholds[number]) <= verdict.tolerance
    differs = computed & (labels != expected)
    verdict.ties += int(np.count_nonzero(differs & tied))
    verdict.wrong_labels += int(np.count_nonzero(differs & ~tied))


def _off(image: StoredImage, voxels: NDArray[Any], values: NDArray[np.float32], verdict: Verdict) -> NDArray[np.bool_]:
    """Return which stored voxels ``(channel, z, y, x)`` rounding does not explain."""
    head = image.head
    if image.dtype == "float16":
        allowed = verdict.tolerance * _size_of(values) + np.spacing(np.abs(values).astype(np.float16)).astype(np.float32)
        unlike: NDArray[np.bool_] = ~(np.abs(voxels.astype(np.float32) - values) <= allowed)  # NaN is unlike any value
        return unlike
    low, high = head.scale or (0.0, 1.0)
    expected = quantise(np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1))
    far: NDArray[np.bool_] = np.abs(voxels.astype(int) - expected.astype(int)) > verdict.allowed_quanta
    return far


def _size_of(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scale on which differences of values ``(channel, z, y, x)`` are judged: the largest of each channel."""
    largest: NDArray[np.float32] = np.abs(values).max(axis=(1, 2, 3), keepdims=True)
    return np.maximum(largest, np.float32(1))


def _declared(source: VolumeReader, recipe: Recipe, box: Box) -> NDArray[np.bool_]:
    """Return which voxels ``(z, y, x)`` of a box are in blocks that were not predicted: they see only the empty value."""
    found = np.zeros(box.shape, bool)
    if recipe.empty is None:
        return found
    plan = recipe.plan
    inside = box.relative_to(plan.region.start)
    for cell in inside.cells(plan.unit):
        block = plan.block(int(np.ravel_multi_index(cell, plan.grid)))
        if read_seen(source, recipe.normalisation, plan.read_box(block)).shows_only(recipe.empty.value):
            found[block.write.intersect(box).relative_to(box.start).slices()] = True
    return found


def _compare_levels(verdict: Verdict, stored: Output, most: int, seed: int) -> None:
    """Compare random write units of each coarser level and add the result."""
    rng = np.random.default_rng(seed)
    for finer, level in itertools.pairwise(stored.levels):
        there = np.flatnonzero(level.done() & level.ready(finer.done()))
        for index in rng.permutation(there)[:most]:
            box = level.blocks.block(int(index)).write
            verdict.units += 1
            try:
                made = level.coarsen(finer, box, Stopwatch())
                with translate_errors(f"{box} of a coarser level cannot be read", "repair it with --repair"):
                    found = [array.read(box) for array in level.arrays]
                verdict.wrong_units += not all(map(np.array_equal, found, made))
            except BlockError as error:
                verdict.failures.append(str(error))


def _draw_boxes(plan: Plan, boxes: int, seed: int) -> Iterator[tuple[Box, Triple, Triple]]:
    """Yield random boxes, every second one across a corner of blocks, each with its own tile and lead."""
    rng = np.random.default_rng(seed)
    region, model = plan.region, plan.model
    for number in range(boxes):
        shape = triple(min(BOX_EDGE_VOXELS, length) for length in region.shape)
        free = [length - taken for length, taken in zip(region.shape, shape, strict=True)]
        if number % 2:
            corner = (int(rng.integers(n)) * unit for n, unit in zip(plan.grid, plan.unit, strict=True))
            start = triple(min(max(c - s // 2, 0), f) for c, s, f in zip(corner, shape, free, strict=True))
        else:
            start = triple(int(rng.integers(f + 1)) for f in free)
        wanted = triple(int(rng.integers(s // 2, s + 1)) + lattice for s, lattice in zip(shape, model.lattice, strict=True))
        tile = model.tile_for(wanted)
        if tile == plan.tile:
            tile = model.tile_for(triple(w + lattice for w, lattice in zip(wanted, model.lattice, strict=True)))
        lead = triple(int(rng.integers(step)) for step in model.step(tile))
        yield Box.of_shape(shape).shift(start).shift(region.start), tile, lead


def _check_same_voxels(source: ZarrVolume, recipe: Recipe) -> None:
    _, digest = survey(source, recipe.normalisation.scope)
    if digest != recipe.volume_digest:
        raise OutputError(
            f"the volume {source.path} has digest {digest[:12]}, the run's volume {recipe.volume_digest[:12]}: "
            "give the run's volume with --volume"
        )
