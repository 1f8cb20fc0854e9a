"""Which of the volumes in an array is meant: one channel at one timepoint, an entry of each axis in front of (z, y, x)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from emseg.errors import VolumeError
from emseg.specs.volume import Part

Kind = Literal["channel", "timepoint"]

TIMES = ("t", "time", "timepoint")
"""Names of an axis of timepoints; any other one in front of (z, y, x) is one of channels."""
LISTED = 8
"""Most channels that an error message lists."""


@dataclass(frozen=True, slots=True)
class Front:
    """An entry of each axis in front of (z, y, x)."""

    entries: tuple[int, ...]
    channel: int | None
    timepoint: int | None
    """As in `emseg.specs.volume.VolumeSpec`."""


def kind_of(name: str) -> Kind:
    """What an axis in front of (z, y, x) counts."""
    return "timepoint" if name in TIMES else "channel"


def front_of(names: Sequence[str], shape: Sequence[int], labels: Sequence[str], part: Part) -> Front:
    """The entry of each axis in front of (z, y, x).

    Parameters
    ----------
    names, shape
        Name and length of each of these axes; no more than one of a kind is longer than 1.
    labels
        Names of the channels, as far as they have any.

    Raises
    ------
    VolumeError
        If the part is not there, or there are several and none is chosen; it lists those that there are.
    """
    counts = {
        kind: max((length for name, length in zip(names, shape, strict=True) if kind_of(name) == kind), default=0)
        for kind in get_args(Kind)
    }
    chosen = {
        "channel": _entry("channel", part.channel, counts["channel"], labels),
        "timepoint": _entry("timepoint", part.timepoint, counts["timepoint"], ()),
    }
    several = {kind: number for kind, number in chosen.items() if counts[kind] > 1}
    entries = tuple(chosen[kind_of(name)] if length > 1 else 0 for name, length in zip(names, shape, strict=True))
    return Front(entries, several.get("channel"), several.get("timepoint"))


def _entry(kind: Kind, given: int | str | None, count: int, labels: Sequence[str]) -> int:
    """The number of what is chosen; 0 if there is nothing to choose."""
    if given is None:
        if count > 1:
            there = _listed(count, labels)
            raise VolumeError(f"the volume has {count} {kind}s, but emseg reads one: choose it with --{kind}, {there}")
        return 0
    if count == 0:
        raise VolumeError(f"the volume has no axis of {kind}s, but {kind} {given!r} is asked for: leave --{kind} out")
    meant = {number for number, label in enumerate(labels[:count]) if label and label == given}
    if isinstance(given, int) or re.fullmatch("[0-9]{1,9}", given):
        meant |= {int(given)} if 0 <= int(given) < count else set()
    if len(meant) != 1:
        wrong = f"{len(meant)} {kind}s that are called {given!r}" if meant else f"no {kind} {given!r}"
        raise VolumeError(f"the volume has {wrong}: choose one by its number with --{kind}, {_listed(count, labels)}")
    return meant.pop()


def _listed(count: int, labels: Sequence[str]) -> str:
    """What there is to choose from: number and name of each."""
    if not any(labels[:count]):
        return f"0 to {count - 1}"
    shown = itertools.zip_longest(range(min(count, LISTED)), labels[: min(count, LISTED)], fillvalue="")
    return ", ".join(f"{number} ({label})" if label else f"{number}" for number, label in shown) + (
        f", ... to {count - 1}" if count > LISTED else ""
    )
