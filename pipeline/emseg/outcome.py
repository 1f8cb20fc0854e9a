"""What a block reports: a few hundred bytes, the only thing that travels back to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Literal

from emseg.errors import Fault

Status = Literal["done", "failed"]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a block went, in seconds of the clock."""

    read: float = 0.0
    """Reading, normalising and mirroring."""
    wait: float = 0.0
    """Waiting for another block's turn at the predictor to end."""
    predict: float = 0.0
    """The network, and putting its tiles together."""
    write: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one block ended."""

    block: int
    """Position in the plan."""
    status: Status
    voxels: int
    """Voxels of the write box."""
    seconds: Seconds = field(default_factory=Seconds)
    cause: str | None = None
    """Why the block failed, in one line."""
    worker: str = ""
    """Host and process that did it."""
    peak_bytes: int = 0
    """Largest memory of that process so far."""
    fault: Fault | None = None
    """What was at fault where it failed."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Stopwatch:
    """Adds up seconds by the name of the phase they were spent in."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` under `name`, a field of `Seconds`."""
        start = perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + perf_counter() - start

    def seconds(self) -> Seconds:
        """The sums so far."""
        return Seconds(**self._spent)
