"""Parameters of instance labelling: everything that decides the bytes of instance labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from emseg_core.box import Triple
from emseg_core.errors import InputError

Method = Literal["watershed", "components"]
"""How segments are found: by watershed and agglomeration, or as connected components."""
Connectivity = Literal[6, 18, 26]
"""Neighbours of a voxel: those that share a face (6), also an edge (18), or also a corner (26)."""
MAX_SMOOTHING = 4
"""Largest number of smoothing passes, so that smoothed heights fit 32 bits."""


@dataclass(frozen=True, slots=True)
class Labelling:
    """Method and parameters of instance labelling.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    method: Method
    """How segments are found."""
    channel: int
    """Class whose probability is the boundary (watershed), or whose components are the segments (components)."""
    threshold: float = 0.56
    """Watershed only: fragments are merged while the mean boundary probability between them is below this."""
    smoothing: int = 1
    """Watershed only: how often the boundary is smoothed by the binomial 1-2-1 filter along each axis before the watershed."""
    planar: bool = False
    """Watershed only: whether fragments are confined to z slices, because sections are too far apart."""
    connectivity: Connectivity = 6
    """Components only: neighbours of a voxel, 6, 18 or 26."""
    smallest: int = 0
    """Segments with fewer voxels are removed: their voxels get the id 0."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"the method {self.method!r} is unknown: use one of {', '.join(get_args(Method))}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"the threshold is {self.threshold}, but must be a mean probability above 0 and at most 1")
        if not 0 <= self.smoothing <= MAX_SMOOTHING:
            raise InputError(f"the smoothing is {self.smoothing}, but must be 0 to {MAX_SMOOTHING} passes")
        if self.connectivity not in get_args(Connectivity):
            raise InputError(f"the connectivity is {self.connectivity}, but must be 6, 18 or 26 neighbours")
        if self.smallest < 0:
            raise InputError(f"the smallest segment is {self.smallest} voxels, but must be 0 or more")

    @property
    def margin(self) -> Triple:
        """Voxels (z, y, x) around a block that its fragments depend on."""
        if self.method == "components":
            return (0, 0, 0)
        reach = self.smoothing + 2  # two voxels for neighbours of neighbours, and one per smoothing pass
        return (1 if self.planar else reach, reach, reach)

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes along which fragments grow."""
        return (1, 2) if self.planar else (0, 1, 2)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the labelling that `to_json` wrote."""
        return cls(**data)
