"""Making, opening and removing an output: one OME-Zarr 0.5 group.

    OUT                   an image: the probabilities if they are kept, else the labels
    OUT/labels/classes/0  (z, y, x) uint8, the class of each voxel, 255 = not computed
    OUT/probabilities/0   (c, z, y, x) uint8, 0 to 254 for 0 to 1, 255 = not computed
    OUT/emseg             the record of the run, as JSON files

A 2-D volume gives (y, x) and (c, y, x). The arrays start at the corner of the region that the output covers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr

from emseg.box import AXES, Box, Triple, triple
from emseg.errors import OutputError, VolumeError
from emseg.specs.volume import VolumeSpec
from emseg.store.arrays import Shards, create_array, create_group
from emseg.store.classes import image_label, omero
from emseg.store.ledger import NOT_COMPUTED, Output
from emseg.store.nodes import LocalFiles, Node, read_node, reason
from emseg.store.ome import VERSION, Space, multiscales
from emseg.store.staging import output_path, remove_folder, staged

LABELS = "labels/classes/0"
PROBABILITIES = "probabilities/0"

FORMAT = 1
"""Version of the layout above."""

SELF = "output"
"""Key of the attributes ``emseg`` under which an output describes itself."""


def create_output(
    path: str | Path,
    *,
    volume: VolumeSpec,
    region: Box,
    classes: tuple[str, ...],
    unit: Triple,
    chunk: Triple,
    probabilities: bool,
    attributes: dict[str, Any],
) -> None:
    """Makes an empty output, or nothing at all.

    Parameters
    ----------
    path
        Where; nothing may exist there yet.
    volume
        The volume that is segmented: gives rank, voxel size and units.
    region
        What is segmented, in the volume's coordinates.
    classes
        Name of each class, in the order of the label values from 0.
    unit, chunk
        Shape (z, y, x) in voxels of a write unit, and of the chunks inside; the one is a multiple of the other.
    probabilities
        Whether to keep probabilities beside the labels.
    attributes
        JSON values to keep, later found as `Output.attributes`; the key ``output`` is taken.

    Raises
    ------
    OutputError
        If `path` exists, or cannot be written.
    ValueError
        If the other arguments disagree, or `attributes` are not JSON.
    """
    if not volume.box.contains(region):
        raise ValueError(f"the region {region} is not within the volume {volume.box}")
    if any(u % c for u, c in zip(unit, chunk, strict=True)):
        raise ValueError(f"the write unit {unit} is not a multiple of the chunk {chunk}")
    if not 1 <= len(classes) <= NOT_COMPUTED:
        raise ValueError(f"{len(classes)} classes do not fit uint8 beside {NOT_COMPUTED} for not computed")
    if SELF in attributes:
        raise ValueError(f"the attribute {SELF!r} is taken")
    described = {
        "format": FORMAT,
        "region": [region.start, region.stop],
        "classes": classes,
        "probabilities": probabilities,
    }
    own = json.loads(json.dumps({**attributes, SELF: described}, allow_nan=False))
    space = Space(AXES, volume.scale, volume.crop(region), volume.units).last(volume.rank)
    shape, shard, inner = (lengths[-volume.rank :] for lengths in (region.shape, unit, chunk))
    with staged(output_path(path)) as work:
        create_group(work, "", {"ome": _image(space, classes, probabilities, at_root=True), "emseg": own})
        create_group(work, "emseg", {})
        create_group(work, "labels", {"ome": {"version": VERSION, "labels": ["classes"]}})
        create_group(work, "labels/classes", {"ome": _labels(space, classes)})
        _create(work, LABELS, space, shape, shard, inner)
        if probabilities:
            count = len(classes)
            create_group(work, "probabilities", {"ome": _image(space, classes, probabilities, at_root=False)})
            _create(work, PROBABILITIES, space.with_channels(), (count, *shape), (count, *shard), (1, *inner))


def open_output(path: str | Path) -> Output:
    """The output at a path, to read and to write.

    Raises
    ------
    OutputError
        If there is none, or it is damaged, or something else is there.
    """
    try:
        node = read_node(path)
    except VolumeError as error:
        raise OutputError(str(error)) from error
    described = _described(node)
    try:
        if described["format"] != FORMAT:
            raise OutputError(f"{path} is an output of format {described['format']}, not {FORMAT}: use the emseg that wrote it")
        start, stop = described["region"]
        region, classes = Box(triple(start), triple(stop)), tuple(map(str, described["classes"]))
        labels = _open_array(node.path, LABELS, 0)
        probabilities = _open_array(node.path, PROBABILITIES, len(classes)) if described["probabilities"] else None
        for array in (labels, probabilities or labels):
            if array.shape != region.shape or array.unit != labels.unit:
                raise ValueError(f"the arrays have shape {array.shape} and units {array.unit}, the region has {region.shape}")
    except OutputError:
        raise
    except Exception as error:  # metadata can be wrong in any way, and Zarr then raises almost any type
        raise OutputError(f"the output {path} is damaged ({reason(error)}): remove it, and compute it again") from error
    attributes = {key: value for key, value in node.attributes["emseg"].items() if key != SELF}
    return Output(node.path, region, classes, attributes, labels, probabilities)


def remove_output(path: str | Path) -> None:
    """Deletes an output with all its contents, and nothing that is not an output.

    Raises
    ------
    OutputError
        If `open_output` does not accept what is there, or it cannot be deleted.
    """
    output = open_output(path)
    if output.path.is_symlink():
        raise OutputError(f"{path} is a link to an output, not an output: remove what it leads to, {output.path.resolve()}")
    remove_folder(output.path)


def _image(space: Space, classes: tuple[str, ...], probabilities: bool, *, at_root: bool) -> dict[str, Any]:
    """OME metadata of the image that the root is, or of the group `probabilities` inside."""
    if not probabilities:
        return {"version": VERSION, "multiscales": multiscales(LABELS, space, "classes")}
    path = PROBABILITIES if at_root else "0"
    image = multiscales(path, space.with_channels(), "probabilities")
    return {"version": VERSION, "multiscales": image, "omero": omero(classes, NOT_COMPUTED - 1)}


def _labels(space: Space, classes: tuple[str, ...]) -> dict[str, Any]:
    """OME metadata of the group `labels/classes`, two levels below the image that it belongs to."""
    image = multiscales("0", space, "classes")
    return {"version": VERSION, "multiscales": image, "image-label": image_label(classes, "../../")}


def _create(
    root: Path, name: str, space: Space, shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...]
) -> None:
    create_array(root, name, shape=shape, shard=shard, chunk=chunk, dtype="uint8", fill_value=NOT_COMPUTED, axes=space.names)


def _described(node: Node) -> dict[str, Any]:
    """What an output says about itself."""
    own = node.attributes.get("emseg")
    described = own.get(SELF) if isinstance(own, dict) else None
    if node.kind != "group" or not isinstance(described, dict) or "format" not in described:
        raise OutputError(f"{node.path} is a Zarr {node.kind}, but not an output of emseg: name the folder that a run has made")
    return described


def _open_array(root: Path, name: str, channels: int) -> Shards:
    array = zarr.open_array(store=LocalFiles(root), path=name, mode="r+", zarr_format=3)
    if array.dtype != "uint8" or array.fill_value != NOT_COMPUTED:
        raise ValueError(f"{name} is {array.dtype} with fill value {array.fill_value}, not uint8 with {NOT_COMPUTED}")
    return Shards(root / name, array, channels)
