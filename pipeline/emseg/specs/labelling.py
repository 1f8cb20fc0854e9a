"""How instance labels are made of what a run has stored: everything that decides their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from emseg.box import Triple
from emseg.errors import InputError

Method = Literal["watershed", "components"]
Connectivity = Literal[6, 18, 26]
"""Neighbours of a voxel that share a face; or an edge as well; or a corner as well."""
MOST_SMOOTHING = 4
"""So that smoothed heights fit 32 bits."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """Which voxels are one segment.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    method: Method
    channel: int
    """The class whose probability is the boundary (watershed), or that consists of segments (components)."""
    threshold: float = 0.56
    """Of watershed: fragments are merged while the mean boundary probability between them is below this."""
    smoothing: int = 1
    """Of watershed: how often the boundary is smoothed by the binomial 1-2-1 along each axis before fragments grow from its
    lowest places."""
    planar: bool = False
    """Of watershed: fragments grow within z slices, as sections are too far apart."""
    connectivity: Connectivity = 6
    """Of components: neighbours of a voxel, 6, 18 or 26."""
    smallest: int = 0
    """Segments of fewer voxels are no segments: their voxels get 0."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"there is no method {self.method!r}: use one of {', '.join(get_args(Method))}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"the threshold is a mean probability above 0 and up to 1, not {self.threshold}")
        if not 0 <= self.smoothing <= MOST_SMOOTHING:
            raise InputError(f"the boundary is smoothed 0 to {MOST_SMOOTHING} times, not {self.smoothing}")
        if self.connectivity not in get_args(Connectivity):
            raise InputError(f"a voxel has 6, 18 or 26 neighbours, not {self.connectivity}")
        if self.smallest < 0:
            raise InputError(f"the smallest segment has 0 voxels or more, not {self.smallest}")

    @property
    def margin(self) -> Triple:
        """Voxels (z, y, x) around a block that decide its fragments."""
        if self.method == "components":
            return (0, 0, 0)
        reach = self.smoothing + 2  # a neighbour's neighbours, all smoothed
        return (1 if self.planar else reach, reach, reach)

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes along which fragments grow."""
        return (1, 2) if self.planar else (0, 1, 2)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` wrote."""
        return cls(**data)
