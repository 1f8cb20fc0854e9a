"""`emseg evaluate --seams`: whether blocks or tiles left a trace in an output, without any truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, Box, triple
from emseg.grid.plan import Plan
from emseg.grid.tiles import tiles_of
from emseg.metrics.seams import Excess, Planes, excess
from emseg.printable import printable_lines
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Place
from emseg_workflows.flows.compared import check_complete
from emseg_workflows.flows.record import recipe_of


@dataclass(frozen=True, slots=True)
class Trace:
    """What the faces of blocks or tiles look like along one axis."""

    faces: str
    """Faces of what: ``blocks`` or ``tiles``."""
    axis: str
    what: str
    """What was compared: ``labels`` or ``probabilities``."""
    excess: Excess

    def __str__(self) -> str:
        found = self.excess
        unit = "change" if self.what == "labels" else "jump"
        return (
            f"{self.faces:<8}{self.axis:<3}{self.what:<15}{unit} {found.at_faces:.4g} at {found.faces} faces, "
            f"{found.elsewhere:.4g} at {found.others} others: ratio {found.ratio:.3f}, z {found.z:.1f}"
            f"{'  SEAM' if found.suspect else ''}"
        )


@dataclass(frozen=True, slots=True)
class Seams:
    """What the faces of an output look like."""

    output: str
    traces: tuple[Trace, ...]

    @property
    def found(self) -> bool:
        """Whether some faces stand out."""
        return any(trace.excess.suspect for trace in self.traces)

    @property
    def exit_code(self) -> int:
        """0 if no face stands out, else 3."""
        return 3 if self.found else 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        traces = [
            {**asdict(trace), "ratio": min(trace.excess.ratio, 1e9), "suspect": trace.excess.suspect} for trace in self.traces
        ]
        for trace in traces:
            trace["excess"]["z"] = min(trace["excess"]["z"], 1e9)  # JSON has no infinity
        return {"output": self.output, "traces": traces, "found": self.found}

    def __str__(self) -> str:
        if not self.traces:
            return "seams      nothing to compare: the output is one block and one tile"
        verdict = "SEAMS: faces stand out" if self.found else "no face stands out"
        return printable_lines([*map(str, self.traces), f"seams      {verdict}"])


def seams(output: str | Place) -> Seams:
    """Whether the faces of blocks or of tiles stand out in an output, along each axis.

    Write unit by write unit, each with the first voxels of its neighbours, so memory is that of a few of them.

    Raises
    ------
    OutputError
        If there is no output, or it is not complete.
    """
    stored = open_output(output)
    check_complete(stored)
    recipe = recipe_of(stored)
    sums = [Planes(length) for length in stored.region.shape]
    for box in _units(stored):
        _add(sums, stored, box)
    whats = ("labels", "probabilities") if stored.keeps_probabilities else ("labels",)
    traces = []
    for axis, planes in enumerate(sums):
        blocks, tiles = _faces(recipe.plan, axis)
        for (faces, at), what in itertools.product((("blocks", blocks), ("tiles", tiles)), whats):
            values = planes.changes if what == "labels" else planes.jumps
            if found := excess(values, planes.pairs, at, ~(blocks | tiles)):
                traces.append(Trace(faces, AXES[axis], what, found))
    return Seams(str(output), tuple(traces))


def _faces(plan: Plan, axis: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which planes along an axis are faces of blocks, and which are faces of tiles within blocks; each ``(plane,) bool``."""
    first, length = plan.region.start[axis], plan.region.shape[axis]
    blocks, tiles = np.zeros((2, length), bool)
    for start in range(0, length, plan.unit[axis]):
        row = [1, 1, 1]  # one voxel wide, so that its tiles are one after the other
        row[axis] = min(plan.unit[axis], length - start)
        shift = list(plan.region.start)
        shift[axis] += start
        for tile in tiles_of(Box.of_shape(triple(row)).shift(triple(shift)), plan.tile, plan.model):
            tiles[tile.target.start[axis] - first] = True
        blocks[start] = True
    return blocks[1:], (tiles & ~blocks)[1:]


def _units(output: Output) -> Iterator[Box]:
    """Each write unit of an output."""
    starts = (range(a, b, unit) for a, b, unit in zip(output.region.start, output.region.stop, output.unit, strict=True))
    for corner in itertools.product(*starts):
        yield Box.of_shape(output.unit).shift(triple(corner)).intersect(output.region)


def _add(sums: list[Planes], output: Output, box: Box) -> None:
    """Count the planes inside a write unit, and those between it and the next one along each axis."""
    part = Box(box.start, triple(stop + 1 for stop in box.stop)).intersect(output.region)
    labels = output.read_labels(part)
    probabilities = output.read_probabilities(part) if output.keeps_probabilities else None
    for axis, planes in enumerate(sums):
        own = tuple(slice(None if place == axis else length) for place, length in enumerate(box.shape))
        first = box.start[axis] - output.region.start[axis]
        planes.add(first, axis, labels[own], None if probabilities is None else probabilities[:, *own])
