"""What an output says about itself, kept twice: all that is stored beside the voxels follows from it.

    OUT/zarr.json               attributes ``emseg``: the recipe, and how the output is laid out
    OUT/labels/NAME/zarr.json   attributes ``emseg``: how these instance labels were made
    OUT/emseg/zarr.json         attributes ``emseg``: a copy of the one as ``root``, and of the others by name as ``instances``

Each of these holds the SHA-256 of the rest of it, so that one that is damaged is known, and the other one counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from emseg.store.arrays import describe_group
from emseg.store.files import Files, find
from emseg.store.records import FOLDER
from emseg.store.remote import NODE

SELF = "output"
"""Key under which an output describes itself."""
DIGEST = "sha256"
"""Key of the SHA-256 of all other keys."""
OLDER = {
    True: ({"recipe"}, {SELF, "fingerprint", "model"}),
    False: ({"labelling", "recipe", "generation", "missing"}, {"fingerprint", "segments"}),
}
"""Keys of what roots, and what instance labels said before they had a digest: those that the fingerprint is of, and others."""
COPY = f"{FOLDER}/{NODE}"
"""The file with the copies."""


def with_digest(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description as JSON values, with its digest."""
    values = json.loads(json.dumps({key: value for key, value in description.items() if key != DIGEST}))
    return {**values, DIGEST: _digest(values)}


def holds(description: object) -> bool:
    """Whether a description is what was written, as far as it can be told of an older one."""
    if not isinstance(description, dict):
        return False
    if DIGEST in description:
        return bool(description[DIGEST] == _digest({key: value for key, value in description.items() if key != DIGEST}))
    covered, others = OLDER[SELF in description]
    facts = {key: value for key, value in description.items() if key in covered}
    fingerprint = _digest(facts.get("recipe") if SELF in description else facts)
    return description.keys() <= covered | others and description.get("fingerprint", fingerprint) == fingerprint


def described(document: bytes | None) -> dict[str, Any] | None:
    """The description in the metadata of a group; None if there is none, or it is damaged."""
    found = _own(document)
    return found if holds(found) else None


def root_description(files: Files) -> dict[str, Any] | None:
    """What an output says about itself, or its copy says; None if neither is there and sound.

    Raises
    ------
    StoreError
        If the output is not there any more.
    """
    found = described(find_file(files, NODE))
    if found is not None and SELF in found:
        return found
    copy = _copy(files).get("root")
    return copy if isinstance(copy, dict) and holds(copy) and SELF in copy else None


def copied_descriptions(files: Files) -> dict[str, dict[str, Any]]:
    """What the copy says about each image of instance labels of the present generation, by name.

    Raises
    ------
    StoreError
        If the output is not there any more.
    """
    copies = _copy(files).get("instances")
    found = copies.items() if isinstance(copies, dict) else ()
    sound = {name: copy for name, copy in found if holds(copy)}
    if not sound:
        return {}
    generation = ((root_description(files) or {}).get(SELF) or {}).get("generation")
    return {name: copy for name, copy in sound.items() if copy.get("generation") == generation}


def copies(root: Mapping[str, Any], instances: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes of the group ``emseg``."""
    return {"emseg": {"root": root, "instances": {name: instances[name] for name in sorted(instances)}}}


def keep_copies(files: Files, instances: Mapping[str, Mapping[str, Any]]) -> None:
    """Has the group ``emseg`` hold what the root says by now, and these descriptions of instance labels.

    Raises
    ------
    OSError
        If the store refuses.
    """
    root = root_description(files)
    if root is not None:
        describe_group(files, FOLDER, copies(root, instances))


def find_file(files: Files, name: str) -> bytes | None:
    """A whole file of an output; None if it is not there while the output is.

    Raises
    ------
    StoreError
        If the output is not there any more.
    """
    found = files.read(name)
    if found is not None:
        return found
    return find(files, name, next((node for node in _nodes(name) if files.size(node) is not None), NODE))


def _nodes(name: str) -> Iterator[str]:
    """Files by one of which an output is known to be there when another file is not."""
    return (node for node in (NODE, COPY) if node != name)


def _copy(files: Files) -> dict[str, Any]:
    return _own(find_file(files, COPY)) or {}


def _own(document: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(document or b"")["attributes"]["emseg"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
