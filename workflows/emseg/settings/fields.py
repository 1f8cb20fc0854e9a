"""Fields of settings whose documentation and help are one text."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def setting(default: Any, text: str) -> Any:
    """Return a dataclass field whose text is both its documentation and the help of its option.

    Parameters
    ----------
    default
        Value of the field if none is given.
    text
        What the field means.

    Returns
    -------
    Any
        A `dataclasses.field`.
    """
    return field(default=default, metadata={"text": text})


def texts_of(kind: type) -> dict[str, str]:
    """Return the text of each field of a dataclass of settings."""
    return {entry.name: entry.metadata["text"] for entry in fields(kind)}
