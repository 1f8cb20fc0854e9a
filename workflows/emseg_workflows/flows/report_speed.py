"""The parts of a report that tell how fast the runs were, and where their time went."""

from __future__ import annotations

from collections.abc import Iterator

from emseg_workflows.charts import Share, columns, divided
from emseg_workflows.flows.history import History
from emseg_workflows.markup import Markup, tag
from emseg_workflows.pace import clock
from emseg_workflows.pages import Column, facts, paragraph, table
from emseg_workflows.report import bottleneck_of

COLOURS = {"read": "#2b7bba", "wait": "#c3c8ce", "predict": "#3a9d6e", "stitch": "#f5a623", "write": "#8e5ea2"}
"""Of the stages of a block, in the order in which they follow one another."""
UNITS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
"""Units of time, in seconds."""
STEPS = (1, 2, 5, 10, 15, 20, 30)
"""How many of a unit may lie between two marks of an axis."""
MARKS = 8
"""Marks of an axis, at most."""


def speed_over_time(history: History) -> Iterator[Markup]:
    """Voxels a second, from the first block on."""
    speed, begins = history.speed, history.begins
    if not speed.voxels:
        yield paragraph("No block is done yet, or the run records are lost.", kind="note")
        return
    cuts = [start / speed.width for _, start in begins[1:] if start < len(speed.voxels) * speed.width]
    across = "time in which a run went on" if cuts else "time since the run began"
    yield columns(speed.megavoxels_per_second, "Mvoxel/s", across, list(_time_marks(len(speed.voxels), speed.width)), cuts)
    also = "; dashed lines part the runs" if cuts else ""
    yield paragraph(f"A column is {clock(speed.width)}{also}.", kind="small")


def _time_marks(bins: int, width: float) -> Iterator[tuple[float, str]]:
    """Marks of an axis of time whose columns are so many seconds wide."""
    steps = [(name, unit, several) for name, unit in UNITS for several in STEPS]
    fitting = (step for step in steps if bins * width <= MARKS * step[1] * step[2])
    name, unit, several = next(fitting, steps[-1])
    for number in range(0, int(bins * width / unit) + 1, several):
        yield number * unit / width, f"{number} {name}"


def where_time_went(history: History) -> Iterator[Markup]:
    """What the blocks took their time for, and which took longest."""
    phases = history.work.phases
    if not phases.total:
        yield paragraph("No block has ended yet, or the run records are lost.", kind="note")
        return
    yield divided([Share(stage, getattr(phases, stage) / phases.total, COLOURS[stage]) for stage in COLOURS])
    yield paragraph("A block waits while another one of its worker has the predictor.", kind="small")
    memory = history.work.worker_peak_bytes
    yield facts(
        [
            ("blocks took", f"{clock(phases.total)} in all; those of one worker overlap"),
            ("predictors idle", None if history.idle is None else f"{history.idle:.0%} of the time of all workers"),
            ("bottleneck", bottleneck_of(phases, history.idle) or None),
            ("memory of a worker", f"{memory / 2**20:,.0f} MiB at most" if memory else None),
        ]
    )
    yield tag("h3", "Slowest blocks")
    stages = [stage for stage in COLOURS if stage != "wait"]
    yield table(
        [
            *(Column("block", number=True), Column("voxels (z, y, x)"), Column("run", number=True)),
            *(Column(f"{stage}, s", number=True) for stage in stages),
            *(Column("ended"), Column("worker")),
        ],
        [
            (
                *(f"{slow.outcome.block:,}", tag("code", slow.box), slow.run),
                *(f"{getattr(slow.outcome.seconds, stage):.2f}" for stage in stages),
                *(slow.outcome.status, slow.outcome.worker),
            )
            for slow in history.slowest
        ],
    )
