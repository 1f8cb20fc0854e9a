"""Progress of an output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emseg.flows.records.completeness import Flaw
from emseg.runs.pace import format_duration
from emseg.runs.tally import MAX_SHOWN, Failure, failure_lines, quantity
from emseg_core.printable import printable_lines
from emseg_core.store.files.lease import State


@dataclass(frozen=True, slots=True)
class Status:
    """Progress of an output."""

    output: str
    blocks: int
    """Blocks of the plan."""
    done: int
    """Blocks that any run has written."""
    failed: tuple[Failure, ...]
    """Blocks that are not written because their last attempt failed."""
    run: int
    """Number of the newest lease; 0 if there is none."""
    state: State
    """State of the lease: held while its run is in progress, released, or dead if its process died."""
    holder: str
    """Process that holds the lease or held it last; empty if it is not known."""
    seen: float
    """Seconds since its last heartbeat."""
    runs: int
    """Number of runs with a record."""
    last_activity: str | None
    """Time of the newest line of any record, ISO 8601; None if there is none."""
    volume: str | None
    """Path of the volume in the newest run; None if it is not recorded."""
    model: str | None
    """Path of the model in the newest run; None if it is not recorded."""
    megavoxels_per_second: float | None
    """Speed over the last minutes of the run in progress; None without such a run, or if it is not known yet."""
    seconds_left: float | None
    """Time until all blocks are written at that speed; None without a speed."""
    outside: int = 0
    """Blocks that a mask excludes."""
    units: int = 0
    """Write units of all coarser levels."""
    built: int = 0
    """Write units of coarser levels that are written."""
    flaws: tuple[Flaw, ...] = ()
    """Anything else that is missing or damaged, as far as can be known without reading voxels."""
    job: str = ""
    """Number and state of the output's SLURM job; empty if there is none."""
    unreadable: int = 0
    """Number of lines of the records that cannot be read."""

    @property
    def left(self) -> int:
        """Number of blocks that are not written and have not failed."""
        return self.blocks - self.outside - self.done - len(self.failed)

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self.state == "held"

    @property
    def exit_code(self) -> int:
        """0 if all blocks and coarser levels are written and nothing is missing or damaged, otherwise 3."""
        return 0 if (self.done + self.outside, self.built, self.flaws) == (self.blocks, self.units, ()) else 3

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the properties ``left`` and ``running``.

        Returns
        -------
        dict
            JSON values.
        """
        return {**asdict(self), "left": self.left, "running": self.running}

    def __str__(self) -> str:
        holder = f"run {self.run}, {self.holder or 'process unknown'}, last heartbeat {self.seen:.0f} s ago"
        running = {"held": holder, "dead": f"no: {holder}, died", "released": "no"}[self.state]
        outside = f", {self.outside} outside the mask" if self.outside else ""
        lines = [
            f"output     {self.output}",
            f"blocks     {self.done} of {self.blocks} done, {len(self.failed)} failed, {self.left} left{outside}",
        ]
        if self.units:
            lines.append(f"levels     {self.built} of {quantity(self.units, 'unit')} of coarser levels done")
        lines += [f"damaged    {flaw}" for flaw in self.flaws[:MAX_SHOWN]]
        lines.append(f"running    {running}")
        if self.job:
            lines.append(f"slurm      {self.job}")
        unreadable = f"; {quantity(self.unreadable, 'line')} of their records cannot be read" if self.unreadable else ""
        lines += [
            f"runs       {self.runs}, last activity {self.last_activity or 'not recorded'}{unreadable}",
            f"volume     {self.volume or 'not recorded'}",
            f"model      {self.model or 'not recorded'}",
        ]
        if self.megavoxels_per_second is not None:
            left = "" if self.seconds_left is None else f", {format_duration(self.seconds_left)} left"
            lines.append(f"speed      {self.megavoxels_per_second:.3g} Mvoxel/s{left}")
        return printable_lines([*lines, *failure_lines("failed", self.failed)])
