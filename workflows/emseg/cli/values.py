"""Types of option values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import click

from emseg_core.box import triple
from emseg_core.store.files.place import Place, parse_place


class Location(click.ParamType["Place"]):
    """A volume or an output: a path, or an address, as a path would drop one of its slashes."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ARG002
        """Parse the place."""
        return parse_place(value)


class LocationOrNothing(click.ParamType["Place | Literal['']"]):
    """A volume after an option that may also be given without one, which is ''."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place | Literal[""]:
        """Parse the place, if one is given."""
        return Location().convert(value, param, ctx) if value else ""


class Parsed(click.ParamType[Any]):
    """A value that is typed as parts with a separator between; a settings file has a list of them."""

    def __init__(self, name: str, form: str, separator: str, value_of: Callable[[Iterable[Any]], Any]) -> None:
        """Make the type.

        Parameters
        ----------
        name
            The form in brief, for the help.
        form
            The form in words, for refusals.
        separator
            Separator of the parts.
        value_of
            Returns the value that the parts give, or raises `ValueError`.
        """
        self.name, self._form, self._separator, self._value_of = name, form, separator, value_of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the value."""
        try:
            return self._value_of(value.split(self._separator) if isinstance(value, str) else value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not {self._form}", param, ctx)


def _whole(parts: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(part) if isinstance(part, str) else part for part in parts)


def _two(parts: Iterable[Any]) -> tuple[int, int]:
    first, second = _whole(parts)
    return first, second


def _value_and_class(parts: Iterable[Any]) -> tuple[float, str]:
    number, name = parts
    return float(number), name


def _names(parts: Iterable[Any]) -> tuple[str, ...]:
    names = tuple(str(part).strip() for part in parts)
    if not all(names):
        raise ValueError("a name is empty")
    return names


def pair(name: str) -> Parsed:
    """Return the type of two whole numbers, ``1:8``; `name` describes them, such as ``min:max``."""
    return Parsed(name, f"two whole numbers {name}", ":", _two)


NAMES = Parsed("NAME,...", "names separated by commas", ",", _names)
TRIPLE = Parsed("z,y,x", "three whole numbers z,y,x", ",", lambda parts: triple(_whole(parts)))
GPUS = Parsed("n,n", "a list of whole numbers n,n", ",", _whole)
EMPTY = Parsed("value=class", "a grey value and a class, value=class", "=", _value_and_class)


class Meaning(click.ParamType[dict[str, tuple[int, ...]]]):
    """The values of each class in a truth, ``membrane=0,inside=128+255``."""

    name = "class=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, tuple[int, ...]]:
        """Parse the values of each class."""
        if not isinstance(value, str):
            return dict(value)
        meaning: dict[str, tuple[int, ...]] = {}
        try:
            for part in value.split(","):
                name, values = part.split("=")
                if name in meaning:
                    self.fail(f"{value!r} names {name} twice: join its values with +", param, ctx)
                meaning[name] = tuple(int(number) for number in values.split("+"))
        except ValueError:
            self.fail(f"{value!r} is not of the form class=value,class=value+value", param, ctx)
        return meaning
