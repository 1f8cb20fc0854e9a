"""Instance labels in an output: ``OUT/labels/NAME``, beside the classes, and the table of segments ``OUT/emseg/NAME.csv``.

They appear when they are complete, by renaming, and are gone when the output is begun anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emseg.box import AXES, Box, Triple
from emseg.errors import OutputError
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, open_shards
from emseg.store.ome import VERSION, Space, levels_at, multiscales
from emseg.store.scratch import IMAGE
from emseg.store.staging import output_error, write_json

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


def stored_instances(output: Path, name: str) -> dict[str, Any] | None:
    """What the instance labels of this name say about themselves, if there are any.

    Raises
    ------
    OutputError
        If something else has that name.
    """
    file = output / "labels" / name / "zarr.json"
    try:
        described = json.loads(file.read_bytes())["attributes"]["emseg"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{file.parent} is there already, and no instance labels of emseg: choose another --name") from error
    if not isinstance(described, dict):
        raise OutputError(f"{file.parent} is there already, and no instance labels of emseg: choose another --name")
    return described


def instance_names(output: Path) -> tuple[str, ...]:
    """Name of each image of instance labels in an output, `INSTANCES` first."""
    names = (image.name for image in _images(output))
    return tuple(sorted(names, key=lambda name: (name != INSTANCES, name)))


def open_instances(output: Path, name: str) -> Shards:
    """Instance labels of this name, uint64, to read; boxes count from the output's first voxel.

    Raises
    ------
    OutputError
        If there are none.
    """
    if stored_instances(output, name) is None:
        raise OutputError(f"{output} has no instance labels {name!r}: make them with `emseg label {output}`")
    return open_shards(output / "labels" / name, "0", 0)


def publish(output: Path, scratch: Path, name: str, classes: str) -> None:
    """Puts complete instance labels and their table in their places; what was there is replaced.

    Parameters
    ----------
    classes
        Name of the image of classes.

    Raises
    ------
    OutputError
        If the disk refuses; calling it again goes on.
    """
    place = output / "labels" / name
    try:
        if (scratch / TABLE).exists():
            (scratch / TABLE).replace(output / "emseg" / f"{name}.csv")
        if (scratch / IMAGE).exists():
            if place.exists():
                shutil.rmtree(place)
            (scratch / IMAGE).rename(place)
        list_labels(output, classes)
        shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise output_error(place, error) from error


def list_labels(output: Path, classes: str) -> None:
    """Has the group ``labels`` name the image of classes, and each of instance labels."""
    file = output / "labels" / "zarr.json"
    document = json.loads(file.read_bytes())
    listed = {"version": VERSION, "labels": [classes, *(image.name for image in _images(output))]}
    if document["attributes"] != {"ome": listed}:
        write_json(file, {**document, "attributes": {"ome": listed}})


def remove_instances(output: Path) -> None:
    """Removes all instance labels, for an output that is begun anew; and what was made on the way to them.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    for image in _images(output):
        shutil.rmtree(image)
        (output / "emseg" / f"{image.name}.csv").unlink(missing_ok=True)
    for scratch in (output / "emseg").glob("*/labelling.json"):
        shutil.rmtree(scratch.parent)


def _images(output: Path) -> list[Path]:
    """Folders of instance labels; those of classes say nothing about themselves."""
    found = sorted((output / "labels").glob("*/zarr.json"))
    return [file.parent for file in found if "emseg" in json.loads(file.read_bytes())["attributes"]]
