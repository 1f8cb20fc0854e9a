"""What a run tells those who watch it. Flows emit events; the console, and anything else, observes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emseg.grid.blocks import Blocks
from emseg.outcome import Outcome
from emseg.specs.numerics import Numerics
from emseg.store.place import Place
from emseg_workflows.report import Report


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something the user should know, in one line; the run goes on."""

    message: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first block is about to be handed out."""

    output: Place
    blocks: Blocks
    """A plan, or what a later stage works on."""
    already_done: int
    """Blocks that an earlier run has written, and those that a mask leaves out."""
    workers: int
    """Worker processes; 0 if this process does the work itself."""
    dashboard: str | None
    """Link to the Dask dashboard, if there is one; of a cluster of ours it has the token, which lets in whoever reads it."""
    map: str | None = None
    """Link to the live map of blocks, if there is one."""
    outside: int = 0
    """Blocks that a mask leaves out; they count as done."""
    stage: str = ""
    """What is done to the blocks, where that is not to segment them."""


@dataclass(frozen=True, slots=True)
class InHand:
    """Which blocks are being computed, told now and then."""

    blocks: tuple[int, ...]
    worker: str
    """Who has had one of them for the longest time; empty if there are none."""
    seconds: float
    """How long that is."""


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block is done, or failed."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class BlockRetried:
    """A block has not ended: it is tried again."""

    block: int
    cause: str
    delay: float
    """Seconds until then."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker process is ready for blocks."""

    worker: str
    numerics: Numerics | None
    """How it computes, if last bits depend on that; another than the run's only where that was allowed."""
    device: str = ""
    """UUID of its GPU, if it has one."""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker process is not there any more, or gets no block."""

    worker: str
    cause: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """No block is left to hand out."""

    report: Report


Progressed = Noticed | InHand | BlockEnded | BlockRetried | WorkerJoined | WorkerLeft
"""What executors tell."""
Event = Progressed | RunStarted | RunEnded
Observer = Callable[[Event], None]
"""Is called with each event, in the driver's thread."""
