"""Layout of an output: the arrays and metadata documents of one OME-Zarr 0.5 group.

    OUT                   an image: the probabilities if they are kept, else the labels
    OUT/labels/classes/0  (z, y, x) uint8, the class of each voxel, 255 = not computed
    OUT/probabilities/0   (c, z, y, x) uint8, 0 to 254 for 0 to 1, 255 = not computed
    OUT/.../1, 2, ...     the coarser levels of each, see `emseg_core.grid.pyramid`
    OUT/emseg             leases and records of runs, as JSON files; identity.json, which names the output's owner;
                          outside.npy, the blocks that a mask excludes

A 2-D volume gives (y, x) and (c, y, x). The arrays start at the corner of the region that the output covers.

An output that is started over gets another *generation* of arrays, ``labels/classes-2/0`` and ``probabilities-2/0``. A worker
that outlives its run may still write to the old arrays, and does no harm there. The attributes of ``OUT`` name the current
generation, and are changed last.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, Triple
from emseg_core.grid.pyramid import level_shapes
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.files import Files
from emseg_core.store.files.place import ZARR_JSON
from emseg_core.store.outputs.descriptions import DIGEST_KEY, OUTPUT_KEY, with_digest
from emseg_core.store.zarrs.arrays import array_metadata, group_metadata
from emseg_core.store.zarrs.ome import VERSION, Space, levels_at, multiscales
from emseg_core.store.zarrs.omero import image_label, omero

FORMAT = 2
"""Version of this layout."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Names of the arrays of one generation, counted from 1."""

    number: int

    @property
    def classes(self) -> str:
        """Name of the image below ``labels`` that holds the classes."""
        return self._numbered("classes")

    @property
    def labels(self) -> str:
        """Path of the image of classes."""
        return f"labels/{self.classes}"

    @property
    def outside(self) -> str:
        """Path of the file that lists the write units that a mask excludes: a bit for each, x fastest."""
        return f"emseg/{self._numbered('outside')}.npy"

    @property
    def probabilities(self) -> str:
        """Path of the image of probabilities."""
        return self._numbered("probabilities")

    def _numbered(self, name: str) -> str:
        return name if self.number == 1 else f"{name}-{self.number}"


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """Everything that determines the metadata of an output; complete before anything is written.

    Raises
    ------
    ValueError
        If the fields disagree, or `attributes` cannot be stored as JSON.
    """

    volume: VolumeSpec
    """The volume that is segmented: gives rank, voxel size and units."""
    region: Box
    """Region that is segmented, in the volume's coordinates."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    unit: Triple
    """Shape (z, y, x) of a write unit in voxels; a multiple of `chunk`."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""
    probabilities: bool
    """Whether to store probabilities as well as labels."""
    attributes: dict[str, Any]
    """JSON values to store, later found as `Output.attributes`; the keys ``output`` and ``sha256`` are reserved."""
    steps: tuple[Triple, ...] = ()
    """Step (z, y, x) of each coarser level, in voxels of the next finer one."""
    outside: NDArray[np.bool_] | None = None
    """Write units that a mask excludes, ``(z, y, x) bool`` on their grid."""

    def __post_init__(self) -> None:
        if not self.volume.box.contains(self.region):
            raise ValueError(f"the region {self.region} is not within the volume {self.volume.box}")
        if any(u % c for u, c in zip(self.unit, self.chunk, strict=True)):
            raise ValueError(f"the write unit {self.unit} is not a multiple of the chunk {self.chunk}")
        if not 1 <= len(self.classes) <= NOT_COMPUTED:
            raise ValueError(f"{len(self.classes)} classes do not fit into uint8, where {NOT_COMPUTED} means not computed")
        if taken := sorted({OUTPUT_KEY, DIGEST_KEY} & self.attributes.keys()):
            raise ValueError(f"the attribute {taken[0]!r} is reserved")
        json.dumps(self.attributes, allow_nan=False)

    @property
    def space(self) -> Space:
        """Coordinate space of the output's voxels."""
        return Space(AXES, self.volume.scale, self.volume.crop(self.region), self.volume.units).last(self.volume.rank)

    def root(self, generation: Generation) -> dict[str, Any]:
        """Return the attributes of the root group.

        Parameters
        ----------
        generation
            The generation whose arrays the attributes name.

        Returns
        -------
        dict
            Attributes ``ome`` and ``emseg``, as JSON values.
        """
        layout = {
            "format": FORMAT,
            "generation": generation.number,
            "region": [self.region.start, self.region.stop],
            "classes": self.classes,
            "probabilities": self.probabilities,
            **({"levels": self.steps} if self.steps else {}),
            **({} if self.outside is None else {"masked": True}),
        }
        own = with_digest({**self.attributes, OUTPUT_KEY: layout})
        return {"ome": self._image(f"{generation.probabilities}/", f"{generation.labels}/"), "emseg": own}

    def documents(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        """Yield the files of a generation's empty arrays: their metadata, and the write units that a mask excludes.

        Parameters
        ----------
        generation
            The generation of the arrays.

        Yields
        ------
        tuple of str and bytes
            Path relative to the output, and content.
        """
        if self.outside is not None:
            stream = io.BytesIO()
            np.save(stream, np.packbits(self.outside))
            yield generation.outside, stream.getvalue()
        shard, inner = self.unit[-self.volume.rank :], self.chunk[-self.volume.rank :]
        yield f"{generation.labels}/{ZARR_JSON}", group_metadata({"ome": self._labels()})
        if self.probabilities:
            yield f"{generation.probabilities}/{ZARR_JSON}", group_metadata({"ome": self._image("", "")})
        for level, three in enumerate(level_shapes(self.region.shape, self.steps)):
            shape = three[-self.volume.rank :]
            yield f"{generation.labels}/{level}/{ZARR_JSON}", _array(self.space, shape, shard, inner)
            if self.probabilities:
                count, space = (len(self.classes),), self.space.with_channels()
                document = _array(space, count + shape, count + shard, (1, *inner))
                yield f"{generation.probabilities}/{level}/{ZARR_JSON}", document

    def create_arrays(self, files: Files, generation: Generation) -> None:
        """Create the empty arrays of a generation; nothing refers to them yet.

        Parameters
        ----------
        files
            Files of the output.
        generation
            The generation of the arrays.

        Raises
        ------
        OSError
            If the store fails.
        """
        for name, document in self.documents(generation):
            files.put(name, document)

    def _image(self, probabilities: str, labels: str) -> dict[str, Any]:
        """Return OME metadata of a group that shows the arrays below one of these paths."""
        if not self.probabilities:
            return {"version": VERSION, "multiscales": multiscales(levels_at(labels, self.space, self.steps), "classes")}
        levels = levels_at(probabilities, self.space.with_channels(), self.steps)
        image = multiscales(levels, "probabilities")
        return {"version": VERSION, "multiscales": image, "omero": omero(self.classes)}

    def _labels(self) -> dict[str, Any]:
        """Return OME metadata of the image of classes, two folders below the image that it belongs to."""
        image = multiscales(levels_at("", self.space, self.steps), "classes")
        return {"version": VERSION, "multiscales": image, "image-label": image_label(self.classes, "../../")}


def _array(space: Space, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...]) -> bytes:
    """Return the metadata of an array of classes or probabilities."""
    return array_metadata(shape=shape, shard=shard, chunk=chunk, dtype="uint8", fill_value=NOT_COMPUTED, axes=space.names)
