"""Types of option values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from emseg_core.box import Triple, triple

if TYPE_CHECKING:
    from emseg_core.store.files.place import Place


class Location(click.ParamType["Place"]):
    """A volume or an output: a path, or an address, of which a path would lose a slash."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ARG002
        """Parse the place."""
        from emseg_core.store.files.place import parse_place

        return parse_place(value)


class LocationOrNothing(click.ParamType["Place | Literal['']"]):
    """A volume after an option that may also be given without one, which is ''."""

    name = "path"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Place | Literal[""]:
        """Parse the place, if one is given."""
        return Location().convert(value, param, ctx) if value else ""


class Numbers(click.ParamType[Triple]):
    """Three whole numbers, ``z,y,x``."""

    name = "z,y,x"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        """Parse the numbers."""
        try:
            return triple(int(part) for part in value.split(",")) if isinstance(value, str) else triple(value)
        except ValueError:
            self.fail(f"{value!r} is not three whole numbers z,y,x", param, ctx)


class GpuNumbers(click.ParamType[tuple[int, ...]]):
    """Numbers of GPUs, ``0,2``."""

    name = "n,n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the numbers."""
        try:
            return tuple(int(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers n,n", param, ctx)


class Pair(click.ParamType[tuple[int, int]]):
    """Two whole numbers with a colon between, ``1:8``."""

    def __init__(self, name: str) -> None:
        """Make the type; `name` says what the numbers are, ``min:max``."""
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse the two numbers."""
        try:
            first, second = (int(part) for part in value.split(":")) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not two whole numbers {self.name}", param, ctx)
        return first, second


class Declared(click.ParamType[tuple[float, str]]):
    """A grey value and a class, ``0=inside``."""

    name = "value=class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        """Parse both."""
        try:
            number, name = value.split("=") if isinstance(value, str) else value
            return float(number), name
        except ValueError:
            self.fail(f"{value!r} is not a grey value and a class, value=class", param, ctx)


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
