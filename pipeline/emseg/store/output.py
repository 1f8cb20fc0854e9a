"""Making, opening and removing an output: one OME-Zarr 0.5 group.

    OUT                   an image: the probabilities if they are kept, else the labels
    OUT/labels/classes/0  (z, y, x) uint8, the class of each voxel, 255 = not computed
    OUT/probabilities/0   (c, z, y, x) uint8, 0 to 254 for 0 to 1, 255 = not computed
    OUT/.../1, 2, ...     the coarser levels of each, see `emseg.grid.pyramid`
    OUT/emseg             leases and records of the runs, as JSON files; identity.json, which says whose the output is;
                          outside.npy, the blocks that a mask leaves out

A 2-D volume gives (y, x) and (c, y, x). The arrays start at the corner of the region that the output covers.

An output that is begun anew gets another *generation* of arrays, ``labels/classes-2/0`` and ``probabilities-2/0``: a
worker that has outlived its run may still write to the old ones, and harms nobody. The attributes of ``OUT`` say which
generation counts, and are switched last.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, Box, Triple, triple
from emseg.errors import InputError, OutputError, VolumeError
from emseg.grid.pyramid import Rule, level_shapes
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import array_metadata, create_group, describe_group, group_metadata, open_shards
from emseg.store.blame import StoreError, reason
from emseg.store.classes import image_label, omero
from emseg.store.described import (
    DIGEST,
    SELF,
    copies,
    described,
    find_file,
    holds,
    keep_copies,
    root_description,
    with_digest,
)
from emseg.store.files import Files, LocalFiles, open_files
from emseg.store.instances import list_labels, listed, remove_instances
from emseg.store.lease import Token
from emseg.store.ledger import NOT_COMPUTED, Output
from emseg.store.level import MEND, Level, above
from emseg.store.making import making
from emseg.store.nodes import Node, read_node
from emseg.store.ome import LONGEST_NAME, VERSION, Space, levels_at, multiscales
from emseg.store.place import Address, Place, local, place_of
from emseg.store.records import FOLDER
from emseg.store.remote import NODE
from emseg.store.staging import output_error, output_path

FORMAT = 2
"""Version of the layout above."""

MOST_UNITS = 2**28
"""Write units of an output at most: those of a petavoxel, of which each takes some bytes of whoever looks."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The names of the arrays of one generation, counted from 1."""

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
        """Path of the file that says which write units a mask leaves out: a bit for each, x fastest."""
        return f"emseg/{self._numbered('outside')}.npy"

    @property
    def probabilities(self) -> str:
        """Path of the image of probabilities."""
        return self._numbered("probabilities")

    def _numbered(self, name: str) -> str:
        return name if self.number == 1 else f"{name}-{self.number}"


@dataclass(frozen=True, slots=True)
class Form:
    """What an output looks like; decided before anything is written.

    Raises
    ------
    ValueError
        If the fields disagree, or `attributes` are not JSON.
    """

    volume: VolumeSpec
    """The volume that is segmented: gives rank, voxel size and units."""
    region: Box
    """What is segmented, in the volume's coordinates."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    unit: Triple
    """Shape (z, y, x) of a write unit in voxels; a multiple of `chunk`."""
    chunk: Triple
    """Shape (z, y, x) of the chunks inside a write unit, in voxels."""
    probabilities: bool
    """Whether to keep probabilities beside the labels."""
    attributes: dict[str, Any]
    """JSON values to keep, later found as `Output.attributes`; the keys ``output`` and ``sha256`` are taken."""
    steps: tuple[Triple, ...] = ()
    """Step (z, y, x) of each coarser level, in voxels of the next finer one."""
    outside: NDArray[np.bool_] | None = None
    """Write units that a mask leaves out, ``(z, y, x) bool`` on their grid."""

    def __post_init__(self) -> None:
        if not self.volume.box.contains(self.region):
            raise ValueError(f"the region {self.region} is not within the volume {self.volume.box}")
        if any(u % c for u, c in zip(self.unit, self.chunk, strict=True)):
            raise ValueError(f"the write unit {self.unit} is not a multiple of the chunk {self.chunk}")
        if not 1 <= len(self.classes) <= NOT_COMPUTED:
            raise ValueError(f"{len(self.classes)} classes do not fit uint8 beside {NOT_COMPUTED} for not computed")
        if taken := sorted({SELF, DIGEST} & self.attributes.keys()):
            raise ValueError(f"the attribute {taken[0]!r} is taken")
        json.dumps(self.attributes, allow_nan=False)

    @property
    def space(self) -> Space:
        """Where the output's voxels lie."""
        return Space(AXES, self.volume.scale, self.volume.crop(self.region), self.volume.units).last(self.volume.rank)

    def root(self, generation: Generation) -> dict[str, Any]:
        """Attributes of the root group."""
        layout = {
            "format": FORMAT,
            "generation": generation.number,
            "region": [self.region.start, self.region.stop],
            "classes": self.classes,
            "probabilities": self.probabilities,
            **({"levels": self.steps} if self.steps else {}),
            **({} if self.outside is None else {"masked": True}),
        }
        own = with_digest({**self.attributes, SELF: layout})
        return {"ome": self._image(f"{generation.probabilities}/", f"{generation.labels}/"), "emseg": own}

    def documents(self, generation: Generation) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each file of a generation's empty arrays: their metadata, and what is left out of them."""
        if self.outside is not None:
            stream = io.BytesIO()
            np.save(stream, np.packbits(self.outside))
            yield generation.outside, stream.getvalue()
        shard, inner = self.unit[-self.volume.rank :], self.chunk[-self.volume.rank :]
        yield f"{generation.labels}/{NODE}", group_metadata({"ome": self._labels()})
        if self.probabilities:
            yield f"{generation.probabilities}/{NODE}", group_metadata({"ome": self._image("", "")})
        for level, three in enumerate(level_shapes(self.region.shape, self.steps)):
            shape = three[-self.volume.rank :]
            yield f"{generation.labels}/{level}/{NODE}", _array(self.space, shape, shard, inner)
            if self.probabilities:
                count, space = (len(self.classes),), self.space.with_channels()
                yield f"{generation.probabilities}/{level}/{NODE}", _array(space, count + shape, count + shard, (1, *inner))

    def make_arrays(self, files: Files, generation: Generation) -> None:
        """Makes the empty arrays of a generation; nothing refers to them yet."""
        for name, document in self.documents(generation):
            files.put(name, document)

    def _image(self, probabilities: str, labels: str) -> dict[str, Any]:
        """OME metadata of a group that is an image of the arrays below one of these paths."""
        if not self.probabilities:
            return {"version": VERSION, "multiscales": multiscales(levels_at(labels, self.space, self.steps), "classes")}
        levels = levels_at(probabilities, self.space.with_channels(), self.steps)
        image = multiscales(levels, "probabilities")
        return {"version": VERSION, "multiscales": image, "omero": omero(self.classes, NOT_COMPUTED - 1)}

    def _labels(self) -> dict[str, Any]:
        """OME metadata of the image of classes, two levels below the image that it belongs to."""
        image = multiscales(levels_at("", self.space, self.steps), "classes")
        return {"version": VERSION, "multiscales": image, "image-label": image_label(self.classes, "../../")}


def is_taken(place: Place) -> bool:
    """Whether anything is at a place: on an object store anything but what a run keeps there before there is an output.

    Raises
    ------
    InputError
        If the store does not say.
    """
    if isinstance(place, Path):
        return place.exists() or place.is_symlink()
    try:
        return not set(open_files(place).entries()) <= {FOLDER, "labels", Generation(1).probabilities}
    except OSError as error:
        raise output_error(place, error) from error


def create_output(path: str | Place, form: Form, token: Token | None = None) -> None:
    """Makes an empty output, or nothing at all; on an object store under a lease, as nothing appears there all at once.

    Parameters
    ----------
    token
        Of that lease, if there is one.

    Raises
    ------
    OutputError
        If something is there already, or it cannot be written.
    """
    place = _place(path)
    if isinstance(place, Path):
        with making(output_path(place)) as work:
            work.mkdir()
            folder = LocalFiles(work)
            folder.put(NODE, _fill(folder, form))
        return
    files = open_files(place) if token is None else token.files
    try:
        created = files.create(NODE, _fill(files, form))
    except OSError as error:
        raise output_error(place, error) from error
    if not created:
        raise OutputError(f"{place} was made by somebody else in the meantime: choose another name")


def _fill(files: Files, form: Form) -> bytes:
    """Makes all of an empty output but the metadata that make it one."""
    first = Generation(1)
    root = form.root(first)
    create_group(files, FOLDER, copies(root["emseg"], {}))
    create_group(files, "labels", listed(first.classes, ()))
    form.make_arrays(files, first)
    return group_metadata(root)


def renew_output(place: str | Place, form: Form, token: Token | None = None) -> None:
    """Begins an output anew, under the lease of a token: new arrays first, then the attributes that lead to them.

    Old arrays are removed by `settle_output`.

    Raises
    ------
    OutputError
        If the output cannot be opened or written.
    """
    output = open_output(place, token)
    files, new = output.files, Generation(output.generation + 1)
    try:
        _remove_other_generations(files, output.generation)
        form.make_arrays(files, new)
        describe_group(files, "labels", listed(new.classes, ()))
        describe_group(files, "", form.root(new))
        remove_instances(files)
        keep_copies(files, {})
    except OSError as error:
        raise output_error(output.path, error) from error


def settle_output(place: str | Place, token: Token | None = None) -> None:
    """Removes, under the lease of a token, what runs that were killed have left: other generations and half-written files.

    Raises
    ------
    OutputError
        If the output cannot be opened or written.
    """
    output = open_output(place, token)
    files = output.files
    try:
        _remove_other_generations(files, output.generation)
        remove_instances(files, output.generation)
        list_labels(files, Generation(output.generation).classes)
        files.tidy("", deep=False)
        files.tidy("labels", deep=False)
        files.tidy(FOLDER)
    except OSError as error:
        raise output_error(output.path, error) from error


def open_output(path: str | Place, token: Token | None = None) -> Output:
    """The output at a path or an address, to read, and with the token of a run to write.

    Raises
    ------
    OutputError
        If there is none, or it is damaged, or something else is there.
    """
    place = _place(path)
    try:
        files = open_files(place) if token is None else token.files
        node = read_node(path, files=files)  # so that messages name it as it was given
        own = _described(node)
    except InputError as error:
        raise _not_an_output(place, error) from error
    try:
        if own["format"] != FORMAT:
            raise OutputError(f"{path} is an output of format {own['format']}, not {FORMAT}: use the emseg that wrote it")
        if not holds(node.attributes["emseg"]):
            raise OutputError(f"the output {path} is damaged ({NODE} is not as it was written): {MEND}")
        start, stop = own["region"]
        region, classes = Box(triple(start), triple(stop)), tuple(own["classes"])
        if not 1 <= len(classes) <= NOT_COMPUTED or not all(isinstance(n, str) and len(n) <= LONGEST_NAME for n in classes):
            raise ValueError("its classes are not a few names")
        names = Generation(int(own["generation"]))
        images: list[tuple[str, int, Rule]] = []
        if own["probabilities"]:
            images.append((names.probabilities, len(classes), "mean"))
        images.append((names.labels, 0, "mode"))
        steps = [triple(step) for step in own.get("levels", ())]
        levels: list[Level] = []
        for step, shape in zip([(1, 1, 1), *steps], level_shapes(region.shape, steps), strict=True):
            level = _open_level(files, len(levels), step, shape, images)
            if own.get("masked"):
                finer = levels[-1].outside if levels else None
                masked = node.attributes["emseg"].get("recipe", {}).get("mask")
                left_out = _left_out(files, names.outside, level.blocks.grid, masked) if finer is None else above(finer, step)
                level = replace(level, outside=left_out)
            levels.append(level)
        if len({array.unit for level in levels for array in level.arrays}) > 1:
            raise ValueError("the arrays have write units of different shapes")
    except OutputError:
        raise
    except StoreError as error:  # which says nothing about what is there
        raise OutputError(f"{path} cannot be read ({error.strerror}): {error.remedy}") from error
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise OutputError(
            f"the output {path} is damaged ({reason(error)}): {MEND}, or remove it, and compute it again"
        ) from error
    attributes = {key: value for key, value in node.attributes["emseg"].items() if key not in (SELF, DIGEST)}
    return Output(files, names.number, region, classes, attributes, tuple(levels))


def _not_an_output(place: Place, error: InputError) -> OutputError:
    """The error for a place whose root does not say that it is an output; one that has lost it can be mended."""
    with suppress(OSError, VolumeError):
        files = open_files(place)
        if described(find_file(files, NODE)) is None and root_description(files) is not None:
            return OutputError(f"the output {place} is damaged ({NODE} is not as it was written): {MEND}")
    return OutputError(str(error))


def _place(path: str | Place) -> Place:
    """Where an output is, absolute."""
    try:
        place = place_of(path)
        return place if isinstance(place, Address) else local(place)
    except VolumeError as error:
        raise OutputError(str(error)) from error


def _left_out(files: Files, name: str, grid: Triple, digest: str | None) -> NDArray[np.bool_]:
    """Write units that a mask leaves out, ``(z, y, x) bool``, with this SHA-256 if that is known."""
    with files.reading(name) as stream:
        packed = np.load(stream)
    if digest not in (None, hashlib.sha256(packed.tobytes()).hexdigest()):
        raise ValueError(f"{name} is not as it was written")
    return np.unpackbits(packed)[: math.prod(grid)].astype(bool).reshape(grid)


def is_output(path: str | Place) -> bool:
    """Whether a path leads to an output of emseg, damaged or not."""
    try:
        node = read_node(path)
    except VolumeError:
        return False
    own = node.attributes.get("emseg")
    return node.kind == "group" and isinstance(own, dict) and SELF in own


def _remove_other_generations(files: Files, kept: int) -> None:
    """Remove the arrays of all generations but one; the newest might be half made, the older ones may still be written to."""
    names = Generation(kept)
    for folder, name, keep in (("labels", "classes", names.classes), ("", "probabilities", names.probabilities)):
        for found in files.entries(folder):
            if re.fullmatch(rf"{name}(-\d+)?", found) and found != keep:
                files.remove_all(f"{folder}/{found}" if folder else found)


def _described(node: Node) -> dict[str, Any]:
    """What an output says about itself."""
    own = node.attributes.get("emseg")
    layout = own.get(SELF) if isinstance(own, dict) else None
    if node.kind != "group" or not isinstance(layout, dict) or "format" not in layout:
        raise OutputError(f"{node.path} is a Zarr {node.kind}, but not an output of emseg: name the folder that a run has made")
    return layout


def _array(space: Space, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...]) -> bytes:
    """Metadata of an array of classes or probabilities."""
    return array_metadata(shape=shape, shard=shard, chunk=chunk, dtype="uint8", fill_value=NOT_COMPUTED, axes=space.names)


def _open_level(
    files: Files,
    number: int,
    step: Triple,
    shape: Triple,
    images: Sequence[tuple[str, int, Rule]],
) -> Level:
    """A level of images, each given by its path, its channels and the rule of its coarser levels."""
    arrays = [open_shards(files, f"{image}/{number}", channels) for image, channels, _ in images]
    for shards in arrays:
        if shards.array.dtype != "uint8" or shards.array.fill_value != NOT_COMPUTED:
            raise ValueError(
                f"an array is {shards.array.dtype} with fill value {shards.array.fill_value}, not uint8 with {NOT_COMPUTED}"
            )
        if math.prod(shards.grid) > MOST_UNITS:
            raise ValueError(f"an array has {math.prod(shards.grid)} write units, more than {MOST_UNITS}")
        if shards.shape != shape:
            raise ValueError(f"an array of level {number} has shape {shards.shape}, not {shape}")
    return Level(files.place, tuple(arrays), tuple(rule for _, _, rule in images), step)
