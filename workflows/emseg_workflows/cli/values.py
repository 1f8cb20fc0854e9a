"""Values as they are typed after options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from emseg.box import Triple, triple

if TYPE_CHECKING:
    from emseg.store.place import Place


class Location(click.ParamType["Place"]):
    """A volume or an output as it is typed: a path, or the address of a remote one, which a path would lose a slash of."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ARG002
        """Where it is."""
        from emseg.store.place import place_of  # noqa: PLC0415

        return place_of(value)


class LocationOrNothing(click.ParamType["Place | Literal['']"]):
    """A volume as it is typed after an option that may also stand without one: that is ''."""

    name = "path"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Place | Literal[""]:
        """Where it is, if that is said."""
        return Location().convert(value, param, ctx) if value else ""


class Numbers(click.ParamType[Triple]):
    """Three whole numbers as they are typed after ``--tile``: ``z,y,x``."""

    name = "z,y,x"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        """The numbers."""
        try:
            return triple(int(part) for part in value.split(",")) if isinstance(value, str) else triple(value)
        except ValueError:
            self.fail(f"{value!r} is not three whole numbers z,y,x", param, ctx)


class GpuNumbers(click.ParamType[tuple[int, ...]]):
    """Numbers of GPUs as they are typed after ``--gpus``: ``0,2``."""

    name = "n,n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        try:
            return tuple(int(part) for part in value.split(",")) if isinstance(value, str) else tuple(value)
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers n,n", param, ctx)


class Pair(click.ParamType[tuple[int, int]]):
    """Two whole numbers as they are typed after ``--adapt`` and ``--slices``, with a colon between: ``1:8``."""

    def __init__(self, name: str) -> None:
        """`name` says what they are, ``min:max``."""
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers."""
        try:
            first, second = (int(part) for part in value.split(":")) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not two whole numbers {self.name}", param, ctx)
        return first, second


class Declared(click.ParamType[tuple[float, str]]):
    """A grey value and a class as they are typed after ``--empty``: ``0=inside``."""

    name = "value=class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        """Both."""
        try:
            number, name = value.split("=") if isinstance(value, str) else value
            return float(number), name
        except ValueError:
            self.fail(f"{value!r} is not a grey value and a class, value=class", param, ctx)


class Meaning(click.ParamType[dict[str, tuple[int, ...]]]):
    """The values that stand for each class, as they are typed after ``--labels``: ``membrane=0,inside=128+255``."""

    name = "class=value,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, tuple[int, ...]]:
        """The values by the class's name."""
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
