"""Images of an output that can be exported, level by level, and folders that an export may replace."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import InputError, OutputError, VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.specs.heads import Head
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.atomic_write import output_path
from emseg_core.store.files.faults import translate_errors
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.instances import instance_levels, space_of, stored_instances
from emseg_core.store.outputs.level import REPAIR_HINT
from emseg_core.store.outputs.output import Output
from emseg_core.store.zarrs.arrays import Shards
from emseg_core.store.zarrs.nodes import METADATA_FILES, read_node
from emseg_core.store.zarrs.ome import Space, levels, multiscales_of

EXPORT_MARK = {"export": 1}
"""Attribute ``emseg`` of exported folders: these may be overwritten."""
PROPERTIES = "segment_properties"
"""Folder of the names of classes in a precomputed volume."""
ID_DTYPES = ("uint8", "uint16", "uint32", "uint64")
"""Dtypes for instance labels, the smallest first."""

Kind = Literal["classes", "instances", "probability"]


@dataclass(frozen=True, slots=True)
class ExportLevel:
    """An array of an output, or one channel of it; boxes are relative to its first voxel."""

    path: Place
    """Path or address of the output."""
    array: Shards
    channel: int | None
    """Channel to export; None for an array without channels."""
    factor: Triple
    """Voxels (z, y, x) of the finest level in one voxel of this one."""

    @property
    def blocks(self) -> Blocks:
        """Grid of write units. One of them is in memory at a time."""
        return Blocks(Box.of_shape(self.array.shape), self.array.unit)

    @property
    def missing(self) -> int:
        """Number of write units that do not exist."""
        with translate_errors(f"{self.path} cannot be listed", "check the disk"):
            return int((~self.array.stored()).sum())

    def read(self, box: Box) -> NDArray[Any]:
        """Read the voxels of a box.

        Parameters
        ----------
        box
            A box within the level, in voxels.

        Returns
        -------
        ndarray
            ``(z, y, x)`` in the dtype of the array.

        Raises
        ------
        BlockError
            If the voxels cannot be read.
        """
        with translate_errors(f"{box} of a level of {self.path} cannot be read", REPAIR_HINT):
            voxels = self.array.read(box)
        return voxels if self.channel is None else voxels[self.channel]


WriteBox: TypeAlias = Callable[[Box, NDArray[Any]], None]
"""Function that stores the voxels ``(z, y, x)`` of a box."""


class LevelCopy(Protocol):
    """A level and its exported copy. It is small, so that it can be sent to each worker."""

    @property
    def level(self) -> ExportLevel:
        """Level to read."""

    @property
    def dtype(self) -> str:
        """Name of the dtype of the copy."""

    @property
    def blocks(self) -> Blocks:
        """Grid of whole files of the copy: several processes may write different blocks."""

    def open_writer(self) -> WriteBox:
        """Open the copy for writing in this process.

        Returns
        -------
        callable
            Stores the voxels ``(z, y, x)`` of a box.
        """


@dataclass(frozen=True, slots=True)
class ExportImage:
    """An image of an output."""

    name: str
    kind: Kind
    dtype: str
    """Name of the smallest NumPy dtype that holds it."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0; empty unless the image is of classes."""
    volume: VolumeSpec
    """The volume that was segmented: gives rank, voxel size and units."""
    region: Box
    """Region that the image covers, in the volume's coordinates."""
    levels: tuple[ExportLevel, ...]
    """Levels, the finest first."""

    @property
    def space(self) -> Space:
        """Coordinate space of the voxels of the finest level."""
        return space_of(self.volume, self.region)

    def slices(self) -> Iterator[NDArray[Any]]:
        """Read all slices of the finest level; those of one layer of chunks are in memory together.

        Yields
        ------
        ndarray
            Slice ``(y, x)`` in the dtype of the array.

        Raises
        ------
        BlockError
            If a slice cannot be read.
        """
        finest = self.levels[0]
        depth, *plane = finest.array.shape
        for first in range(0, depth, finest.array.chunk[0]):
            stop = min(first + finest.array.chunk[0], depth)
            yield from finest.read(Box((first, 0, 0), triple((stop, *plane))))


def open_image(stored: Output, volume: VolumeSpec, instances: str | None, probability: str | None) -> ExportImage:
    """Open the classes of an output, instance labels, or the probability of a class.

    Parameters
    ----------
    stored
        The open output.
    volume
        The volume that was segmented.
    instances
        Name of the instance labels to export.
    probability
        Name of the class whose probability to export.

    Returns
    -------
    ExportImage
        The image; that of the classes if neither name is given.

    Raises
    ------
    InputError
        If both names are given, or there is no such class.
    OutputError
        If there are no such instance labels, or the output keeps no probabilities.
    """
    if instances is not None and probability is not None:
        raise InputError(
            f"instances {instances!r} and the probability of {probability!r} cannot be exported together: choose one"
        )
    if instances is not None:
        arrays, count = _instances(stored, instances)
        dtype = next(kind for kind in ID_DTYPES if count <= np.iinfo(kind).max)
        return ExportImage(instances, "instances", dtype, (), volume, stored.region, _levels(stored, arrays, None))
    if probability is None:
        stored.require_classes()
        arrays = [level.arrays[-1] for level in stored.levels]
        return ExportImage("classes", "classes", "uint8", stored.classes, volume, stored.region, _levels(stored, arrays, None))
    head, channel = _channel_of(stored, probability)
    kept = (image for image in stored.images if image.head == head and image.content == "probabilities")
    if (image := next(kept, None)) is None:
        raise OutputError(f"{stored.path} stores labels only: run again with --probabilities --overwrite")
    arrays, name = [level.arrays[stored.images.index(image)] for level in stored.levels], image.names[channel]
    return ExportImage(name, "probability", "uint8", (), volume, stored.region, _levels(stored, arrays, channel))


def _channel_of(stored: Output, name: str) -> tuple[Head, int]:
    """Return the head and the number of the channel of a name, which may be ``HEAD/NAME`` where heads share a name."""
    heads = [head for head in stored.heads if head.kind != "values"]
    found = [
        (head, number)
        for head in heads
        for number, channel in enumerate(head.channels)
        if name in (channel, f"{head.name}/{channel}")
    ]
    if len(found) > 1:
        asked = " or ".join(f"{head.name}/{head.channels[number]}" for head, number in found)
        raise InputError(f"{stored.path} has {name!r} in several heads: choose {asked}")
    if not found:
        known = ", ".join(channel for head in heads for channel in head.channels)
        raise InputError(
            f"{stored.path} has no class {name!r}: "
            + (f"choose one of {known}" if known else "it stores values alone, which are OME-Zarr images already")
        )
    return found[0]


def export_folder(path: str | Path, *, overwrite: bool) -> Path:
    """Check that a folder can be exported to.

    Parameters
    ----------
    path
        Path of the folder, which need not exist.
    overwrite
        Whether an older export may be replaced.

    Returns
    -------
    Path
        Absolute path of the folder.

    Raises
    ------
    OutputError
        If the folder exists and is not to be overwritten, or contains anything else than an export.
    """
    target = output_path(path)
    if os.path.lexists(target):
        if not overwrite:
            raise OutputError(f"{target} already exists: choose another name, or replace it with --overwrite")
        if target.is_symlink() or not _is_export(target):
            raise OutputError(f"{target} is not an export of emseg, or contains other files: choose another name, or remove it")
    return target


def _instances(stored: Output, name: str) -> tuple[list[Shards], int]:
    """Return each level of instance labels, and the number of segments."""
    arrays = [level.arrays[0] for level in instance_levels(stored, name)]
    try:
        return arrays, int((stored_instances(stored.files, name) or {})["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{stored.path / f'labels/{name}'} does not say how many segments it has: label again") from error


def _levels(stored: Output, arrays: list[Shards], channel: int | None) -> tuple[ExportLevel, ...]:
    """Return levels with their factors; instance labels may have fewer levels than the output."""
    steps = [level.step for level in stored.levels]
    factors = itertools.accumulate(steps, lambda factor, step: triple(f * s for f, s in zip(factor, step, strict=True)))
    return tuple(ExportLevel(stored.path, array, channel, factor) for array, factor in zip(arrays, factors, strict=False))


def _is_export(folder: Path) -> bool:
    """Check that a folder was exported by emseg and contains no other files."""
    try:
        if (folder / "info").is_file():
            document = json.loads((folder / "info").read_bytes())
            mark, names = document.get("emseg"), {"info", PROPERTIES, *(scale["key"] for scale in document["scales"])}
        else:
            attributes = read_node(folder).attributes
            inside = levels(multiscales_of(attributes))
            mark, names = attributes.get("emseg"), {*METADATA_FILES, ".zattrs", *(path for path, _ in inside)}
        return mark == EXPORT_MARK and {entry.name for entry in folder.iterdir()} <= names
    except (VolumeError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
