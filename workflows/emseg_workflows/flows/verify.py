"""`emseg verify`: the proof, on a user's own output, that tiling left no trace.

Boxes of the output are computed again in the run's own numerics, once with the run's tiles and once with tiles of
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

from emseg.block import predict_box, read_seen
from emseg.box import Box, Triple, triple
from emseg.errors import BlockError, ModelError, OutputError
from emseg.grid.plan import Plan
from emseg.grid.stitch import NOT_COMPUTED, QUANTA, quantise
from emseg.model.backend import backend_of, low_precisions, open_predictor
from emseg.model.device import Device
from emseg.model.source import load
from emseg.normalise import survey
from emseg.outcome import Stopwatch
from emseg.ports import Predictor, VolumeReader
from emseg.printable import printable_lines
from emseg.recipe import Recipe
from emseg.specs.numerics import Accuracy
from emseg.store.blame import blamed
from emseg.store.lease import newest_run
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Address, Place
from emseg.store.volume import ZarrVolume
from emseg_workflows.bench import augmented
from emseg_workflows.events import Event, Observer
from emseg_workflows.flows.record import model_of, recipe_of, volume_of
from emseg_workflows.flows.same_volume import Reread, compare_all
from emseg_workflows.launch import Launch, open_executor
from emseg_workflows.placement import Placement
from emseg_workflows.stop import Stop, StoppedError

TOLERANCE = 1e-4
"""Largest difference of two float32 computations of one probability."""
TWICE = 2
"""Two computations in a low precision differ by no more than this many times what one of them differs from float32 by."""
EDGE = 48
"""Length of a box, in voxels."""


@dataclass(slots=True)
class Verdict:
    """What the comparison found; all counts are voxels, or stored probabilities."""

    boxes: int = 0
    voxels: int = 0
    not_computed: int = 0
    """Voxels that the run has not written; they are not compared."""
    ties: int = 0
    """Labels that differ where the two best classes are within `tolerance`: rounding decides there."""
    wrong_labels: int = 0
    """Labels that differ elsewhere."""
    wrong_probabilities: int = 0
    """Stored probabilities further from the computed ones than a quantum and the rounding."""
    largest_difference: float = 0.0
    """Between a probability computed with the run's tiles and with the others."""
    units: int = 0
    """Write units of coarser levels that were made again of what they stand for."""
    wrong_units: int = 0
    """Of these, how many hold anything else."""
    failures: list[str] = field(default_factory=list)
    """Boxes that could not be read or computed, with the cause."""
    same_numerics: bool = True
    """Whether this machine computes as the run did."""
    tolerance: float = TOLERANCE
    """Largest difference that rounding explains."""
    accuracy: Accuracy | None = None
    """How far the run's low precision is from float32, as was measured when it began; None if it computed in that."""
    reread: Reread | None = None
    """What reading the volume again has shown; None if that was not asked for."""

    @property
    def holds(self) -> bool:
        """Whether the output is what one pass over the whole volume would have given."""
        wrong = self.wrong_labels or self.wrong_probabilities or self.wrong_units or self.failures
        wrong = wrong or (self.reread is not None and not self.reread.same)
        return not (wrong or self.largest_difference > self.tolerance)

    @property
    def exit_code(self) -> int:
        """0 if the proof holds, else 3."""
        return 0 if self.holds else 3

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        allowed = f"{self.tolerance:.2g}"
        lines = [
            f"boxes      {self.boxes} computed again with other tiles, {self.voxels} voxels compared, "
            f"{self.not_computed} not computed by the run",
            f"labels     {self.wrong_labels} wrong; {self.ties} differ where the two best classes are within {allowed}",
            f"stored     {self.wrong_probabilities} probabilities off by more than a quantum and the rounding",
            f"computed   largest difference between the two tilings {self.largest_difference:.2g}, allowed {allowed}",
        ]
        if self.units:
            lines.append(f"levels     {self.wrong_units} of {self.units} units of coarser levels wrong")
        if self.accuracy is not None:
            lines.append(f"precision  {self.accuracy}")
        if not self.same_numerics:
            lines.append("note       this machine computes with other numerics than the run did: ties may differ")
        lines += [f"failed     {failure}" for failure in self.failures]
        if self.reread is not None:
            lines += str(self.reread).splitlines()
        lines.append("verdict    tiled = untiled" if self.holds else "verdict    NOT what one pass would give")
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
    """The verdict on an output: random boxes of it, computed again, against what is stored.

    Parameters
    ----------
    output
        What a run has written.
    boxes
        How many boxes to compute again.
    seed
        What they are drawn from.
    volume, model
        Where the volume and the model are, if not where the run found them.
    predictor
        The class of your own that the run predicted with, ``module:Class``, if it did.
    device
        What to compute them on, ``cpu`` or ``cuda``; on another one than the run's, ties may differ.
    reread
        Also read the volume again, and compare what each block has read of it. Where that differs, no box is computed.
    workers, stop, on_event
        Who reads it, and who is told, as for `emseg_workflows.segment`.

    Raises
    ------
    InputError
        If the output, its volume or its model is not there or not the same, or no box holds a computed voxel.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    source, stop = volume_of(stored, volume), stop or Stop()
    found = _reread(stored, source, workers, stop, on_event or _ignore) if reread else None
    if found is not None and not found.same:
        return Verdict(reread=found)
    _check_same_voxels(source, recipe)
    weights = model_of(stored, model, predictor)
    loaded = load(weights, recipe.plan.model)
    if loaded.digest != recipe.model_digest:
        raise ModelError(f"{weights} has digest {loaded.digest[:12]}, the run's model {recipe.model_digest[:12]}: give --model")
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
        verdict.tolerance = max(TOLERANCE, TWICE * recipe.accuracy.largest_difference)
    for box, tile, lead in _draw(recipe.plan, boxes, seed):
        if stop.number:
            raise StoppedError(stop.number)
        verdict.boxes += 1
        try:
            _compare(verdict, stored, source, augmented(network, recipe), recipe, box, tile, lead)
        except BlockError as error:
            verdict.failures.append(f"{box}: {error}")
    _compare_levels(verdict, stored, boxes, seed)
    if not verdict.voxels and not verdict.failures:
        raise OutputError(f"none of {boxes} boxes of {output} was computed by its run: finish the run first")
    return verdict


def _reread(stored: Output, source: ZarrVolume, workers: int, stop: Stop, notify: Observer) -> Reread:
    """What reading the volume again shows."""
    launch = Launch(Placement(workers=workers), stored.outside.size, 1, stored.path, notify)
    with open_executor(launch, stop) as executor:
        found = compare_all(stored, newest_run(stored.records), source.path, executor, stop, notify)
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
    """Add what one box shows."""
    labels = stored.read_labels(box)
    computed = labels != NOT_COMPUTED
    declared = _declared(source, recipe, box)
    verdict.not_computed += int(np.count_nonzero(~computed))
    if not computed.any():
        return
    verdict.voxels += int(np.count_nonzero(computed))
    theirs = predict_box(source, predictor, recipe.normalisation, box, recipe.plan.tile, (0, 0, 0))
    ours = predict_box(source, predictor, recipe.normalisation, box, tile, lead)
    verdict.largest_difference = max(verdict.largest_difference, float(np.abs(theirs - ours).max()))

    expected = ours.argmax(axis=0)
    if recipe.empty is not None:
        expected[declared] = recipe.empty.label
    differs = computed & (labels != expected)
    computed &= ~declared  # whose probabilities are declared as well
    best = np.sort(ours, axis=0)
    tied = best[-1] - best[-2] <= verdict.tolerance if len(best) > 1 else np.zeros(box.shape, bool)
    verdict.ties += int(np.count_nonzero(differs & tied))
    verdict.wrong_labels += int(np.count_nonzero(differs & ~tied))
    if recipe.probabilities:
        allowed = max(1, math.ceil(QUANTA * verdict.tolerance))
        off = np.abs(stored.read_probabilities(box).astype(int) - quantise(ours).astype(int)) > allowed
        verdict.wrong_probabilities += int(np.count_nonzero(off & computed))


def _declared(source: VolumeReader, recipe: Recipe, box: Box) -> NDArray[np.bool_]:
    """Which voxels of a box ``(z, y, x)`` belong to blocks that were not predicted, as they see a single value."""
    found = np.zeros(box.shape, bool)
    if recipe.empty is None:
        return found
    plan = recipe.plan
    inside = box.relative_to(plan.region.start)
    places = (range(a // u, -(-b // u)) for a, b, u in zip(inside.start, inside.stop, plan.unit, strict=True))
    for place in itertools.product(*places):
        block = plan.block(int(np.ravel_multi_index(place, plan.grid)))
        if read_seen(source, recipe.normalisation, plan.read_box(block)).shows_only(recipe.empty.value):
            found[block.write.intersect(box).relative_to(box.start).slices()] = True
    return found


def _compare_levels(verdict: Verdict, stored: Output, most: int, seed: int) -> None:
    """Add what random write units of each coarser level show."""
    rng = np.random.default_rng(seed)
    for finer, level in itertools.pairwise(stored.levels):
        there = np.flatnonzero(level.done() & level.ready(finer.done()))
        for index in rng.permutation(there)[:most]:
            box = level.blocks.block(int(index)).write
            verdict.units += 1
            try:
                made = level.made(finer, box, Stopwatch())
                with blamed(f"{box} of a coarser level cannot be read", "mend it with --repair"):
                    found = [array.read(box) for array in level.arrays]
                verdict.wrong_units += not all(map(np.array_equal, found, made))
            except BlockError as error:
                verdict.failures.append(str(error))


def _draw(plan: Plan, boxes: int, seed: int) -> Iterator[tuple[Box, Triple, Triple]]:
    """Boxes inside the region, every second one across a corner of blocks, each with another tile and lead."""
    rng = np.random.default_rng(seed)
    region, model = plan.region, plan.model
    for number in range(boxes):
        shape = triple(min(EDGE, length) for length in region.shape)
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
            f"the volume {source.path} is not the one that the run read (digest {digest[:12]}, not "
            f"{recipe.volume_digest[:12]}): give the right one with --volume"
        )


def _ignore(event: Event) -> None:
    """Nobody watches."""
