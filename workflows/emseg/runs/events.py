"""Events of a run. Flows emit them; the console, and any other observer, receives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emseg.runs.tally import Report
from emseg_core.grid.blocks import Blocks
from emseg_core.outcome import Outcome
from emseg_core.specs.numerics import Numerics
from emseg_core.store.files.place import Place


@dataclass(frozen=True, slots=True)
class Noticed:
    """A one-line message for the user; the run continues."""

    message: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first block is about to be assigned."""

    output: Place
    blocks: Blocks
    """The run's plan, or the blocks of a later stage."""
    already_done: int
    """Number of blocks that an earlier run has written, plus those outside a mask."""
    workers: int
    """Number of worker processes; 0 if this process does the work itself."""
    dashboard: str | None
    """Link to the Dask dashboard, if any. On a cluster started by emseg it has the token, which admits anyone who knows it."""
    map: str | None = None
    """Link to the live map of blocks, if any."""
    outside: int = 0
    """Number of blocks outside a mask; they count as done."""
    stage: str = ""
    """Name of the stage; empty for segmentation."""


@dataclass(frozen=True, slots=True)
class BlocksInProgress:
    """The blocks that are being computed, reported at short intervals."""

    blocks: tuple[int, ...]
    worker: str
    """The worker that has run one of them for the longest time; empty if there are none."""
    seconds: float
    """How long that is."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The run was asked to stop: no more blocks are assigned, and those in progress may finish."""

    blocks: int
    """Number of blocks in progress."""
    seconds: float
    """Time that they have at most."""
    signal: int
    """The signal that asked for it; 0 if none did."""


@dataclass(frozen=True, slots=True)
class BlockEnded:
    """A block is done or has failed."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class BlockRetried:
    """An attempt has failed, and the block is tried again."""

    block: int
    cause: str
    delay: float
    """Seconds until then."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker process is ready for blocks."""

    worker: str
    numerics: Numerics | None
    """How it computes, if last bits depend on that; differs from the run's only where that is allowed."""
    device: str = ""
    """UUID of its GPU, if it has one."""


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker process has gone, or gets no more blocks."""

    worker: str
    cause: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """All blocks have ended, or the run was stopped."""

    report: Report


Progressed = Noticed | BlocksInProgress | StopRequested | BlockEnded | BlockRetried | WorkerJoined | WorkerLeft
"""Events that executors yield."""
Event = Progressed | RunStarted | RunEnded
Observer = Callable[[Event], None]
"""Called with each event, in the driver's thread."""
