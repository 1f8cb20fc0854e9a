"""What a volume is: shape, type, and where its voxels lie in space."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from emseg.box import Box, Triple, triple
from emseg.errors import VolumeError

DTYPES = ("uint8", "uint16", "float32")
"""Types that a volume may have that is to be segmented."""
TRUTH_DTYPES = (*DTYPES, "int8", "int16", "int32", "int64", "uint32", "uint64")
"""Types that truth may have."""
MASK_DTYPES = (*TRUTH_DTYPES, "bool")
"""Types that a mask may have."""

LONGEST_AXIS = 2**24
"""Most voxels along an axis, 67 mm at 4 nm: metadata that say more are damaged."""
NANOMETRES = {"picometer": 1e-3, "angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}
"""Units of length in which microscopists count, in nanometres."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which of the volumes is meant that an array holds, one for each channel and timepoint."""

    channel: int | str | None = None
    """Number of the channel, counted from 0, or its name; None where there is no more than one."""
    timepoint: int | None = None
    """Counted from 0; None where there is no more than one."""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """The facts about an input volume; a 2-D image is a volume of one z slice.

    Raises
    ------
    VolumeError
        If an axis is empty or longer than `LONGEST_AXIS`, or the type is not one that emseg reads.
    """

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy type, one of `MASK_DTYPES`."""
    chunk: Triple
    """Shape (z, y, x) in voxels of what is read and decompressed at once: the chunk, inside a shard if sharded."""
    rank: Literal[2, 3] = 3
    """Axes of the stored array: 2 for an image (y, x), 3 for (z, y, x)."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Size (z, y, x) of a voxel, in `units`."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Place (z, y, x) of the first voxel's centre, in `units`."""
    units: tuple[str | None, str | None, str | None] = (None, None, None)
    """Unit of length of each axis (z, y, x), spelt as in OME-Zarr (``nanometer``); None where not stated."""
    channel: int | None = None
    """Which channel of the stored array this is, counted from 0; None if that has no more than one."""
    timepoint: int | None = None
    """Which timepoint of the stored array this is, counted from 0; None if that has no more than one."""
    together: int = 1
    """Channels, by timepoints, that lie in one chunk: to read one of them, all are decompressed."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise VolumeError(f"the volume has shape {self.shape}, which holds no voxel: each axis needs at least one")
        if min(self.chunk) < 1:
            raise VolumeError(f"the chunks have shape {self.chunk}, but each axis needs at least one voxel: write it again")
        for name, shape in (("volume has", self.shape), ("chunks have", self.chunk)):
            if max(shape) > LONGEST_AXIS:
                raise VolumeError(
                    f"the {name} shape {reprlib.repr(shape)}, but no volume has more than {LONGEST_AXIS} voxels on an axis: "
                    "its metadata are damaged, restore them"
                )
        if self.dtype not in MASK_DTYPES:
            raise VolumeError(f"the volume is {self.dtype}, but emseg reads {', '.join(MASK_DTYPES)}: convert it first")

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box.of_shape(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.shape) * self.itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of one voxel."""
        return int("".join(filter(str.isdecimal, self.dtype)) or 8) // 8  # bool has no number in its name

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk's voxels, uncompressed."""
        return math.prod(map(min, self.chunk, self.shape)) * self.itemsize

    @property
    def part(self) -> Part | None:
        """What chooses this volume from those in its array; None if there is nothing to choose."""
        return None if self.channel is None and self.timepoint is None else Part(self.channel, self.timepoint)

    @property
    def unit_sizes(self) -> tuple[float | None, float | None, float | None]:
        """Length (z, y, x) of each axis's unit, in nanometres; None where there is none, or one nobody uses here."""
        z, y, x = (NANOMETRES.get(unit or "") for unit in self.units)
        return (z, y, x)

    @property
    def proportions(self) -> tuple[float, float, float]:
        """Size (z, y, x) of a voxel in one unit, which is nanometres if each axis has a unit of length, else not known."""
        sizes = self.unit_sizes
        z, y, x = (
            size * (unit or 1) if None not in sizes[-self.rank :] else size
            for size, unit in zip(self.scale, sizes, strict=True)
        )
        return (z, y, x)

    def crop(self, region: Box) -> tuple[float, float, float]:
        """Translation (z, y, x), in `units`, of the first voxel of a region."""
        z, y, x = (t + s * o for t, s, o in zip(self.translation, self.scale, region.start, strict=True))
        return (z, y, x)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; those of an array of several volumes only for such: older fingerprints hold."""
        told: dict[str, Any] = asdict(self)
        unused = {"channel": None, "timepoint": None, "together": 1}
        return {name: value for name, value in told.items() if name not in unused or value != unused[name]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The spec that `to_json` wrote."""
        scale, translation, units = (tuple(data[name]) for name in ("scale", "translation", "units"))
        shape, chunk = triple(data["shape"]), triple(data["chunk"])
        several = {name: data[name] for name in ("channel", "timepoint", "together") if name in data}
        return cls(shape, str(data["dtype"]), chunk, data["rank"], scale, translation, units, **several)
