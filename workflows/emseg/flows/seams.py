"""`emseg evaluate --seams`: look for seams at the faces of blocks and tiles, without ground truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import recipe_of
from emseg.flows.scoring.inputs import check_complete
from emseg_core.box import AXES, Box, triple
from emseg_core.grid.plan import Plan
from emseg_core.grid.tiles import tiles_of
from emseg_core.metrics.seams import Excess, Planes, excess
from emseg_core.printable import printable_lines
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output


@dataclass(frozen=True, slots=True)
class Trace:
    """Comparison of the faces of blocks or tiles with other planes along one axis."""

    faces: str
    """Whose faces: ``blocks`` or ``tiles``."""
    axis: str
    what: str
    """What is compared: ``labels`` or ``probabilities``."""
    excess: Excess

    def __str__(self) -> str:
        found = self.excess
        plural = "s" if found.faces != 1 else ""
        unit = "change" if self.what == "labels" else "jump"
        return (
            f"{self.faces:<8}{self.axis:<3}{self.what:<15}{unit} {found.at_faces:.4g} at {found.faces} face{plural}, "
            f"{found.elsewhere:.4g} at {found.others} other planes: ratio {found.ratio:.3f}, z {found.z:.1f}"
            f"{'  SEAM' if found.suspect else ''}"
        )


@dataclass(frozen=True, slots=True)
class Seams:
    """Comparison of the faces of blocks and tiles with other planes of an output."""

    output: str
    traces: tuple[Trace, ...]

    @property
    def found(self) -> bool:
        """Whether there are seams: faces that differ clearly from other planes."""
        return any(trace.excess.suspect for trace in self.traces)

    @property
    def exit_code(self) -> int:
        """0 if there are no seams, else 3."""
        return 3 if self.found else 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        traces = [
            {**asdict(trace), "ratio": min(trace.excess.ratio, 1e9), "suspect": trace.excess.suspect} for trace in self.traces
        ]
        for trace in traces:
            trace["excess"]["z"] = min(trace["excess"]["z"], 1e9)  # JSON has no infinity
        return {"output": self.output, "traces": traces, "found": self.found}

    def __str__(self) -> str:
        if not self.traces:
            return "seams      nothing to compare: the output is a single block and a single tile"
        verdict = "FOUND: faces stand out from other planes" if self.found else "none found"
        return printable_lines([*map(str, self.traces), f"seams      {verdict}"])


def evaluate_seams(output: str | Place) -> Seams:
    """Check along each axis whether the faces of blocks or tiles stand out in an output.

    The output is read one write unit at a time, with the first voxels of its neighbours, so only a few write units are in
    memory.

    Parameters
    ----------
    output
        The output of a run.

    Returns
    -------
    Seams
        The comparison along each axis.

    Raises
    ------
    OutputError
        If there is no output, or it is not complete.
    """
    stored = open_output(output)
    stored.require_classes()
    check_complete(stored)
    recipe = recipe_of(stored)
    sums = [Planes(length) for length in stored.region.shape]
    for box in _write_units(stored):
        _add(sums, stored, box)
    compared = ("labels", "probabilities") if stored.keeps_probabilities else ("labels",)
    traces = []
    for axis, planes in enumerate(sums):
        blocks, tiles = _faces(recipe.plan, axis)
        for (faces, at), what in itertools.product((("blocks", blocks), ("tiles", tiles)), compared):
            values = planes.changes if what == "labels" else planes.jumps
            if found := excess(values, planes.pairs, at, ~(blocks | tiles)):
                traces.append(Trace(faces, AXES[axis], what, found))
    return Seams(str(output), tuple(traces))


def _faces(plan: Plan, axis: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the planes along an axis that are faces of blocks, and of tiles within blocks; each ``(plane,) bool``."""
    first, length = plan.region.start[axis], plan.region.shape[axis]
    blocks, tiles = np.zeros((2, length), bool)
    for start in range(0, length, plan.unit[axis]):
        row = [1, 1, 1]  # one voxel wide, so that its tiles follow one another
        row[axis] = min(plan.unit[axis], length - start)
        shift = list(plan.region.start)
        shift[axis] += start
        for tile in tiles_of(Box.of_shape(triple(row)).shift(triple(shift)), plan.tile, plan.model):
            tiles[tile.target.start[axis] - first] = True
        blocks[start] = True
    return blocks[1:], (tiles & ~blocks)[1:]


def _write_units(output: Output) -> Iterator[Box]:
    """Yield each write unit of an output."""
    starts = (range(a, b, unit) for a, b, unit in zip(output.region.start, output.region.stop, output.unit, strict=True))
    for corner in itertools.product(*starts):
        yield Box.of_shape(output.unit).shift(triple(corner)).intersect(output.region)


def _add(sums: list[Planes], output: Output, box: Box) -> None:
    """Count the planes inside a write unit, and between it and the next one along each axis."""
    part = Box(box.start, triple(stop + 1 for stop in box.stop)).intersect(output.region)
    labels = output.read_labels(part)
    probabilities = output.read_probabilities(part) if output.keeps_probabilities else None
    for axis, planes in enumerate(sums):
        own = tuple(slice(None if place == axis else length) for place, length in enumerate(box.shape))
        first = box.start[axis] - output.region.start[axis]
        planes.add(first, axis, labels[own], None if probabilities is None else probabilities[:, *own])
