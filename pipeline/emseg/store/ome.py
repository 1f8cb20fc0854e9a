"""OME-Zarr metadata as plain dictionaries: where stored voxels lie in space.

Read are versions 0.4 (attributes ``multiscales``, Zarr v2) and 0.5 (attributes ``ome.multiscales``, Zarr v3), written is
0.5: https://ngff.openmicroscopy.org/0.5/. The levels of a pyramid are its datasets, the finest first.
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeGuard

VERSION = "0.5"

LONGEST_NAME = 255
"""Most characters of a name, as in a file system."""

LENGTH_UNITS = (
    *("angstrom", "attometer", "centimeter", "decimeter", "exameter", "femtometer", "foot", "gigameter", "hectometer"),
    *("inch", "kilometer", "megameter", "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec", "petameter"),
    *("picometer", "terameter", "yard", "yoctometer", "yottameter", "zeptometer", "zettameter"),
)
"""Units of length that OME-Zarr knows."""


@dataclass(frozen=True, slots=True)
class Space:
    """Name, voxel size, place of the first voxel's centre, and unit of each stored axis."""

    names: tuple[str, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]

    def last(self, count: int) -> Space:
        """The last `count` axes alone."""
        return Space(self.names[-count:], self.scale[-count:], self.translation[-count:], self.units[-count:])

    def coarser(self, step: Sequence[int]) -> Space:
        """The axes of a level whose voxels each stand for `step` (z, y, x) of these, and have their centres in between."""
        count = len(self.names)
        factors = (1,) * (count - len(step)) + tuple(step[-count:])
        scale = tuple(size * factor for size, factor in zip(self.scale, factors, strict=True))
        shifts = (size * (factor - 1) / 2 for size, factor in zip(self.scale, factors, strict=True))
        return Space(self.names, scale, tuple(t + s for t, s in zip(self.translation, shifts, strict=True)), self.units)

    def with_channels(self) -> Space:
        """The same axes with a channel axis in front."""
        return Space(("c", *self.names), (1.0, *self.scale), (0.0, *self.translation), (None, *self.units))


def multiscales_of(attributes: Mapping[str, Any]) -> Any:
    """What the attributes of a group hold as ``multiscales``, unchecked; None if they hold none."""
    ome = attributes.get("ome")
    if isinstance(ome, Mapping) and "multiscales" in ome:
        return ome["multiscales"]
    return attributes.get("multiscales")


def channel_labels(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Name of each channel as the attributes of a group tell it under ``omero``, ``""`` where they do not.

    What is no such list tells nothing: it is transitional metadata, which no image needs.
    """
    ome = attributes.get("ome")
    omero = ome.get("omero") if isinstance(ome, Mapping) else attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else ()
    labels = (channel.get("label") if isinstance(channel, Mapping) else None for channel in _sequence(channels))
    return tuple(label if is_name(label) else "" for label in labels)


def level(multiscales: Any, number: int) -> tuple[str, Space]:
    """Path of the array of a level, relative to its group, and where its voxels lie.

    The transformations of the dataset are applied first, then those of the whole multiscale.

    Raises
    ------
    IndexError
        If there are not so many levels.
    ValueError
        If the metadata are not what OME-Zarr says, or the path leads out of the group.
    """
    multiscale = _mapping(_first(multiscales, "multiscales"), "multiscales[0]")
    _first(multiscale.get("datasets"), "datasets")
    where = f"datasets[{number}]"
    dataset = _mapping(multiscale["datasets"][number], where)
    path = dataset.get("path")
    if not is_name(path) or not PurePosixPath(path).parts:
        raise ValueError(f"the path of {where} is {_short(path)}, not the name of an array")
    if path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
        raise ValueError(f"the path of {where}, {path!r}, leads out of the group")
    names, units = _axes(multiscale.get("axes"))
    steps = dataset.get("coordinateTransformations")
    if not steps:
        raise ValueError(f"{where} has no coordinateTransformations")
    scale, translation = [1.0] * len(names), [0.0] * len(names)
    for step in (*_sequence(steps), *_sequence(multiscale.get("coordinateTransformations") or ())):
        _apply(_mapping(step, "a transformation"), scale, translation)
    if not all(math.isfinite(value) for value in (*scale, *translation)) or min(scale) <= 0:
        raise ValueError(f"scale {scale} and translation {translation} must be finite, the scale positive")
    return path, Space(names, tuple(scale), tuple(translation), units)


def levels(multiscales: Any) -> Iterator[tuple[str, Space]]:
    """Each level, the finest first.

    Raises
    ------
    ValueError
        As for `level`.
    """
    for number in itertools.count():
        try:
            yield level(multiscales, number)
        except IndexError:
            return


def multiscales(levels: Sequence[tuple[str, Space]], name: str) -> list[dict[str, Any]]:
    """Attributes ``multiscales`` of a group: the path of each level's array, relative to it, and where its voxels lie.

    The finest level is first.
    """
    space = levels[0][1]
    axes: list[dict[str, Any]] = []
    for axis, unit in zip(space.names, space.units, strict=True):
        kind = {"t": "time", "c": "channel"}.get(axis, "space")
        axes.append({"name": axis, "type": kind} | ({"unit": unit} if unit else {}))
    datasets = [{"path": path, "coordinateTransformations": _transformations(space)} for path, space in levels]
    return [{"name": name, "axes": axes, "datasets": datasets}]


def levels_at(prefix: str, finest: Space, steps: Sequence[Sequence[int]]) -> list[tuple[str, Space]]:
    """Path and place of each level, for `multiscales`: ``PREFIX0``, ``PREFIX1``, ... with these steps from each to the next."""
    factors = itertools.accumulate(
        steps, lambda factor, step: [f * s for f, s in zip(factor, step, strict=True)], initial=[1, 1, 1]
    )
    return [(f"{prefix}{level}", finest.coarser(factor)) for level, factor in enumerate(factors)]


def _transformations(space: Space) -> list[dict[str, Any]]:
    return [{"type": "scale", "scale": list(space.scale)}, {"type": "translation", "translation": list(space.translation)}]


def _apply(step: Mapping[str, Any], scale: list[float], translation: list[float]) -> None:
    """Put one transformation behind those applied so far, in place."""
    kind = step.get("type")
    if kind == "identity":
        return
    if kind not in ("scale", "translation"):
        raise ValueError(f"a transformation of type {_short(kind)} is not known; known are scale, translation and identity")
    values = numbers(step.get(kind), len(scale), str(kind))
    for axis, value in enumerate(values):
        if kind == "scale":
            scale[axis] *= value
            translation[axis] *= value
        else:
            translation[axis] += value


def numbers(value: Any, count: int, what: str) -> tuple[float, ...]:
    """A JSON list of `count` finite numbers.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    values = _sequence(value)
    if len(values) != count or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{what} is {_short(value)}, not {count} numbers, one per axis")
    try:
        found = tuple(float(v) for v in values)
    except OverflowError:
        found = (math.inf,)
    if not all(math.isfinite(v) for v in found):
        raise ValueError(f"{what} is {_short(value)}: the numbers must be finite")
    return found


def is_name(value: Any) -> TypeGuard[str]:
    """Whether a JSON value can name an axis, a unit or an array: text that is fit to print."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def _axes(value: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    names: list[str] = []
    units: list[str | None] = []
    for entry in _sequence(value):
        axis = _mapping(entry, "an axis")
        name, unit = axis.get("name"), axis.get("unit")
        if not is_name(name) or not (unit is None or is_name(unit)):
            raise ValueError(f"an axis has name {_short(name)} and unit {_short(unit)}, which must be short strings")
        names.append(name.lower())
        units.append(unit or None)
    if not names:
        raise ValueError("there are no axes")
    return tuple(names), tuple(units)


def _first(value: Any, what: str) -> Any:
    if not _sequence(value):
        raise ValueError(f"{what} is {_short(value)}, not a list with at least one entry")
    return value[0]


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {_short(value)}, not an object")
    return value


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # not repr, which gives up on what is nested as deep as JSON can be
    return text if len(text) <= 60 else text[:57] + "..."
