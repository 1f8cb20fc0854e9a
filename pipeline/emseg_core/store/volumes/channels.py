"""Select one volume of an array: one channel at one timepoint, that is one entry of each axis in front of (z, y, x)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from emseg_core.errors import VolumeError
from emseg_core.specs.volume import Selection

Kind = Literal["channel", "timepoint"]
"""What an axis in front of (z, y, x) counts."""

TIME_AXES = ("t", "time", "timepoint")
"""Names of a time axis; any other axis in front of (z, y, x) is a channel axis."""
MAX_LISTED = 8
"""Most channels in an error message."""


@dataclass(frozen=True, slots=True)
class LeadingEntries:
    """The selected entry of each axis in front of (z, y, x)."""

    entries: tuple[int, ...]
    """Index along each of these axes."""
    channel: int | None
    """As in `emseg_core.specs.volume.VolumeSpec`."""
    timepoint: int | None
    """As in `emseg_core.specs.volume.VolumeSpec`."""


def axis_kind(name: str) -> Kind:
    """Return the kind of an axis in front of (z, y, x), by its name.

    Parameters
    ----------
    name
        Name of the axis.

    Returns
    -------
    Kind
        What it counts.
    """
    return "timepoint" if name in TIME_AXES else "channel"


def choose_entries(names: Sequence[str], shape: Sequence[int], labels: Sequence[str], part: Selection) -> LeadingEntries:
    """Select the entry of each axis in front of (z, y, x).

    Parameters
    ----------
    names, shape
        Name and length of each of these axes; at most one of a kind is longer than 1.
    labels
        Names of the channels, ``""`` for a channel without a name; there may be fewer than channels.
    part
        Channel and timepoint to select.

    Returns
    -------
    LeadingEntries
        The selected entries.

    Raises
    ------
    VolumeError
        If the selected channel or timepoint does not exist, or there are several and none is selected; it lists them.
    """
    counts = {
        kind: max((length for name, length in zip(names, shape, strict=True) if axis_kind(name) == kind), default=0)
        for kind in get_args(Kind)
    }
    chosen = {
        "channel": _entry("channel", part.channel, counts["channel"], labels),
        "timepoint": _entry("timepoint", part.timepoint, counts["timepoint"], ()),
    }
    several = {kind: number for kind, number in chosen.items() if counts[kind] > 1}
    entries = tuple(chosen[axis_kind(name)] if length > 1 else 0 for name, length in zip(names, shape, strict=True))
    return LeadingEntries(entries, several.get("channel"), several.get("timepoint"))


def _entry(kind: Kind, given: int | str | None, count: int, labels: Sequence[str]) -> int:
    """Return the index of the chosen entry; 0 if there is only one."""
    if given is None:
        if count > 1:
            choices = _listed(count, labels)
            raise VolumeError(f"the volume has {count} {kind}s, but emseg reads one: choose it with --{kind}, {choices}")
        return 0
    if count == 0:
        raise VolumeError(f"the volume has no {kind} axis, but {kind} {given!r} was requested: omit --{kind}")
    matching = {number for number, label in enumerate(labels[:count]) if label and label == given}
    if isinstance(given, int) or re.fullmatch("[0-9]{1,9}", given):
        matching |= {int(given)} if 0 <= int(given) < count else set()
    if len(matching) != 1:
        wrong = f"{len(matching)} {kind}s named {given!r}" if matching else f"no {kind} {given!r}"
        raise VolumeError(f"the volume has {wrong}: choose one by its number with --{kind}, {_listed(count, labels)}")
    return matching.pop()


def _listed(count: int, labels: Sequence[str]) -> str:
    """List the number and the name of each channel to choose from."""
    if not any(labels[:count]):
        return f"0 to {count - 1}"
    shown = itertools.zip_longest(range(min(count, MAX_LISTED)), labels[: min(count, MAX_LISTED)], fillvalue="")
    listed = ", ".join(f"{number} ({label})" if label else f"{number}" for number, label in shown)
    return listed + (f", ... to {count - 1}" if count > MAX_LISTED else "")
