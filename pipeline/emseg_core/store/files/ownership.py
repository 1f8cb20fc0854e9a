"""Ownership of an output's files: a run changes them only while the identity file is its own.

    OUT/emseg/identity.json    {"output": "5e0c...", "run": 2, "holder": "91ab..."}

``output`` is drawn when an output gets its first run, and again where the records of all runs are missing, as in a copy
that was restored without them. ``holder`` is drawn by each run. So a run notices that another run has taken over, and also
that another output has been put in the same place.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from typing import Any

from emseg_core.errors import OrphanError

IDENTITY = "emseg/identity.json"
"""Name of the identity file, within the output."""


def identity_document(output: str, run: int, holder: str) -> bytes:
    """Return the content of the identity file that makes a run the owner of an output.

    Parameters
    ----------
    output
        Identity of the output.
    run
        Number of the run.
    holder
        Identity of the process that runs it.

    Returns
    -------
    bytes
        The content.
    """
    return (json.dumps({"output": output, "run": run, "holder": holder}, indent=2) + "\n").encode()


def output_identity(document: bytes | None) -> str:
    """Return the identity of the output that an identity file names; empty if the file cannot be read.

    Parameters
    ----------
    document
        Content of an identity file; None if there is none.

    Returns
    -------
    str
        The identity.
    """
    named = _parsed(document).get("output")
    return named if isinstance(named, str) else ""


class OwnedFiles:
    """Files that only their owner may change."""

    owner: bytes | None = None
    """Content that `IDENTITY` must have for the files to be changed; None to allow anyone."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is no such file.

        Parameters
        ----------
        name
            Path relative to the output.

        Returns
        -------
        bytes or None
            The content.
        """

    def check_owner(self) -> None:
        """Check that the files still belong to their owner.

        Raises
        ------
        OrphanError
            If they belong to another run or another output, or the identity file is missing.
        OSError
            If the store refuses to read it.
        """
        if self.owner is None:
            return
        found = self.read(IDENTITY)
        if found != self.owner:
            raise OrphanError(_loss(_parsed(self.owner), _parsed(found), gone=found is None))


def _loss(mine: dict[str, Any], theirs: dict[str, Any], *, gone: bool) -> str:
    """Explain why a run may not write any more."""
    if gone:
        why = f"the output was removed, or has lost its {IDENTITY}"
    elif theirs.get("output") == mine["output"] and isinstance(theirs.get("run"), int):
        why = f"run {theirs['run']} has taken over the output"
    else:
        why = "another output is in its place"
    return f"run {mine['run']} may not write any more, as {why}: stop it"


def _parsed(document: bytes | None) -> dict[str, Any]:
    """Parse an identity file; an empty mapping if it is missing or damaged."""
    try:
        read = json.loads(document or b"")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
