"""What is exported: one image of an output, level by level; and which folders an export may replace."""

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

from emseg.box import Box, Triple, triple
from emseg.errors import InputError, OutputError, VolumeError
from emseg.grid.blocks import Blocks
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards
from emseg.store.blame import blamed
from emseg.store.instances import instance_levels, space_of, stored_instances
from emseg.store.ledger import Output
from emseg.store.level import MEND
from emseg.store.nodes import METADATA, read_node
from emseg.store.ome import Space, levels, multiscales_of
from emseg.store.place import Place
from emseg.store.staging import output_path

MARK = {"export": 1}
"""Attribute ``emseg`` of the folders that are exported: what may be overwritten."""
PROPERTIES = "segment_properties"
"""Folder with the names of classes in a precomputed volume."""
IDS = ("uint8", "uint16", "uint32", "uint64")
"""Types for instance labels, the smallest first."""

Kind = Literal["classes", "instances", "probability"]


@dataclass(frozen=True, slots=True)
class ExportLevel:
    """An array of an output, or one channel of it; boxes are relative to its first voxel."""

    path: Place
    """Of the output."""
    array: Shards
    channel: int | None
    factor: Triple
    """Voxels (z, y, x) of the finest level in one of this one."""

    @property
    def blocks(self) -> Blocks:
        """Its write units: what is in memory at once."""
        return Blocks(Box.of_shape(self.array.shape), self.array.unit)

    @property
    def missing(self) -> int:
        """Number of write units that do not exist."""
        with blamed(f"{self.path} cannot be listed", "check the disk"):
            return int((~self.array.stored()).sum())

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box, ``(z, y, x)``.

        Raises
        ------
        BlockError
            If what is stored there cannot be read.
        """
        with blamed(f"{box} of a level of {self.path} cannot be read", MEND):
            voxels = self.array.read(box)
        return voxels if self.channel is None else voxels[self.channel]


Store: TypeAlias = Callable[[Box, NDArray[Any]], None]
"""What stores the voxels ``(z, y, x)`` of a box."""


class LevelCopy(Protocol):
    """A level, and what is made of it; small, travels to each worker."""

    @property
    def level(self) -> ExportLevel:
        """What is read."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the type that is stored."""
        ...

    @property
    def blocks(self) -> Blocks:
        """Boxes that are whole files of what is made, so that several processes may write."""
        ...

    def opened(self) -> Store:
        """What stores a box, in this process."""
        ...


@dataclass(frozen=True, slots=True)
class ExportImage:
    """An image of an output."""

    name: str
    kind: Kind
    dtype: str
    """Name of the smallest NumPy type that holds it."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0; none unless the image is of classes."""
    volume: VolumeSpec
    """The volume that was segmented: gives rank, voxel size and units."""
    region: Box
    """What the image covers, in the volume's coordinates."""
    levels: tuple[ExportLevel, ...]
    """The finest first."""

    @property
    def space(self) -> Space:
        """Where the voxels of the finest level lie."""
        return space_of(self.volume, self.region)

    def slices(self) -> Iterator[NDArray[Any]]:
        """All slices ``(y, x)`` of the finest level; those of one layer of chunks are in memory together."""
        finest = self.levels[0]
        depth, *plane = finest.array.shape
        for first in range(0, depth, finest.array.chunk[0]):
            stop = min(first + finest.array.chunk[0], depth)
            yield from finest.read(Box((first, 0, 0), triple((stop, *plane))))


def image_of(stored: Output, volume: VolumeSpec, instances: str | None, probability: str | None) -> ExportImage:
    """The classes of an output, or instance labels of a name, or the probability of a class.

    Raises
    ------
    InputError
        If the output has no such thing.
    """
    if instances is not None and probability is not None:
        raise InputError(f"either instances {instances!r} or the probability of {probability!r} are exported: ask for one")
    if instances is not None:
        arrays, count = _instances(stored, instances)
        dtype = next(kind for kind in IDS if count <= np.iinfo(kind).max)
        return ExportImage(instances, "instances", dtype, (), volume, stored.region, _levels(stored, arrays, None))
    if probability is None:
        arrays = [level.arrays[-1] for level in stored.levels]
        return ExportImage("classes", "classes", "uint8", stored.classes, volume, stored.region, _levels(stored, arrays, None))
    if probability not in stored.classes:
        raise InputError(f"{stored.path} has no class {probability!r}, but {', '.join(stored.classes)}: choose one of these")
    if not stored.keeps_probabilities:
        raise OutputError(f"{stored.path} keeps labels alone: run again with --probabilities --overwrite")
    arrays, channel = [level.arrays[0] for level in stored.levels], stored.classes.index(probability)
    return ExportImage(probability, "probability", "uint8", (), volume, stored.region, _levels(stored, arrays, channel))


def export_folder(path: str | Path, *, overwrite: bool) -> Path:
    """The absolute path of a folder to be exported to.

    Raises
    ------
    OutputError
        If it exists and is not to be overwritten, or is not an export and nothing else.
    """
    target = output_path(path)
    if os.path.lexists(target):
        if not overwrite:
            raise OutputError(f"{target} already exists: choose another name, or replace it with --overwrite")
        if target.is_symlink() or not _is_export(target):
            raise OutputError(f"{target} is not what emseg has exported and nothing else: choose another name, or remove it")
    return target


def _instances(stored: Output, name: str) -> tuple[list[Shards], int]:
    """Each level of instance labels, and how many segments they are."""
    arrays = [level.arrays[0] for level in instance_levels(stored, name)]
    try:
        return arrays, int((stored_instances(stored.files, name) or {})["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{stored.path / f'labels/{name}'} does not say how many segments it has: label again") from error


def _levels(stored: Output, arrays: list[Shards], channel: int | None) -> tuple[ExportLevel, ...]:
    """Levels with their factors; instance labels may have fewer than the output."""
    steps = [level.step for level in stored.levels]
    factors = itertools.accumulate(steps, lambda factor, step: triple(f * s for f, s in zip(factor, step, strict=True)))
    return tuple(ExportLevel(stored.path, array, channel, factor) for array, factor in zip(arrays, factors, strict=False))


def _is_export(folder: Path) -> bool:
    """Whether a folder was surely exported here, and nobody has put anything inside."""
    try:
        if (folder / "info").is_file():
            document = json.loads((folder / "info").read_bytes())
            mark, names = document.get("emseg"), {"info", PROPERTIES, *(scale["key"] for scale in document["scales"])}
        else:
            attributes = read_node(folder).attributes
            inside = levels(multiscales_of(attributes))
            mark, names = attributes.get("emseg"), {*METADATA, ".zattrs", *(path for path, _ in inside)}
        return mark == MARK and {entry.name for entry in folder.iterdir()} <= names
    except (VolumeError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
