"""OME-Zarr metadata as plain dictionaries: the position of stored voxels in space.

Versions 0.4 (attributes ``multiscales``, Zarr v2) and 0.5 (attributes ``ome.multiscales``, Zarr v3) are read, version 0.5 is
written: https://ngff.openmicroscopy.org/0.5/. The levels of a pyramid are its datasets, the finest first.
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
"""Version of OME-Zarr that is written."""

MAX_NAME_LENGTH = 255
"""Most characters of a name, as in a file system."""

LENGTH_UNITS = (
    *("angstrom", "attometer", "centimeter", "decimeter", "exameter", "femtometer", "foot", "gigameter", "hectometer"),
    *("inch", "kilometer", "megameter", "meter", "micrometer", "mile", "millimeter", "nanometer", "parsec", "petameter"),
    *("picometer", "terameter", "yard", "yoctometer", "yottameter", "zeptometer", "zettameter"),
)
"""Units of length that OME-Zarr allows."""


@dataclass(frozen=True, slots=True)
class Space:
    """Name, voxel size, position and unit of each stored axis."""

    names: tuple[str, ...]
    """Names of the axes."""
    scale: tuple[float, ...]
    """Voxel size, in the units."""
    translation: tuple[float, ...]
    """Position of the centre of the first voxel, in the units."""
    units: tuple[str | None, ...]
    """Unit of each axis; None if it has none."""

    def last(self, count: int) -> Space:
        """Return the last `count` axes alone.

        Parameters
        ----------
        count
            Number of axes.

        Returns
        -------
        Space
            These axes.
        """
        return Space(self.names[-count:], self.scale[-count:], self.translation[-count:], self.units[-count:])

    def coarser(self, step: Sequence[int]) -> Space:
        """Return the axes of a coarser level.

        Parameters
        ----------
        step
            Voxels (z, y, x) of these axes that one voxel of the coarser level covers; its centre is the centre of these.

        Returns
        -------
        Space
            The axes of that level.
        """
        count = len(self.names)
        factors = (1,) * (count - len(step)) + tuple(step[-count:])
        scale = tuple(size * factor for size, factor in zip(self.scale, factors, strict=True))
        shifts = (size * (factor - 1) / 2 for size, factor in zip(self.scale, factors, strict=True))
        return Space(self.names, scale, tuple(t + s for t, s in zip(self.translation, shifts, strict=True)), self.units)

    def with_channels(self) -> Space:
        """Return the same axes with a channel axis in front.

        Returns
        -------
        Space
            One axis more.
        """
        return Space(("c", *self.names), (1.0, *self.scale), (0.0, *self.translation), (None, *self.units))


def multiscales_of(attributes: Mapping[str, Any]) -> Any:
    """Return ``multiscales`` from the attributes of a group, unchecked; None if there is none.

    Parameters
    ----------
    attributes
        Attributes of the group.

    Returns
    -------
    Any
        A JSON value.
    """
    ome = attributes.get("ome")
    if isinstance(ome, Mapping) and "multiscales" in ome:
        return ome["multiscales"]
    return attributes.get("multiscales")


def channel_labels(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels from ``omero`` in the attributes of a group.

    These metadata are transitional and optional, so anything invalid is ignored.

    Parameters
    ----------
    attributes
        Attributes of the group.

    Returns
    -------
    tuple of str
        Name of each channel, ``""`` for one without a name; empty if there is no list of channels.
    """
    ome = attributes.get("ome")
    omero = ome.get("omero") if isinstance(ome, Mapping) else attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else ()
    labels = (channel.get("label") if isinstance(channel, Mapping) else None for channel in _sequence(channels))
    return tuple(label if is_name(label) else "" for label in labels)


def level(multiscales: Any, number: int) -> tuple[str, Space]:
    """Return the array of a level, and the position of its voxels.

    The transformations of the dataset are applied first, then those of the whole multiscale.

    Parameters
    ----------
    multiscales
        As `multiscales_of` returns it.
    number
        Level, 0 for the finest.

    Returns
    -------
    tuple of str and Space
        Path of the array, relative to its group, and its axes.

    Raises
    ------
    IndexError
        If there are fewer levels.
    ValueError
        If the metadata are not valid OME-Zarr, or the path leads out of the group.
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
    """Iterate over the levels, the finest first.

    Parameters
    ----------
    multiscales
        The value of ``multiscales``, unchecked.

    Yields
    ------
    tuple of str and Space
        Path and axes of a level, as `level` returns them.

    Raises
    ------
    ValueError
        If the metadata are not valid OME-Zarr, or a path leads out of the group.
    """
    for number in itertools.count():
        try:
            yield level(multiscales, number)
        except IndexError:
            return


def multiscales(levels: Sequence[tuple[str, Space]], name: str) -> list[dict[str, Any]]:
    """Return the attributes ``multiscales`` of a group.

    Parameters
    ----------
    levels
        Path of each level's array, relative to the group, and its axes; the finest level first.
    name
        Name of the image.

    Returns
    -------
    list of dict
        The metadata, to be stored as JSON.
    """
    space = levels[0][1]
    axes: list[dict[str, Any]] = []
    for axis, unit in zip(space.names, space.units, strict=True):
        kind = {"t": "time", "c": "channel"}.get(axis, "space")
        axes.append({"name": axis, "type": kind} | ({"unit": unit} if unit else {}))
    datasets = [{"path": path, "coordinateTransformations": _transformations(space)} for path, space in levels]
    return [{"name": name, "axes": axes, "datasets": datasets}]


def levels_at(prefix: str, finest: Space, steps: Sequence[Sequence[int]]) -> list[tuple[str, Space]]:
    """Return path and axes of each level, for `multiscales`.

    Parameters
    ----------
    prefix
        Beginning of the paths, which are ``PREFIX0``, ``PREFIX1``, ...
    finest
        Axes of the finest level.
    steps
        Step (z, y, x) from each level to the next, in voxels.

    Returns
    -------
    list of tuple of str and Space
        Path and axes of each level, the finest first.
    """
    factors = itertools.accumulate(
        steps, lambda factor, step: [f * s for f, s in zip(factor, step, strict=True)], initial=[1, 1, 1]
    )
    return [(f"{prefix}{level}", finest.coarser(factor)) for level, factor in enumerate(factors)]


def _transformations(space: Space) -> list[dict[str, Any]]:
    """Return the coordinate transformations of a dataset."""
    return [{"type": "scale", "scale": list(space.scale)}, {"type": "translation", "translation": list(space.translation)}]


def _apply(step: Mapping[str, Any], scale: list[float], translation: list[float]) -> None:
    """Apply one more transformation after those applied so far, in place."""
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
    """Read a JSON list of `count` finite numbers.

    Parameters
    ----------
    what
        What the list is, for the message.

    Returns
    -------
    tuple of float
        The numbers.

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
    """Return whether a JSON value can name an axis, a unit or an array: short, printable text.

    Parameters
    ----------
    value
        Any JSON value.

    Returns
    -------
    bool
        True for such a text.
    """
    return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH and value.isprintable()


def _axes(value: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    """Return the names and the units of the axes."""
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
    """Return the first entry of a list."""
    if not _sequence(value):
        raise ValueError(f"{what} is {_short(value)}, not a list with at least one entry")
    return value[0]


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Check that a JSON value is an object."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {_short(value)}, not an object")
    return value


def _sequence(value: Any) -> Sequence[Any]:
    """Return a JSON list, or an empty one for anything else."""
    return value if isinstance(value, list | tuple) else ()


def _short(value: Any) -> str:
    """Represent a value in at most 60 characters."""
    text = reprlib.repr(value)  # repr fails on JSON that is nested too deeply
    return text if len(text) <= 60 else text[:57] + "..."
