"""Instance labels of an output, ``OUT/labels/NAME`` next to the classes, and their segment table ``OUT/emseg/NAME.csv``.

They appear by renaming when they are complete, and are removed when the output is started over. Every shard is stored, also
one of background only, so a missing shard is never mistaken for background.
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

from emseg_core.box import AXES, Box, Triple
from emseg_core.errors import OutputError
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.atomic_write import translate_oserror
from emseg_core.store.files.faults import StoreError, describe_error
from emseg_core.store.files.files import Files
from emseg_core.store.files.place import ZARR_JSON
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.outputs.descriptions import copied_descriptions, find_file, intact_description, write_copies
from emseg_core.store.outputs.level import REPAIR_HINT, Level
from emseg_core.store.outputs.output import Output
from emseg_core.store.outputs.scratch import DESCRIPTION_FILE, IMAGE
from emseg_core.store.zarrs.arrays import Shards, describe_group, open_shards
from emseg_core.store.zarrs.ome import VERSION, Space, levels, levels_at, multiscales, multiscales_of

INSTANCES = "instances"
"""Default name of instance labels."""
TABLE = "segments.csv"
"""Name of the segment table in the folder of a labelling."""


def space_of(volume: VolumeSpec, region: Box) -> Space:
    """Return the coordinate space of an output's voxels.

    Parameters
    ----------
    volume
        Description of the volume.
    region
        Region of the output, in voxels of the volume.

    Returns
    -------
    Space
        Axes, voxel size and position of the first voxel, in the units of the volume.
    """
    return Space(AXES, volume.scale, volume.crop(region), volume.units).last(volume.rank)


def instances_group(space: Space, steps: Sequence[Triple], description: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of an image of instance labels, two folders below the image that it belongs to.

    Parameters
    ----------
    space
        Coordinate space of the finest level.
    steps
        Step (z, y, x) of each coarser level, in voxels of the next finer one.
    description
        How the labels were made, as JSON values.

    Returns
    -------
    dict
        Attributes ``ome`` and ``emseg``.
    """
    ome = {
        "version": VERSION,
        "multiscales": multiscales(levels_at("", space, steps), "instances"),
        "image-label": {"source": {"image": "../../"}},
    }
    return {"ome": ome, "emseg": description}


def stored_instances(files: Files, name: str) -> dict[str, Any] | None:
    """Read the description of the instance labels of this name, or the copy of it.

    Parameters
    ----------
    files
        Files of the output.
    name
        Name of the instance labels.

    Returns
    -------
    dict or None
        None if there are no such labels.

    Raises
    ------
    OutputError
        If something else has that name.
    """
    place = files.place / f"labels/{name}"
    with translate_oserror(place):
        document = find_file(files, f"labels/{name}/{ZARR_JSON}")
        found = intact_description(document) or copied_descriptions(files).get(name)
    if document is not None and (found is None or "labelling" not in found):
        raise OutputError(f"{place} exists, but is damaged or not written by `emseg label`: choose another --name")
    return found


def descriptions(files: Files) -> dict[str, dict[str, Any]]:
    """Read the descriptions of all instance labels of an output.

    Labels that have lost their metadata are included as long as the copy of their description exists.

    Parameters
    ----------
    files
        Files of the output.

    Returns
    -------
    dict
        Description of each image by its name, `INSTANCES` first.

    Raises
    ------
    OSError
        If the store fails.
    """
    found = copied_descriptions(files)
    for name in files.entries("labels"):
        if not name.endswith(".json"):
            own = intact_description(find_file(files, f"labels/{name}/{ZARR_JSON}"))
            found |= {name: own} if own is not None and "labelling" in own else {}
    return dict(sorted(found.items(), key=lambda item: (item[0] != INSTANCES, item[0])))


def instance_levels(stored: Output, name: str) -> tuple[Level, ...]:
    """Open all levels of the instance labels of this name for reading.

    Blocks that did not exist when the output was labelled count as outside.

    Parameters
    ----------
    stored
        The open output.
    name
        Name of the instance labels.

    Returns
    -------
    tuple of Level
        The finest level first, ``(z, y, x) uint64``; boxes are relative to the output's first voxel.

    Raises
    ------
    OutputError
        If there are no such labels, or their metadata are damaged.
    """
    files, place = stored.files, stored.path / f"labels/{name}"
    description = stored_instances(files, name)
    if description is None:
        raise OutputError(f"{files.place} has no instance labels {name!r}: create them with `emseg label {files.place}`")
    try:
        group = json.loads(find_file(files, f"labels/{name}/{ZARR_JSON}") or b"")["attributes"]
        paths = [inside for inside, _ in levels(multiscales_of(group))]
        arrays = [open_shards(files, f"labels/{name}/{inside}", 0, dense=True) for inside in paths]
        pairs = list(zip(arrays, stored.levels, strict=False))  # the output may have more levels
        for array, level in pairs:
            found = (array.array.dtype, array.array.fill_value, array.shape, array.unit)
            if found != (np.dtype("uint64"), 0, level.blocks.region.shape, stored.unit):
                raise ValueError("an array is not laid out like the output")
        finest, *coarser = (Level(stored.path, (array,), ("mode",), level.step) for array, level in pairs)
    except StoreError as error:  # the store failed: the labels may well be intact
        raise OutputError(f"{place} cannot be read ({error.strerror}): {error.remedy}") from error
    except Exception as error:  # damaged metadata make Zarr raise almost any type
        raise OutputError(f"{place} is damaged ({describe_error(error)}): {REPAIR_HINT}") from error
    return replace(finest, outside=_not_labelled(stored, description, finest)), *coarser


def open_instances(stored: Output, name: str) -> Shards:
    """Open the finest level of the instance labels of this name for reading.

    Parameters
    ----------
    stored
        The open output.
    name
        Name of the instance labels.

    Returns
    -------
    Shards
        Labels ``(z, y, x) uint64``; boxes are relative to the output's first voxel.

    Raises
    ------
    OutputError
        If there are no such labels, or shards of them are missing.
    """
    finest, *_ = instance_levels(stored, name)
    if missing := int((~finest.done()).sum()):
        raise OutputError(f"{stored.path / f'labels/{name}'} lacks {missing} of {len(finest.blocks)} shards: {REPAIR_HINT}")
    return finest.arrays[0]


def missing_digest(done: NDArray[np.bool_]) -> str | None:
    """Return the SHA-256 of the indices of unfinished blocks.

    Parameters
    ----------
    done
        Whether each block is finished, ``(z, y, x) bool``.

    Returns
    -------
    str or None
        None if all blocks are finished.
    """
    missing = np.flatnonzero(~done)
    return hashlib.sha256(missing.tobytes()).hexdigest() if len(missing) else None


def _not_labelled(stored: Output, description: Mapping[str, Any], finest: Level) -> NDArray[np.bool_] | None:
    """Return the write units without instance labels, as they were outside or not computed, ``(z, y, x) bool``.

    The description holds only a digest of the missing blocks: either the stored labels or the blocks done now match it.
    """
    outside = stored.outside
    if "missing" in description:
        for there in (finest.done() | outside, stored.done_units()):
            if missing_digest(there) == description["missing"]:
                return ~there | outside
    return outside if outside.any() else None


def publish(files: Files, scratch: str, name: str, others: Sequence[str]) -> None:
    """Move complete instance labels and their table into place, replacing earlier ones.

    Parameters
    ----------
    files
        Files of the output.
    scratch
        Folder of the labelling.
    name
        Name of the instance labels.
    others
        Names of the label images of the run.

    Raises
    ------
    OutputError
        If the store fails; calling it again resumes.
    """
    place = f"labels/{name}"
    with translate_oserror(files.place / place):
        for folder in (RECORDS_FOLDER, "labels", f"{scratch}/{IMAGE}"):
            files.tidy(folder, deep=False)  # killed writers leave partial metadata files
        if (description := intact_description(files.read(f"{scratch}/{IMAGE}/{ZARR_JSON}"))) is not None:
            write_copies(files, {**descriptions(files), name: description})
        if files.size(f"{scratch}/{TABLE}") is not None:
            files.rename(f"{scratch}/{TABLE}", table_path(name))
        if files.size(f"{scratch}/{IMAGE}/{ZARR_JSON}") is not None:
            files.remove_all(place)
            files.rename_all(f"{scratch}/{IMAGE}", place)
        list_labels(files, others)
        with suppress(OSError):  # the next labelling removes what remains
            files.remove_all(scratch)


def table_path(name: str) -> str:
    """Return the path of a segment table in an output.

    Parameters
    ----------
    name
        Name of the instance labels.

    Returns
    -------
    str
        Path relative to the output.
    """
    return f"{RECORDS_FOLDER}/{name}.csv"


def digest_of(files: Files, name: str) -> str | None:
    """Compute the SHA-256 of a file of an output.

    Parameters
    ----------
    files
        Files of the output.
    name
        Path relative to the output.

    Returns
    -------
    str or None
        Hexadecimal digest; None if the file does not exist.

    Raises
    ------
    OSError
        If the store fails.
    """
    try:
        with files.reading(name) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return None if find_file(files, name) is None else digest_of(files, name)


def labels_attributes(images: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
    """Return the attributes of the group ``labels``.

    Parameters
    ----------
    images
        Names of the label images of the run.
    names
        Names of all instance labels.

    Returns
    -------
    dict
        OME metadata that list the label images of the run and all instance labels.
    """
    return {"ome": {"version": VERSION, "labels": [*images, *sorted(names)]}}


def list_labels(files: Files, images: Sequence[str]) -> None:
    """List the label images of the run and all instance labels in the group ``labels``, and copy the descriptions of these.

    Parameters
    ----------
    files
        Files of the output.
    images
        Names of the label images of the run.

    Raises
    ------
    OSError
        If the store fails.
    """
    found = descriptions(files)
    describe_group(files, "labels", labels_attributes(images, found))
    write_copies(files, found)


def remove_instances(files: Files, kept: int | None = None) -> None:
    """Remove the instance labels of all generations but one, when an output is started over.

    Parameters
    ----------
    files
        Files of the output.
    kept
        Generation to keep; None to remove all of them, and intermediate files of labellings as well.

    Raises
    ------
    OSError
        If the store fails.
    """
    for image, description in descriptions(files).items():
        if description.get("generation") != kept:
            files.remove_all(f"labels/{image}")
            files.remove(table_path(image))
    for entry in files.entries(RECORDS_FOLDER) if kept is None else ():
        if files.size(f"{RECORDS_FOLDER}/{entry}/{DESCRIPTION_FILE}") is not None:
            files.remove_all(f"{RECORDS_FOLDER}/{entry}")
