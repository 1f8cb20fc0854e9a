"""Descriptions that an output stores of itself, in two copies: the other metadata follow from them.

    OUT/zarr.json               attributes ``emseg``: the recipe and the layout of the output
    OUT/labels/NAME/zarr.json   attributes ``emseg``: how these instance labels were made
    OUT/emseg/zarr.json         attributes ``emseg``: copies, of the first as ``root``, of the others by name as ``instances``

Each description holds the SHA-256 of the rest of itself. A damaged one is thereby detected, and its copy is used instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from emseg_core.store.files.files import Files, find_metadata
from emseg_core.store.files.place import ZARR_JSON
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.zarrs.arrays import describe_group

OUTPUT_KEY = "output"
"""Key under which an output describes its layout."""
DIGEST_KEY = "sha256"
"""Key of the SHA-256 of all other keys."""
LEGACY_KEYS = {
    True: ({"recipe"}, {OUTPUT_KEY, "fingerprint", "model"}),
    False: ({"labelling", "recipe", "generation", "missing"}, {"fingerprint", "segments"}),
}
"""Keys of descriptions written before they had a digest, of roots (True) and of instance labels (False): those
that the fingerprint covers, and others.
"""
COPY_FILE = f"{RECORDS_FOLDER}/{ZARR_JSON}"
"""File that holds the copies."""


def with_digest(description: Mapping[str, Any]) -> dict[str, Any]:
    """Add its digest to a description.

    Parameters
    ----------
    description
        A description, with or without a digest.

    Returns
    -------
    dict
        The description as JSON values, with its SHA-256.
    """
    values = json.loads(json.dumps({key: value for key, value in description.items() if key != DIGEST_KEY}))
    return {**values, DIGEST_KEY: _digest(values)}


def is_intact(description: object) -> bool:
    """Check that a description is unchanged, as far as possible for an older one without a digest.

    Parameters
    ----------
    description
        Any value of a JSON document.

    Returns
    -------
    bool
        False if the description is damaged, or not a description.
    """
    if not isinstance(description, dict):
        return False
    if DIGEST_KEY in description:
        return bool(description[DIGEST_KEY] == _digest({key: value for key, value in description.items() if key != DIGEST_KEY}))
    covered, others = LEGACY_KEYS[OUTPUT_KEY in description]
    facts = {key: value for key, value in description.items() if key in covered}
    fingerprint = _digest(facts.get("recipe") if OUTPUT_KEY in description else facts)
    return description.keys() <= covered | others and description.get("fingerprint", fingerprint) == fingerprint


def intact_description(document: bytes | None) -> dict[str, Any] | None:
    """Return the description in the metadata of a group.

    Parameters
    ----------
    document
        Content of the metadata file; None if there is no such file.

    Returns
    -------
    dict or None
        None if there is no description, or it is damaged.
    """
    found = _own(document)
    return found if is_intact(found) else None


def root_description(files: Files) -> dict[str, Any] | None:
    """Read the description of an output, or its copy if the description is missing or damaged.

    Parameters
    ----------
    files
        Files of the output.

    Returns
    -------
    dict or None
        None if neither is there and intact.

    Raises
    ------
    StoreError
        If the output no longer exists.
    """
    found = intact_description(find_file(files, ZARR_JSON))
    if found is not None and OUTPUT_KEY in found:
        return found
    copy = _copy(files).get("root")
    return copy if isinstance(copy, dict) and is_intact(copy) and OUTPUT_KEY in copy else None


def copied_descriptions(files: Files) -> dict[str, dict[str, Any]]:
    """Read the copies of the descriptions of instance labels of the current generation.

    Parameters
    ----------
    files
        Files of the output.

    Returns
    -------
    dict
        Description of each image, by its name.

    Raises
    ------
    StoreError
        If the output no longer exists.
    """
    copies = _copy(files).get("instances")
    found = copies.items() if isinstance(copies, dict) else ()
    sound = {name: copy for name, copy in found if is_intact(copy)}
    if not sound:
        return {}
    generation = ((root_description(files) or {}).get(OUTPUT_KEY) or {}).get("generation")
    return {name: copy for name, copy in sound.items() if copy.get("generation") == generation}


def copies_attributes(root: Mapping[str, Any], instances: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the attributes of the group ``emseg``.

    Parameters
    ----------
    root
        Description of the root group.
    instances
        Description of each image of instance labels, by its name.

    Returns
    -------
    dict
        The copies, in the order of the names of the instance labels.
    """
    return {"emseg": {"root": root, "instances": {name: instances[name] for name in sorted(instances)}}}


def write_copies(files: Files, instances: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the current description of the root, and these descriptions of instance labels, to the group ``emseg``.

    Parameters
    ----------
    files
        Files of the output.
    instances
        Description of each image of instance labels, by its name.

    Raises
    ------
    OSError
        If the store fails.
    """
    root = root_description(files)
    if root is not None:
        describe_group(files, RECORDS_FOLDER, copies_attributes(root, instances))


def find_file(files: Files, name: str) -> bytes | None:
    """Read a whole file of an output.

    Parameters
    ----------
    files
        Files of the output.
    name
        Path relative to the output.

    Returns
    -------
    bytes or None
        None if the file does not exist although the output does.

    Raises
    ------
    StoreError
        If the output no longer exists.
    """
    found = files.read(name)
    if found is not None:
        return found
    others = (node for node in (ZARR_JSON, COPY_FILE) if node != name)  # the presence of one proves that the output exists
    return find_metadata(files, name, next((node for node in others if files.size(node) is not None), ZARR_JSON))


def _copy(files: Files) -> dict[str, Any]:
    """Read the attributes of the group ``emseg``."""
    return _own(find_file(files, COPY_FILE)) or {}


def _own(document: bytes | None) -> dict[str, Any] | None:
    """Return the attributes ``emseg`` of a metadata document."""
    try:
        found = json.loads(document or b"")["attributes"]["emseg"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _digest(values: Any) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
