"""What a block reports: a few hundred bytes, the only thing that travels back to the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Literal, Self, get_args

from emseg.errors import Fault

Status = Literal["done", "failed"]
LONGEST = 1e12
"""Seconds that nothing takes, in 30,000 years."""
MOST = 2**63
"""A number that no count of blocks, voxels or bytes reaches."""


def is_count(value: Any) -> bool:
    """Whether what stands in a document is a number of blocks, voxels or bytes."""
    return type(value) is int and 0 <= value < MOST


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a block went, in seconds of the clock."""

    read: float = 0.0
    """Reading and mirroring."""
    wait: float = 0.0
    """Waiting for another block's turn at the predictor to end."""
    predict: float = 0.0
    """The network; on a GPU with all that is done there."""
    write: float = 0.0
    stitch: float = 0.0
    """Normalising tiles, making labels of logits, and putting the tiles together."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.read + self.wait + self.predict + self.write + self.stitch

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The seconds that `dataclasses.asdict` made.

        Raises
        ------
        TypeError, ValueError
            If they are not; there is no time below 0.
        """
        seconds = dict(data)
        if not all(0 <= spent < LONGEST for spent in seconds.values()):
            raise ValueError("no seconds")
        return cls(**{name: float(spent) for name, spent in seconds.items()})


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
    read: str = ""
    """Digest of the voxels that it read, see `emseg.digest`; empty where that is not told."""
    sent: tuple[int, ...] = ()
    """What it has sent to an object store: of each array, 64 bits of the object's name there and of its bytes' digest."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, but for what was sent, which is of use while the run goes on."""
        return {name: value for name, value in asdict(self).items() if name != "sent"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The outcome that `to_json` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing or wrong.
        """
        fault = data["fault"]
        if data["status"] not in get_args(Status) or fault not in (None, *get_args(Fault)):
            raise ValueError(f"no outcome: {data['status']}, {fault}")
        block, voxels, peak = counts = tuple(data[name] for name in ("block", "voxels", "peak_bytes"))
        if not all(map(is_count, counts)):
            raise ValueError("no outcome: blocks, voxels and bytes are counted")
        if not (isinstance(data["worker"], str) and isinstance(data["cause"], str | None)):
            raise TypeError("no outcome: worker and cause are text")
        return cls(
            block=block,
            status=data["status"],
            voxels=voxels,
            seconds=Seconds.from_json(data["seconds"]),
            cause=data["cause"],
            worker=data["worker"],
            peak_bytes=peak,
            fault=fault,
            read=str(data.get("read", "")),  # older records do not have it
        )


class Stopwatch:
    """Adds up seconds by the name of the phase they were spent in; a phase within another interrupts that."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` under `name`, a field of `Seconds`."""
        self._lap()
        self._phases.append(name)
        try:
            yield
        finally:
            self._lap()
            self._phases.pop()

    def _lap(self) -> None:
        """Count the time since the last lap under the phase that it was spent in."""
        now = perf_counter()
        if self._phases:
            self._spent[self._phases[-1]] = self._spent.get(self._phases[-1], 0.0) + now - self._since
        self._since = now

    def seconds(self) -> Seconds:
        """The sums so far."""
        return Seconds(**self._spent)
