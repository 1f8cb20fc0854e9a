"""`emseg verify`: check on a user's own output that tiling left no trace.

Random boxes of the output are computed again with the numerics of the run, once with the run's tiles and once with tiles of
another shape that start elsewhere on the lattice. Half of the boxes lie across corners of blocks, where a seam would be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
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
    """Labels that differ where the two best classes are within `tolerance`, so that rounding decides."""
    wrong_labels: int = 0
    """Labels that differ elsewhere."""
    wrong_probabilities: int = 0
    """Stored probabilities that differ from the computed ones by more than rounding."""
    largest_difference: float = 0.0
    """Largest difference between a probability computed with the run's tiles and with the other tiles."""
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
    model: str | Path | None = None,
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
    labels = stored.read_labels(box)
    computed = labels != NOT_COMPUTED
    declared = _declared(source, recipe, box)
    verdict.not_computed += int(np.count_nonzero(~computed))
    if not computed.any():
        return
    verdict.voxels += int(np.count_nonzero(computed))
    as_run = predict_box(source, predictor, recipe.normalisation, box, recipe.plan.tile, (0, 0, 0))
    other = predict_box(source, predictor, recipe.normalisation, box, tile, lead)
    verdict.largest_difference = max(verdict.largest_difference, float(np.abs(as_run - other).max()))

    expected = other.argmax(axis=0)
    if recipe.empty is not None:
        expected[declared] = recipe.empty.label
    differs = computed & (labels != expected)
    computed &= ~declared  # their probabilities are not predicted either
    best = np.sort(other, axis=0)
    tied = best[-1] - best[-2] <= verdict.tolerance if len(best) > 1 else np.zeros(box.shape, bool)
    verdict.ties += int(np.count_nonzero(differs & tied))
    verdict.wrong_labels += int(np.count_nonzero(differs & ~tied))
    if recipe.probabilities:
        off = np.abs(stored.read_probabilities(box).astype(int) - quantise(other).astype(int)) > verdict.allowed_quanta
        verdict.wrong_probabilities += int(np.count_nonzero(off & computed))


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
