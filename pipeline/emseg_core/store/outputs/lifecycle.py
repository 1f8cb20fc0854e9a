"""Lifecycle of an output: create, start over, clean up and open it. Its layout is in `emseg_core.store.outputs.layout`."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import InputError, OutputError, VolumeError
from emseg_core.grid.pyramid import Rule, level_shapes
from emseg_core.specs.heads import CLASSES, PROBABILITIES, Head, StoredImage, check_heads, classes_head, images_of
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.atomic_write import output_path, translate_oserror
from emseg_core.store.files.faults import StoreError, describe_error
from emseg_core.store.files.files import Files, LocalFiles, open_files
from emseg_core.store.files.lease import Token
from emseg_core.store.files.place import ZARR_JSON, Address, Place, local_path, parse_place
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.outputs.descriptions import (
    DIGEST_KEY,
    OUTPUT_KEY,
    copies_attributes,
    find_file,
    intact_description,
    is_intact,
    root_description,
    write_copies,
)
from emseg_core.store.outputs.instances import labels_attributes, list_labels, remove_instances
from emseg_core.store.outputs.layout import FORMAT, HEAD_KEY, Generation, OutputLayout, fill_value, label_names
from emseg_core.store.outputs.level import REPAIR_HINT, Level, complete_parents
from emseg_core.store.outputs.output import Output
from emseg_core.store.zarrs.arrays import create_group, describe_group, group_metadata, open_shards
from emseg_core.store.zarrs.nodes import Node, read_node
from emseg_core.store.zarrs.ome import MAX_NAME_LENGTH

MAX_WRITE_UNITS = 2**28
"""Maximum number of write units of an output, enough for a petavoxel. Listing them takes a few bytes for each."""


def is_taken(place: Place) -> bool:
    """Check whether a place is occupied.

    On an object store, the records that a run keeps there before it creates the output do not count.

    Parameters
    ----------
    place
        Place of an output that is to be created.

    Returns
    -------
    bool
        True if anything else is there.

    Raises
    ------
    InputError
        If the store cannot be listed.
    """
    if isinstance(place, Path):
        return place.exists() or place.is_symlink()
    with translate_oserror(place):
        files = open_files(place)
        others = set(files.entries()) - {RECORDS_FOLDER, "labels", PROBABILITIES}
        return not all(_stores_head(files, name) for name in others)


def create_output(path: str | Place, layout: OutputLayout, token: Token | None = None) -> None:
    """Create an empty output, completely or not at all.

    On an object store this needs a lease, as several objects cannot appear there at once.

    Parameters
    ----------
    path
        Path or address of the output.
    layout
        Layout of the output.
    token
        Token of the lease; None if there is none.

    Raises
    ------
    OutputError
        If something exists there already, or the output cannot be written.
    """
    place = _place(path)
    if isinstance(place, Path):
        with atomic_folder(output_path(place)) as work:
            work.mkdir()
            folder = LocalFiles(work)
            folder.put(ZARR_JSON, _fill(folder, layout))
        return
    files = open_files(place) if token is None else token.files
    with translate_oserror(place):
        created = files.create(ZARR_JSON, _fill(files, layout))
    if not created:
        raise OutputError(f"{place} was created by another process in the meantime: choose another name")


def _fill(files: Files, layout: OutputLayout) -> bytes:
    """Create all of an empty output except the metadata that turn it into one, which are returned."""
    first = Generation(1)
    root = layout.root(first)
    create_group(files, RECORDS_FOLDER, copies_attributes(root["emseg"], {}))
    create_group(files, "labels", labels_attributes(layout.listed(first), ()))
    layout.create_arrays(files, first)
    return group_metadata(root)


def restart_output(place: str | Place, layout: OutputLayout, token: Token | None = None) -> None:
    """Start an output over: create new arrays first, then change the attributes that refer to them.

    The old arrays are removed by `tidy_output`.

    Parameters
    ----------
    place
        Path or address of the output.
    layout
        New layout.
    token
        Token of the lease under which this is done.

    Raises
    ------
    OutputError
        If the output cannot be opened or written.
    """
    output = open_output(place, token)
    files, new = output.files, Generation(output.generation + 1)
    with translate_oserror(output.path):
        _remove_other_generations(files, output)
        layout.create_arrays(files, new)
        describe_group(files, "labels", labels_attributes(layout.listed(new), ()))
        describe_group(files, "", layout.root(new))
        remove_instances(files)
        write_copies(files, {})


def tidy_output(place: str | Place, token: Token | None = None) -> None:
    """Remove what killed runs have left: arrays of other generations, and partial files.

    Parameters
    ----------
    place
        Path or address of the output.
    token
        Token of the lease under which this is done.

    Raises
    ------
    OutputError
        If the output cannot be opened or written.
    """
    output = open_output(place, token)
    files = output.files
    with translate_oserror(output.path):
        _remove_other_generations(files, output)
        remove_instances(files, output.generation)
        list_labels(files, label_names(output.images, Generation(output.generation)))
        files.tidy("", deep=False)
        files.tidy("labels", deep=False)
        files.tidy(RECORDS_FOLDER)


def open_output(path: str | Place, token: Token | None = None) -> Output:
    """Open the output at a path or an address.

    Parameters
    ----------
    path
        Path or address of the output.
    token
        Token of a run's lease, to write; None to read only.

    Returns
    -------
    Output
        The open output.

    Raises
    ------
    OutputError
        If there is no output, it is damaged, or something else is there.
    """
    place = _place(path)
    try:
        files = open_files(place) if token is None else token.files
        node = read_node(path, files=files)  # messages name the path as the caller gave it
        own = _stated_layout(node)
    except InputError as error:
        raise _not_an_output(place, error) from error
    try:
        if own["format"] != FORMAT:
            raise OutputError(
                f"{path} is an output of format {own['format']}, not {FORMAT}: use the version of emseg that wrote it"
            )
        if not is_intact(node.attributes["emseg"]):
            raise OutputError(f"the output {path} is damaged ({ZARR_JSON} does not match its checksum): {REPAIR_HINT}")
        start, stop = own["region"]
        region, classes = Box(triple(start), triple(stop)), tuple(own["classes"])
        if not all(isinstance(n, str) and len(n) <= MAX_NAME_LENGTH for n in classes):
            raise ValueError("its classes are not a list of names")
        names = Generation(int(own["generation"]))
        heads = tuple(map(Head.from_json, own["heads"])) if "heads" in own else (classes_head(classes),)
        check_heads(heads)
        probabilities = bool(own["probabilities"])
        images = [(names.path(image), image) for image in images_of(heads, probabilities)]
        steps = [triple(step) for step in own.get("levels", ())]
        shapes = level_shapes(region.shape, steps)
        levels = [
            _open_level(files, number, step, shape, images)
            for number, (step, shape) in enumerate(zip([(1, 1, 1), *steps], shapes, strict=True))
        ]
        if own.get("masked"):
            digest = node.attributes["emseg"].get("recipe", {}).get("mask")
            left_out = _left_out(files, names.outside, levels[0].blocks.grid, digest)
            outside = itertools.accumulate(steps, complete_parents, initial=left_out)
            levels = [replace(level, outside=units) for level, units in zip(levels, outside, strict=True)]
        if len({array.unit for level in levels for array in level.arrays}) > 1:
            raise ValueError("the arrays have write units of different shapes")
    except OutputError:
        raise
    except StoreError as error:  # the store failed: the output may well be intact
        raise OutputError(f"{path} cannot be read ({error.strerror}): {error.remedy}") from error
    except Exception as error:  # damaged metadata make Zarr raise almost any type
        raise OutputError(
            f"the output {path} is damaged ({describe_error(error)}): {REPAIR_HINT}, or remove it, and compute it again"
        ) from error
    attributes = {key: value for key, value in node.attributes["emseg"].items() if key not in (OUTPUT_KEY, DIGEST_KEY)}
    return Output(files, names.number, region, heads, probabilities, attributes, tuple(levels))


def _not_an_output(place: Place, error: InputError) -> OutputError:
    """Return the error for a place whose root does not describe an output; metadata that are lost can be repaired."""
    with suppress(OSError, VolumeError):
        files = open_files(place)
        if intact_description(find_file(files, ZARR_JSON)) is None and root_description(files) is not None:
            return OutputError(f"the output {place} is damaged ({ZARR_JSON} does not match its checksum): {REPAIR_HINT}")
    return OutputError(str(error))


def _place(path: str | Place) -> Place:
    """Return the absolute path, or the address, of an output."""
    try:
        place = parse_place(path)
        return place if isinstance(place, Address) else local_path(place)
    except VolumeError as error:
        raise OutputError(str(error)) from error


def _left_out(files: Files, name: str, grid: Triple, digest: str | None) -> NDArray[np.bool_]:
    """Read the write units that a mask excludes, ``(z, y, x) bool``, and check their SHA-256 if it is known."""
    with files.reading(name) as stream:
        packed = np.load(stream)
    if digest not in (None, hashlib.sha256(packed.tobytes()).hexdigest()):
        raise ValueError(f"{name} does not match its checksum")
    return np.unpackbits(packed)[: math.prod(grid)].astype(bool).reshape(grid)


def is_output(path: str | Place) -> bool:
    """Check whether a path leads to an output of emseg, damaged or not.

    Parameters
    ----------
    path
        Path or address.

    Returns
    -------
    bool
        False if something else, or nothing, is there.
    """
    try:
        node = read_node(path)
    except VolumeError:
        return False
    own = node.attributes.get("emseg")
    return node.kind == "group" and isinstance(own, dict) and OUTPUT_KEY in own


def _remove_other_generations(files: Files, output: Output) -> None:
    """Remove the arrays of all generations but that of the open output.

    A newer generation may be incomplete, and workers that outlive their run may still write to an older one. It may have had
    other heads: their images state what they are.
    """
    current = Generation(output.generation)
    kept = {current.path(image) for image in output.images}
    for folder, name in (("labels/", CLASSES), ("", PROBABILITIES)):
        for found in files.entries(folder.rstrip("/")):
            path = f"{folder}{found}"
            if path not in kept and (re.fullmatch(rf"{name}(-\d+)?", found) or _stores_head(files, path)):
                for level in filter(str.isdecimal, files.entries(path)):  # its metadata are last: they state what it is
                    files.remove_all(f"{path}/{level}")
                files.remove_all(path)


def _stores_head(files: Files, path: str) -> bool:
    """Return whether an entry of an output is an image of a head that is more than classes."""
    try:
        own = json.loads(files.read(f"{path}/{ZARR_JSON}") or b"")["attributes"]["emseg"]
    except (ValueError, KeyError, TypeError, RecursionError, NotADirectoryError):
        return False
    return isinstance(own, dict) and HEAD_KEY in own


def _stated_layout(node: Node) -> dict[str, Any]:
    """Return the layout that the root group of an output states."""
    own = node.attributes.get("emseg")
    layout = own.get(OUTPUT_KEY) if isinstance(own, dict) else None
    if node.kind != "group" or not isinstance(layout, dict) or "format" not in layout:
        raise OutputError(f"{node.path} is a Zarr {node.kind}, not an output of emseg: give the folder of a run")
    return layout


def _open_level(files: Files, number: int, step: Triple, shape: Triple, images: Sequence[tuple[str, StoredImage]]) -> Level:
    """Open a level of images, each given with its path."""
    arrays = [open_shards(files, f"{path}/{number}", image.channels) for path, image in images]
    for shards, (_, image) in zip(arrays, images, strict=True):
        found = shards.array.fill_value
        if shards.array.dtype != image.dtype or not np.array_equal(found, fill_value(image), equal_nan=True):
            raise ValueError(
                f"an array is {shards.array.dtype} with fill value {found}, not {image.dtype} with {fill_value(image)}"
            )
        if math.prod(shards.grid) > MAX_WRITE_UNITS:
            raise ValueError(f"an array has {math.prod(shards.grid)} write units, more than {MAX_WRITE_UNITS}")
        if shards.shape != shape:
            raise ValueError(f"an array of level {number} has shape {shards.shape}, not {shape}")
    rules: list[Rule] = ["mode" if image.content == "labels" else "mean" for _, image in images]
    return Level(files.place, tuple(arrays), tuple(rules), step)
