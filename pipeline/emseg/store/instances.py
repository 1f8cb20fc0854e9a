"""Instance labels in an output: ``OUT/labels/NAME``, beside the classes, and the table of segments ``OUT/emseg/NAME.csv``.

They appear when they are complete, by renaming, and are gone when the output is begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from emseg.box import AXES, Box, Triple
from emseg.errors import OutputError
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, describe_group, open_shards
from emseg.store.files import Files, find
from emseg.store.ome import VERSION, Space, levels_at, multiscales
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


def instances_group(space: Space, steps: Sequence[Triple], described: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the image of instance labels, two levels below the image that it belongs to.

    `steps` are those of its coarser levels, in voxels of the next finer one.
    """
    ome = {
        "version": VERSION,
        "multiscales": multiscales(levels_at("", space, steps), "instances"),
        "image-label": {"source": {"image": "../../"}},
    }
    return {"ome": ome, "emseg": described}


def stored_instances(files: Files, name: str) -> dict[str, Any] | None:
    """What the instance labels of this name say about themselves, if there are any.

    Raises
    ------
    OutputError
        If something else has that name.
    """
    place = files.place / f"labels/{name}"
    try:
        document = find(files, f"labels/{name}/{NODE}", NODE)
        described = None if document is None else json.loads(document)["attributes"]["emseg"]
    except OSError as error:
        raise output_error(place, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{place} is there already, and no instance labels of emseg: choose another --name") from error
    if not isinstance(described, dict | None):
        raise OutputError(f"{place} is there already, and no instance labels of emseg: choose another --name")
    return described


def instance_names(files: Files) -> tuple[str, ...]:
    """Name of each image of instance labels in an output, `INSTANCES` first."""
    return tuple(sorted(_images(files), key=lambda name: (name != INSTANCES, name)))


def open_instances(files: Files, name: str) -> Shards:
    """Instance labels of this name, uint64, to read; boxes count from the output's first voxel.

    Raises
    ------
    OutputError
        If there are none.
    """
    if stored_instances(files, name) is None:
        raise OutputError(f"{files.place} has no instance labels {name!r}: make them with `emseg label {files.place}`")
    return open_shards(files, f"labels/{name}/0", 0)


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


def list_labels(files: Files, classes: str) -> None:
    """Has the group ``labels`` name the image of classes, and each of instance labels."""
    describe_group(files, "labels", {"ome": {"version": VERSION, "labels": [classes, *_images(files)]}})


def remove_instances(files: Files) -> None:
    """Removes all instance labels, for an output that is begun anew; and what was made on the way to them.

    Raises
    ------
    OSError
        If the store refuses.
    """
    for image in _images(files):
        files.remove_all(f"labels/{image}")
        files.remove(table_of(image))
    for entry in files.entries(FOLDER):
        if files.size(f"{FOLDER}/{entry}/{DESCRIBED}") is not None:
            files.remove_all(f"{FOLDER}/{entry}")


def _images(files: Files) -> list[str]:
    """Names of instance labels; those of classes say nothing about themselves."""
    entries = (name for name in files.entries("labels") if not name.endswith(".json"))
    found = ((name, find(files, f"labels/{name}/{NODE}", NODE)) for name in entries)
    return [name for name, document in found if document is not None and "emseg" in json.loads(document)["attributes"]]
