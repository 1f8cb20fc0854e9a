"""The report of one block: a few hundred bytes, and all that travels back from a worker to the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Literal, Self, get_args

from emseg_core.errors import Fault

Status = Literal["done", "failed"]
MAX_SECONDS = 1e12
"""More seconds than anything can take: 30,000 years."""
MAX_COUNT = 2**63
"""Bound of every count of blocks, voxels or bytes."""


def is_count(value: Any) -> bool:
    """Return whether a value from a document can be a number of blocks, voxels or bytes.

    Parameters
    ----------
    value
        Any JSON value.

    Returns
    -------
    bool
        False if it is not a whole number, or out of range.
    """
    return type(value) is int and 0 <= value < MAX_COUNT


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall-clock seconds that a block spent in each phase."""

    read: float = 0.0
    """Reading and mirroring."""
    wait: float = 0.0
    """Waiting for the predictor while another block uses it."""
    predict: float = 0.0
    """Running the network; on a GPU, with everything else that is done there."""
    write: float = 0.0
    """Compressing and storing."""
    stitch: float = 0.0
    """Normalising tiles, turning logits into labels, and assembling the tiles."""

    @property
    def total(self) -> float:
        """Sum over all phases."""
        return self.read + self.wait + self.predict + self.write + self.stitch

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the seconds that `dataclasses.asdict` wrote.

        Raises
        ------
        TypeError, ValueError
            If a field is unknown, not a number, negative or impossibly long.
        """
        seconds = dict(data)
        if not all(0 <= spent < MAX_SECONDS for spent in seconds.values()):
            raise ValueError("the seconds of a phase are negative or impossibly long")
        return cls(**{name: float(spent) for name, spent in seconds.items()})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one block."""

    block: int
    """Index of the block in the plan."""
    status: Status
    """Whether the block was written."""
    voxels: int
    """Number of voxels in the write box."""
    seconds: Seconds = field(default_factory=Seconds)
    """Time spent in each phase."""
    cause: str | None = None
    """One-line reason why the block failed; None if it did not."""
    worker: str = ""
    """Host and process id of the worker."""
    peak_bytes: int = 0
    """Peak memory of that process so far, in bytes."""
    fault: Fault | None = None
    """What caused the failure: block, store or device; None if it did not fail."""
    read: str = ""
    """Digest of the voxels that the block read, see `emseg_core.digest`; empty if not known."""
    sent: tuple[int, ...] = ()
    """Objects sent to an object store: for each array, 64 bits of the object's name and 64 of the digest of its bytes."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without `sent`, which only matters during the run."""
        return {name: value for name, value in asdict(self).items() if name != "sent"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the outcome that `to_json` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a field is missing or wrong.
        """
        fault = data["fault"]
        if data["status"] not in get_args(Status) or fault not in (None, *get_args(Fault)):
            raise ValueError(f"not an outcome: status {data['status']}, fault {fault}")
        block, voxels, peak = counts = tuple(data[name] for name in ("block", "voxels", "peak_bytes"))
        if not all(map(is_count, counts)):
            raise ValueError("not an outcome: block, voxels and bytes must be counts")
        if not (isinstance(data["worker"], str) and isinstance(data["cause"], str | None)):
            raise TypeError("not an outcome: worker and cause must be text")
        return cls(
            block=block,
            status=data["status"],
            voxels=voxels,
            seconds=Seconds.from_json(data["seconds"]),
            cause=data["cause"],
            worker=data["worker"],
            peak_bytes=peak,
            fault=fault,
            read=str(data.get("read", "")),  # absent from older records
        )


class Stopwatch:
    """Timer that adds up seconds by phase; a phase inside another one pauses the outer one."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block under `name`, a field of `Seconds`.

        Parameters
        ----------
        name
            Name of the phase.

        Yields
        ------
        None
            While the phase lasts.
        """
        self._lap()
        self._phases.append(name)
        try:
            yield
        finally:
            self._lap()
            self._phases.pop()

    def _lap(self) -> None:
        """Add the time since the last lap to the current phase."""
        now = perf_counter()
        if self._phases:
            self._spent[self._phases[-1]] = self._spent.get(self._phases[-1], 0.0) + now - self._since
        self._since = now

    def seconds(self) -> Seconds:
        """Return the sums so far.

        Returns
        -------
        Seconds
            Seconds of each phase.
        """
        return Seconds(**self._spent)
