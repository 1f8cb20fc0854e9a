"""Sections of a report about the speed of the runs and the time spent in each stage."""

from __future__ import annotations

from collections.abc import Iterator

from emseg.flows.records.history import History
from emseg.pages.charts import Share, column_chart, stacked_bar
from emseg.pages.colours import STAGE_COLOURS
from emseg.pages.markup import Markup, tag
from emseg.pages.page import facts, paragraph, table
from emseg.runs.pace import format_duration
from emseg.runs.tally import bottleneck_of

TIME_UNITS = (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
"""Units of time and their lengths in seconds."""
TICK_MULTIPLES = (1, 2, 5, 10, 15, 20, 30)
"""Allowed multiples of a unit between two ticks of an axis."""
MAX_TICKS = 8
"""Largest number of ticks of an axis."""


def speed_over_time(history: History) -> Iterator[Markup]:
    """Show voxels per second over time.

    Parameters
    ----------
    history
        History of the output.

    Yields
    ------
    Markup
        Elements of the section.
    """
    speed, begins = history.speed, history.begins
    if not speed.voxels:
        yield paragraph("No block is done yet, or the run records are lost.", kind="note")
        return
    cuts = [start / speed.width for _, start in begins[1:] if start < len(speed.voxels) * speed.width]
    across = "time in all runs" if cuts else "time since the start of the run"
    yield column_chart(speed.megavoxels_per_second, "Mvoxel/s", across, list(_time_ticks(len(speed.voxels), speed.width)), cuts)
    also = "; dashed lines separate the runs" if cuts else ""
    yield paragraph(f"Each column is {format_duration(speed.width)}{also}.", kind="small")


def _time_ticks(bins: int, width: float) -> Iterator[tuple[float, str]]:
    """Return the ticks of a time axis with `bins` columns, each `width` seconds wide."""
    steps = [(name, unit, several) for name, unit in TIME_UNITS for several in TICK_MULTIPLES]
    fitting = (step for step in steps if bins * width <= MAX_TICKS * step[1] * step[2])
    name, unit, several = next(fitting, steps[-1])
    for number in range(0, int(bins * width / unit) + 1, several):
        yield number * unit / width, f"{number} {name}"


def time_by_stage(history: History) -> Iterator[Markup]:
    """Show the time that blocks spent in each stage, and the slowest blocks.

    Parameters
    ----------
    history
        History of the output.

    Yields
    ------
    Markup
        Elements of the section.
    """
    phases = history.work.phases
    if not phases.total:
        yield paragraph("No block has finished yet, or the run records are lost.", kind="note")
        return
    yield stacked_bar([Share(stage, getattr(phases, stage) / phases.total, STAGE_COLOURS[stage]) for stage in STAGE_COLOURS])
    yield paragraph("A block waits while another block on the same worker uses the predictor.", kind="small")
    memory = history.work.worker_peak_bytes
    yield facts(
        ("blocks took", f"{format_duration(phases.total)} in total; blocks of one worker overlap"),
        ("workers idle", None if history.idle is None else f"{history.idle:.0%} of the time"),
        ("limited by", bottleneck_of(phases, history.idle) or None),
        ("peak memory of a worker", f"{memory / 2**20:,.0f} MiB" if memory else None),
    )
    yield tag("h3", "Slowest blocks")
    stages = {f"{stage}, s": stage for stage in STAGE_COLOURS if stage != "wait"}
    rows = []
    for slow in history.slowest:
        block, seconds = slow.outcome, [f"{getattr(slow.outcome.seconds, stage):.2f}" for stage in stages.values()]
        rows.append((f"{block.block:,}", tag("code", slow.box), slow.run, *seconds, block.status, block.worker))
    yield table(["block", "voxels (z, y, x)", "run", *stages, "ended", "worker"], rows, numbers={"block", "run", *stages})
