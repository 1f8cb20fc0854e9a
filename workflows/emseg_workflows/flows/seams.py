"""`emseg evaluate --seams`: whether blocks or tiles left a trace in an output, without any truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emseg.box import AXES, Box, Triple, triple
from emseg.metrics.seams import Excess, Planes, excess, first_face
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg_workflows.flows.evaluate import check_complete
from emseg_workflows.flows.record import recipe_of


@dataclass(frozen=True, slots=True)
class Trace:
    """What the faces of blocks or tiles look like along one axis."""

    faces: str
    """Faces of what: ``blocks`` or ``tiles``."""
    axis: str
    what: str
    """What was compared: ``labels`` or ``probabilities``."""
    period: int
    """Distance of the faces, in voxels."""
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
        return "\n".join([*map(str, self.traces), f"seams      {verdict}"])


def seams(output: str | Path) -> Seams:
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
    step = recipe.plan.model.step(recipe.plan.tile)
    traces = []
    for name, periods, origin in (("blocks", stored.unit, stored.region.start), ("tiles", step, (0, 0, 0))):
        for (axis, planes), what in itertools.product(enumerate(sums), whats):
            first = first_face(stored.region.start[axis], origin[axis], periods[axis])
            values = planes.changes if what == "labels" else planes.jumps
            if found := excess(values, planes.pairs, first, periods[axis]):
                traces.append(Trace(name, AXES[axis], what, periods[axis], found))
    return Seams(str(output), tuple(traces))


def _units(output: Output) -> Iterator[Box]:
    """Each write unit of an output."""
    starts = (range(a, b, unit) for a, b, unit in zip(output.region.start, output.region.stop, output.unit, strict=True))
    for corner in itertools.product(*starts):
        yield Box.of_shape(output.unit).shift(triple(corner)).intersect(output.region)


def _add(sums: list[Planes], output: Output, box: Box) -> None:
    """Count the planes inside a write unit, and those between it and the next one along each axis."""
    for axis, planes in enumerate(sums):
        stop: Triple = triple(end + (place == axis) for place, end in enumerate(box.stop))
        part = Box(box.start, stop).intersect(output.region)
        probabilities = output.read_probabilities(part) if output.keeps_probabilities else None
        planes.add(box.start[axis] - output.region.start[axis], axis, output.read_labels(part), probabilities)
