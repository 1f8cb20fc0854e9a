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


def has_field(kind: type, name: str) -> bool:
    """Return whether a dataclass has a field.

    Parameters
    ----------
    kind
        A dataclass.
    name
        Name of the field.

    Returns
    -------
    bool
        True if it has one.
    """
    return any(entry.name == name for entry in fields(kind))


def described(kind: type, name: str) -> str:
    """Return a field of a dataclass as it stands under *Parameters* in a NumPy docstring.

    Parameters
    ----------
    kind
        The dataclass.
    name
        The field.

    Returns
    -------
    str
    """
    (entry,) = (entry for entry in fields(kind) if entry.name == name)
    return f"{name} : {entry.type}\n    {entry.metadata['text']}"
