"""Whose files these are: a run changes them only while the file that names the owner is its own.

    OUT/emseg/identity.json    {"output": "5e0c...", "run": 2, "holder": "91ab..."}

``output`` is drawn when an output gets its first run, and again where all runs are missing, as in a copy that was restored
without them; ``holder`` is drawn by each run. So a run notices that another one has taken over, and also that another output
lies at the same place.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import Any

from emseg.errors import OrphanError

IDENTITY = "emseg/identity.json"


def identity_document(output: str, run: int, holder: str) -> bytes:
    """The file that makes a run the owner of an output."""
    return (json.dumps({"output": output, "run": run, "holder": holder}, indent=2) + "\n").encode()


def output_named(document: bytes | None) -> str:
    """The identity of the output that such a file names; empty if it cannot be read."""
    named = _parsed(document).get("output")
    return named if isinstance(named, str) else ""


class Owned:
    """Files that can be changed by their owner alone."""

    owner: bytes | None = None
    """What `IDENTITY` must hold for them to be changed; None for anything."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A whole file; None if it is not there."""

    def check_owner(self) -> None:
        """Nothing, if they still belong to their owner.

        Raises
        ------
        OrphanError
            If they belong to another run or another output, or nothing there tells.
        OSError
            If the store refuses to tell.
        """
        if self.owner is None:
            return
        found = self.read(IDENTITY)
        if found != self.owner:
            raise OrphanError(_loss(_parsed(self.owner), _parsed(found), gone=found is None))


def _loss(mine: dict[str, Any], theirs: dict[str, Any], *, gone: bool) -> str:
    """Why a run may not write any more."""
    if gone:
        why = f"the output was removed, or has lost its {IDENTITY}"
    elif theirs.get("output") == mine["output"] and isinstance(theirs.get("run"), int):
        why = f"run {theirs['run']} has taken over the output"
    else:
        why = "another output is in its place"
    return f"run {mine['run']} may not write any more, as {why}: stop it"


def _parsed(document: bytes | None) -> dict[str, Any]:
    try:
        read = json.loads(document or b"")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
