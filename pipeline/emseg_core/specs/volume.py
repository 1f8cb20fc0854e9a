"""Description of a volume: shape, type, and position of its voxels in space."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from emseg_core.box import Box, Triple, three, triple
from emseg_core.errors import VolumeError

DTYPES = ("uint8", "uint16", "float32")
"""Types of volumes that can be segmented."""
TRUTH_DTYPES = (*DTYPES, "int8", "int16", "int32", "int64", "uint32", "uint64")
"""Types of ground truth."""
MASK_DTYPES = (*TRUTH_DTYPES, "bool")
"""Types of masks."""

MAX_AXIS_LENGTH = 2**24
"""Largest number of voxels along an axis, 67 mm at 4 nm; larger values mean that the metadata are damaged."""
NANOMETRES = {"picometer": 1e-3, "angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}
"""Nanometres per unit of length, for the units that microscopists use."""


def check_dtype(what: object, dtype: str, dtypes: tuple[str, ...], remedy: str = "convert it first") -> None:
    """Check that voxels are of a type that is read.

    Raises
    ------
    VolumeError
        If they are of another type; the message says what is.
    """
    if dtype not in dtypes:
        raise VolumeError(f"{what} is {dtype}, but emseg reads {', '.join(dtypes)}: {remedy}")


@dataclass(frozen=True, slots=True)
class Selection:
    """Choice of one volume from an array that holds one for each channel and timepoint."""

    channel: int | str | None = None
    """Index of the channel, counted from 0, or its name; None if there is only one."""
    timepoint: int | None = None
    """Index of the timepoint, counted from 0; None if there is only one."""
    channels: tuple[int, ...] = ()
    """Several channels to read together, in this order; empty to read one."""


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """Description of an input volume. A 2-D image is a volume with one z slice.

    Raises
    ------
    VolumeError
        If an axis is empty or longer than `MAX_AXIS_LENGTH`, or the type is not supported.
    """

    shape: Triple
    """Shape (z, y, x) in voxels."""
    dtype: str
    """Name of the NumPy type, one of `MASK_DTYPES`."""
    chunk: Triple
    """Shape (z, y, x) in voxels of what is read and decompressed at once: the chunk, which lies inside a shard if sharded."""
    rank: Literal[2, 3] = 3
    """Spatial axes of the stored array: 2 for an image (y, x), 3 for (z, y, x)."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Size (z, y, x) of a voxel, in `units`."""
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Position (z, y, x) of the first voxel's centre, in `units`."""
    units: tuple[str | None, str | None, str | None] = (None, None, None)
    """Unit of length of each axis (z, y, x), spelled as in OME-Zarr (``nanometer``); None if not stated."""
    channel: int | None = None
    """Index of this channel in the stored array, counted from 0; None if there is only one."""
    timepoint: int | None = None
    """Index of this timepoint in the stored array, counted from 0; None if there is only one."""
    together: int = 1
    """Number of channels times timepoints that share a chunk; reading one of them decompresses all."""
    channels: tuple[int, ...] = ()
    """Indices of the channels that are read together, in this order; empty for a volume of one channel."""

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise VolumeError(f"the volume has shape {self.shape}, which holds no voxel: each axis needs at least one")
        if min(self.chunk) < 1:
            raise VolumeError(f"the chunks have shape {self.chunk}, but each axis needs at least one voxel: write it again")
        for name, shape in (("volume has", self.shape), ("chunks have", self.chunk)):
            if max(shape) > MAX_AXIS_LENGTH:
                raise VolumeError(
                    f"the {name} shape {reprlib.repr(shape)}, but no volume has more than {MAX_AXIS_LENGTH} voxels on an axis: "
                    "its metadata are damaged, restore them"
                )
        check_dtype("the volume", self.dtype, MASK_DTYPES)

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
        """Bytes of one voxel, of all channels together."""
        one = int("".join(filter(str.isdecimal, self.dtype)) or 8) // 8  # the name of bool has no number
        return one * max(1, len(self.channels))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk's voxels, uncompressed."""
        return math.prod(map(min, self.chunk, self.shape)) * self.itemsize

    @property
    def selection(self) -> Selection | None:
        """Choice of this volume from those in its array; None if there is only one."""
        chosen = Selection(self.channel, self.timepoint, self.channels)
        return None if chosen == Selection() else chosen

    @property
    def unit_sizes(self) -> tuple[float | None, float | None, float | None]:
        """Length (z, y, x) of each axis's unit in nanometres; None if not stated, or not one of `NANOMETRES`."""
        return three(NANOMETRES.get(unit or "") for unit in self.units)

    @property
    def proportions(self) -> tuple[float, float, float]:
        """Size (z, y, x) of a voxel in a common unit: nanometres if each axis has a known unit of length, otherwise unknown."""
        sizes = self.unit_sizes
        if None in sizes[-self.rank :]:
            return self.scale
        return three(size * (unit or 1) for size, unit in zip(self.scale, sizes, strict=True))

    def crop(self, region: Box) -> tuple[float, float, float]:
        """Return the translation (z, y, x), in `units`, of the first voxel of a region.

        Parameters
        ----------
        region
            A box within the volume, in voxels.

        Returns
        -------
        tuple of float
            The translation.
        """
        return three(t + s * o for t, s, o in zip(self.translation, self.scale, region.start, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Fields for arrays of several volumes are written only for those, so that fingerprints of older runs stay the same.
        """
        values: dict[str, Any] = asdict(self)
        unused = {"channel": None, "timepoint": None, "together": 1, "channels": ()}
        return {name: value for name, value in values.items() if name not in unused or value != unused[name]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the spec that `to_json` wrote."""
        scale, translation, units = (tuple(data[name]) for name in ("scale", "translation", "units"))
        shape, chunk = triple(data["shape"]), triple(data["chunk"])
        several = {name: data[name] for name in ("channel", "timepoint", "together") if name in data}
        several |= {"channels": tuple(data["channels"])} if "channels" in data else {}
        return cls(shape, str(data["dtype"]), chunk, data["rank"], scale, translation, units, **several)
