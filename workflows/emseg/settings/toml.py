"""Strict reading of TOML files into frozen dataclasses: unknown or missing keys and wrong types are errors, never guessed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from emseg_core.documents import read_document
from emseg_core.errors import InputError

T = TypeVar("T")


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a TOML file into a dataclass.

    Parameters
    ----------
    path
        The file.
    kind
        The dataclass; its fields that are dataclasses are tables in the file.

    Returns
    -------
    object
        An instance of `kind`.

    Raises
    ------
    InputError
        If the file is missing or is not TOML, or a key is unknown, missing or of the wrong type.
    """
    table = _parse(path)
    try:
        return build(table, kind, "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_table(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Read a flat TOML file whose keys are known.

    Parameters
    ----------
    path
        The file.
    known
        Keys that it may have.

    Returns
    -------
    dict
        Its values by their keys.

    Raises
    ------
    InputError
        If the file is missing or is not TOML, or has an unknown key.
    """
    table = _parse(path)
    _refuse_unknown(table, known, source=f"{path}: ")
    return table


def _parse(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file."""
    try:
        return tomllib.loads(read_document(path).decode())
    except FileNotFoundError as error:
        raise InputError(f"there is no configuration {path}: check the path") from error
    except OSError as error:
        raise InputError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the configuration {path} is not TOML: {error}") from error


def build(table: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Build a dataclass from a table.

    Parameters
    ----------
    table
        Keys and values.
    kind
        The dataclass.
    where
        Prefix of the table's keys in error messages, such as ``fit.augment.``.

    Returns
    -------
    object
        An instance of `kind`.

    Raises
    ------
    InputError
        If a key is unknown, missing or of the wrong type, or the dataclass rejects its values.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    _refuse_unknown(table, known, where=where)
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"the key {where}{name} is missing: add it")
    hints = get_type_hints(kind)
    return kind(**{name: _value(value, hints[name], where + name) for name, value in table.items()})


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], *, source: str = "", where: str = "") -> None:
    """Refuse a key that is not known, and name the nearest one."""
    for name in table:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)
            raise InputError(f"{source}unknown key {where}{name}: did you mean {where}{near[0]}?")


def _value(value: Any, kind: Any, where: str) -> Any:
    """Convert a TOML value to the type `kind` of a field.

    Whole numbers are accepted as floats, and arrays become tuples. None has no TOML value: it is the default of an omitted key.
    """
    if isinstance(kind, UnionType):
        kind = next(other for other in get_args(kind) if other is not NoneType)
    if is_dataclass(kind) and isinstance(value, dict):
        return build(value, kind, f"{where}.")  # type: ignore[arg-type]
    if kind is float and type(value) is int:
        return float(value)
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(f"{where} is {value!r}, but must be one of {', '.join(map(repr, get_args(kind)))}")
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: _value(entry, get_args(kind)[1], f"{where}.{name}") for name, entry in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) == len(value):
            return tuple(_value(entry, k, f"{where}[{n}]") for n, (entry, k) in enumerate(zip(value, kinds, strict=True)))
    raise InputError(f"{where} is {value!r}, but must be {_words(kind)}")


def _words(kind: Any) -> str:
    """Describe a type in terms of TOML."""
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        return f"a list of {_words(first)}" if rest == [Ellipsis] else f"a list of {len(rest) + 1}, each {_words(first)}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
    return names.get(kind, "a table")


def to_toml(table: Mapping[str, Any]) -> str:
    """Return a flat table as TOML.

    Parameters
    ----------
    table
        Texts, numbers, booleans and lists of these, by their keys.

    Returns
    -------
    str
        A line for each key; JSON writes all these values as TOML does.
    """
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
