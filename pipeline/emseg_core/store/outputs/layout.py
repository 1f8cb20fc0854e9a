"""Layout of an output: the arrays and metadata documents of one OME-Zarr 0.5 group.

    OUT                   an image: the probabilities if they are kept, else the labels; without classes, the first image below
    OUT/labels/classes/0  (z, y, x) uint8, the class of each voxel, 255 = not computed
    OUT/probabilities/0   (c, z, y, x) uint8, 0 to 254 for 0 to 1, 255 = not computed
    OUT/HEAD/0            (c, z, y, x), affinities, values or independent probabilities of a network that has more than classes:
                          uint8 as above, or float16, NaN = not computed
    OUT/labels/CLASS/0    (z, y, x) uint8, 1 where a voxel belongs to this independent class, 0 elsewhere, 255 = not computed
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
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import AXES, Box, Triple
from emseg_core.grid.pyramid import level_shapes
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.specs.heads import Head, StoredImage, check_heads, classes_of, images_of
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.files import Files
from emseg_core.store.files.place import ZARR_JSON
from emseg_core.store.outputs.descriptions import DIGEST_KEY, OUTPUT_KEY, with_digest
from emseg_core.store.zarrs.arrays import array_metadata, group_metadata
from emseg_core.store.zarrs.ome import VERSION, Space, levels_at, multiscales
from emseg_core.store.zarrs.omero import image_label, omero

HEAD_KEY = "head"
"""Key under which an image describes the head that it stores, if that is more than classes."""
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

    def path(self, image: StoredImage) -> str:
        """Return the path of an image.

        Parameters
        ----------
        image
            An image of a run.

        Returns
        -------
        str
            Path relative to the output.
        """
        name = self._numbered(image.name)
        return f"labels/{name}" if image.content == "labels" else name

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
    heads: tuple[Head, ...]
    """Heads of the network that are stored; those with exclusive classes come last."""
    unit: Triple
    """Shape (z, y, x) of a write unit in voxels; a multiple of `chunk`."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""
    probabilities: bool
    """Whether to store probabilities of classes as well as labels."""
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
        check_heads(self.heads)
        if taken := sorted({OUTPUT_KEY, DIGEST_KEY} & self.attributes.keys()):
            raise ValueError(f"the attribute {taken[0]!r} is reserved")
        json.dumps(self.attributes, allow_nan=False)

    @property
    def images(self) -> tuple[StoredImage, ...]:
        """The images, in the order of writing."""
        return images_of(self.heads, self.probabilities)

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
            "classes": classes_of(self.heads),
            "probabilities": self.probabilities,
            **(
                {"heads": [head.to_json() for head in self.heads]} if any(head.kind != "classes" for head in self.heads) else {}
            ),
            **({"levels": self.steps} if self.steps else {}),
            **({} if self.outside is None else {"masked": True}),
        }
        own = with_digest({**self.attributes, OUTPUT_KEY: layout})
        shown = next((image for image in self.images if image.head.kind == "classes"), self.images[0])
        return {"ome": self._image(shown, f"{generation.path(shown)}/"), "emseg": own}

    def listed(self, generation: Generation) -> tuple[str, ...]:
        """Return the names of the images in the group ``labels``, those of the classes first.

        Parameters
        ----------
        generation
            The generation of the arrays.

        Returns
        -------
        tuple of str
            Names below ``labels``.
        """
        return label_names(self.images, generation)

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
        images = self.images[::-1]  # labels first
        for image in images:
            own = {} if image.head.kind == "classes" else {"emseg": {HEAD_KEY: image.head.to_json()}}
            yield f"{generation.path(image)}/{ZARR_JSON}", group_metadata({"ome": self._image(image, ""), **own})
        for level, three in enumerate(level_shapes(self.region.shape, self.steps)):
            shape = three[-self.volume.rank :]
            for image in images:
                count = (image.channels,) if image.channels else ()
                yield (
                    f"{generation.path(image)}/{level}/{ZARR_JSON}",
                    array_metadata(
                        shape=count + shape,
                        shard=count + shard,
                        chunk=(1, *inner) if count else inner,
                        dtype=image.dtype,
                        fill_value=fill_value(image),
                        axes=(self.space.with_channels() if count else self.space).names,
                    ),
                )

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

    def _image(self, image: StoredImage, prefix: str) -> dict[str, Any]:
        """Return OME metadata of a group that shows the arrays of an image, whose paths have this prefix."""
        space = self.space.with_channels() if image.channels else self.space
        shown: dict[str, Any] = {
            "version": VERSION,
            "multiscales": multiscales(levels_at(prefix, space, self.steps), image.name),
        }
        if image.content == "labels" and not prefix:  # two folders below the image that it belongs to
            shown["image-label"] = image_label(image.names, "../../")
        elif image.content == "probabilities" or (image.content == "values" and image.dtype == "uint8"):
            shown["omero"] = omero(image.names)
        elif image.content == "values":
            shown["omero"] = {"channels": [{"label": name} for name in image.names]}
        return shown


def label_names(images: Sequence[StoredImage], generation: Generation) -> tuple[str, ...]:
    """Return the names of label images in the group ``labels``, that of the classes first.

    Parameters
    ----------
    images
        The images of an output.
    generation
        The generation of the arrays.

    Returns
    -------
    tuple of str
        Names below ``labels``.
    """
    return tuple(generation.path(image).removeprefix("labels/") for image in images[::-1] if image.content == "labels")


def fill_value(image: StoredImage) -> float:
    """Return the value of voxels that are not computed.

    Parameters
    ----------
    image
        An image of a run.

    Returns
    -------
    float
        `NOT_COMPUTED`, or NaN in ``float16``.
    """
    return NOT_COMPUTED if image.dtype == "uint8" else math.nan
