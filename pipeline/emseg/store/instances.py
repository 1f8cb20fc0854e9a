"""Instance labels in an output: ``OUT/labels/NAME``, beside the classes, and the table of segments ``OUT/emseg/NAME.csv``.

They appear when they are complete, by renaming, and are gone when the output is begun anew. Each of their shards is stored,
so that one which is missing is never taken for background.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES, Box, Triple
from emseg.errors import OutputError
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, describe_group, open_shards
from emseg.store.blame import StoreError, reason
from emseg.store.described import copied_descriptions, described, find_file, keep_copies
from emseg.store.files import Files
from emseg.store.ledger import Output
from emseg.store.level import MEND, Level
from emseg.store.ome import VERSION, Space, levels, levels_at, multiscales, multiscales_of
from emseg.store.records import FOLDER
from emseg.store.remote import NODE
from emseg.store.scratch import DESCRIBED, IMAGE
from emseg.store.staging import output_error

INSTANCES = "instances"
"""Name of instance labels, unless another is asked for."""
TABLE = "segments.csv"


def space_of(volume: VolumeSpec, region: Box) -> Space:
    """Where the voxels of an output lie."""
    return Space(AXES, volume.scale, volume.crop(region), volume.units).last(volume.rank)


def instances_group(space: Space, steps: Sequence[Triple], description: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the image of instance labels, two levels below the image that it belongs to.

    `steps` are those of its coarser levels, in voxels of the next finer one.
    """
    ome = {
        "version": VERSION,
        "multiscales": multiscales(levels_at("", space, steps), "instances"),
        "image-label": {"source": {"image": "../../"}},
    }
    return {"ome": ome, "emseg": description}


def stored_instances(files: Files, name: str) -> dict[str, Any] | None:
    """What the instance labels of this name say about themselves, or the copy of that, if there are any.

    Raises
    ------
    OutputError
        If something else has that name.
    """
    place = files.place / f"labels/{name}"
    try:
        document = find_file(files, f"labels/{name}/{NODE}")
        found = described(document) or copied_descriptions(files).get(name)
    except OSError as error:
        raise output_error(place, error) from error
    if document is not None and (found is None or "labelling" not in found):
        raise OutputError(f"{place} is there already, and no instance labels of emseg, or damaged: choose another --name")
    return found


def descriptions(files: Files) -> dict[str, dict[str, Any]]:
    """What each image of instance labels in an output says about itself, by name, `INSTANCES` first.

    One that has lost its metadata is among them, as long as the copy of what these said is there.

    Raises
    ------
    OSError
        If the store refuses.
    """
    found = copied_descriptions(files)
    for name in files.entries("labels"):
        if not name.endswith(".json"):
            own = described(find_file(files, f"labels/{name}/{NODE}"))
            found |= {name: own} if own is not None and "labelling" in own else {}
    return dict(sorted(found.items(), key=lambda item: (item[0] != INSTANCES, item[0])))


def instance_levels(stored: Output, name: str) -> tuple[Level, ...]:
    """Instance labels of this name, uint64, and their coarser levels, to read; boxes count from the output's first voxel.

    Blocks that were not there to be labelled count as outside.

    Raises
    ------
    OutputError
        If there are none, or their metadata are damaged.
    """
    files, place = stored.files, stored.path / f"labels/{name}"
    description = stored_instances(files, name)
    if description is None:
        raise OutputError(f"{files.place} has no instance labels {name!r}: make them with `emseg label {files.place}`")
    try:
        group = json.loads(find_file(files, f"labels/{name}/{NODE}") or b"")["attributes"]
        paths = [inside for inside, _ in levels(multiscales_of(group))]
        arrays = [open_shards(files, f"labels/{name}/{inside}", 0, dense=True) for inside in paths]
        for array, shape in zip(arrays, [level.blocks.region.shape for level in stored.levels], strict=False):
            if (
                array.array.dtype != "uint64"
                or array.array.fill_value != 0
                or (array.shape, array.unit) != (shape, stored.unit)
            ):
                raise ValueError("an array is not laid out like the output")
        made = [
            Level(stored.path, (array,), ("mode",), level.step) for array, level in zip(arrays, stored.levels, strict=False)
        ]
        finest, *coarser = made
    except StoreError as error:  # which says nothing about what is there
        raise OutputError(f"{place} cannot be read ({error.strerror}): {error.remedy}") from error
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise OutputError(f"{place} is damaged ({reason(error)}): {MEND}") from error
    return replace(finest, outside=_not_labelled(stored, description, finest)), *coarser


def open_instances(stored: Output, name: str) -> Shards:
    """Instance labels of this name, uint64, to read; boxes count from the output's first voxel.

    Raises
    ------
    OutputError
        If there are none, or they are not whole.
    """
    finest, *_ = instance_levels(stored, name)
    if missing := int((~finest.done()).sum()):
        raise OutputError(f"{stored.path / f'labels/{name}'} lacks {missing} of {len(finest.blocks)} parts: {MEND}")
    return finest.arrays[0]


def missing_digest(done: NDArray[np.bool_]) -> str | None:
    """SHA-256 of which blocks are not there; None if all are."""
    missing = np.flatnonzero(~done)
    return hashlib.sha256(missing.tobytes()).hexdigest() if len(missing) else None


def _not_labelled(stored: Output, description: Mapping[str, Any], finest: Level) -> NDArray[np.bool_] | None:
    """Write units that instance labels do not have, as their blocks lay outside or were not there, ``(z, y, x) bool``.

    Which blocks were there is known by its digest alone: what is stored agrees with that, or what is there now does.
    """
    outside = stored.outside
    if "missing" in description:
        for there in (finest.done() | outside, stored.done_units()):
            if missing_digest(there) == description["missing"]:
                return ~there | outside
    return outside if outside.any() else None


def publish(files: Files, scratch: str, name: str, classes: str) -> None:
    """Puts complete instance labels and their table in their places; what was there is replaced.

    Parameters
    ----------
    scratch
        Folder of the labelling.
    classes
        Name of the image of classes.

    Raises
    ------
    OutputError
        If the store refuses; calling it again goes on.
    """
    place = f"labels/{name}"
    try:
        for folder in (FOLDER, "labels", f"{scratch}/{IMAGE}"):
            files.tidy(folder, deep=False)  # descriptions that were half-written when their writer was killed
        if (description := described(files.read(f"{scratch}/{IMAGE}/{NODE}"))) is not None:
            keep_copies(files, {**descriptions(files), name: description})
        if files.size(f"{scratch}/{TABLE}") is not None:
            files.rename(f"{scratch}/{TABLE}", table_of(name))
        if files.size(f"{scratch}/{IMAGE}/{NODE}") is not None:
            files.remove_all(place)
            files.rename_all(f"{scratch}/{IMAGE}", place)
        list_labels(files, classes)
        with suppress(OSError):  # what is left of it goes with the next labelling
            files.remove_all(scratch)
    except OSError as error:
        raise output_error(files.place / place, error) from error


def table_of(name: str) -> str:
    """Where the table of the segments of instance labels is, in an output."""
    return f"{FOLDER}/{name}.csv"


def digest_of(files: Files, name: str) -> str | None:
    """SHA-256 of a file of an output; None if it is not there.

    Raises
    ------
    OSError
        If the store refuses.
    """
    try:
        with files.reading(name) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return None if find_file(files, name) is None else digest_of(files, name)


def listed(classes: str, names: Iterable[str]) -> dict[str, Any]:
    """Attributes of the group ``labels``: it names the image of classes, and each of instance labels."""
    return {"ome": {"version": VERSION, "labels": [classes, *sorted(names)]}}


def list_labels(files: Files, classes: str) -> None:
    """Has the group ``labels`` name the image of classes, and each of instance labels; what these say is copied."""
    found = descriptions(files)
    describe_group(files, "labels", listed(classes, found))
    keep_copies(files, found)


def remove_instances(files: Files, kept: int | None = None) -> None:
    """Removes instance labels of all generations but one, for an output that is begun anew.

    If none is kept, what was made on the way to them goes as well.

    Raises
    ------
    OSError
        If the store refuses.
    """
    for image, description in descriptions(files).items():
        if description.get("generation") != kept:
            files.remove_all(f"labels/{image}")
            files.remove(table_of(image))
    for entry in files.entries(FOLDER) if kept is None else ():
        if files.size(f"{FOLDER}/{entry}/{DESCRIBED}") is not None:
            files.remove_all(f"{FOLDER}/{entry}")
