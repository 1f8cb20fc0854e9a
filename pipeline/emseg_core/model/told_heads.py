"""Heads of a network of others, as ``FILE.toml`` beside it tells them.

There is a table for each::

[[heads]]
name = "affinities"                            # name of the image; not needed for classes
kind = "affinities"                            # or "classes", "independent", "values"
output = "affs"                                # output of the network, by name or number from 0, if it has several
channels = [0, 1, 2]                           # channels of that output, from 0; default: all of them
activation = "sigmoid logits"                  # or "sigmoid"; classes: "logits" or "softmax"; values have none
offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]] # offset (z, y, x) in voxels of each affinity
anchor = "source"                              # voxel that an affinity is stored at, or "destination"
repulsive = false                              # whether 1 means different objects instead of the same one

[[heads]]
name = "organelles"
kind = "independent"
channels = [3, 4]
names = ["mito", "er"]                         # names of classes or of values
activation = "sigmoid logits"
threshold = 0.5                                # or a list with one for each class

[[heads]]
name = "distances"
kind = "values"
channels = [5]
scale = [-1.0, 1.0]                            # stored as uint8, 0 to 254 for this range; default: as float16
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from emseg_core.box import triple
from emseg_core.errors import ModelError
from emseg_core.model.output import NetworkOutput
from emseg_core.specs.heads import CLASSES, Activation, Head, HeadKind, channels_of, check_heads

Check = Callable[[Any], bool]


def _is(*types: type) -> Check:
    """Return a check that a value is of these types; a truth value is no number."""
    return lambda value: isinstance(value, types) and (bool in types or not isinstance(value, bool))


def _list_of(check: Check) -> Check:
    """Return a check that a value is a list of such values."""
    return lambda value: isinstance(value, list) and all(map(check, value))


_TEXT, _WHOLE, _NUMBER = _is(str), _is(int), _is(int, float)
KEYS: dict[str, tuple[str, Check]] = {
    "name": ("text", _TEXT),
    "kind": ("text", _TEXT),
    "output": ("a name or a whole number", _is(str, int)),
    "channels": ("a list of whole numbers", _list_of(_WHOLE)),
    "names": ("a list of texts", _list_of(_TEXT)),
    "activation": ("text", _TEXT),
    "threshold": ("a number or a list of numbers", lambda value: _NUMBER(value) or _list_of(_NUMBER)(value)),
    "offsets": ("a list with three whole numbers for each channel", _list_of(_list_of(_WHOLE))),
    "anchor": ("text", _TEXT),
    "repulsive": ("true or false", _is(bool)),
    "scale": ("a list of two numbers", _list_of(_NUMBER)),
}
"""Keys of a table: what the value of each is, and a check of that. To convert another value would be to guess."""


def read_heads(tables: Any, outputs: Sequence[NetworkOutput], beside: str) -> tuple[Head, ...]:
    """Read the tables of heads.

    Parameters
    ----------
    tables
        Value of ``heads`` in the settings.
    outputs
        Outputs of the network.
    beside
        Name of the file with the settings, for messages.

    Returns
    -------
    tuple of Head
        The heads, in the order of the tables. Their channels are counted over all outputs that are used.

    Raises
    ------
    ModelError
        If a key is unknown, missing or wrong, or a channel does not exist.
    """
    used = outputs_of(tables, outputs, beside)
    starts: dict[int, int] = {}
    for number, previous in zip(used, (None, *used), strict=False):
        starts[number] = 0 if previous is None else starts[previous] + _channels(outputs[previous], beside)
    try:
        heads = tuple(_head(table, outputs, starts, beside) for table in tables)
        check_heads(heads)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the heads in {beside} are not valid: {error}") from error
    return heads


def outputs_of(tables: Any, outputs: Sequence[NetworkOutput], beside: str) -> tuple[int, ...]:
    """Return the outputs that heads use.

    Parameters
    ----------
    tables
        Value of ``heads`` in the settings.
    outputs
        Outputs of the network.
    beside
        Name of the file with the settings, for messages.

    Returns
    -------
    tuple of int
        Their indices, in rising order.

    Raises
    ------
    ModelError
        If the tables are none, a key is unknown or has a wrong value, or an output does not exist.
    """
    if not isinstance(tables, list) or not tables or not all(isinstance(table, Mapping) for table in tables):
        raise ModelError(f"heads in {beside} is {tables!r}, not tables [[heads]]: correct it")
    for table in tables:
        _check_keys(table, beside)
    return tuple(sorted({_output(table, outputs) for table in tables}))


def numbered(tables: Any, names: Sequence[str], beside: str) -> list[dict[str, Any]]:
    """Return tables that name outputs by number, for a network whose file may give its outputs other names.

    Parameters
    ----------
    tables
        Value of ``heads`` in the settings.
    names
        Names of the outputs, in the order of those of the network.
    beside
        Name of the file with the settings, for messages.

    Returns
    -------
    list of dict
        The tables.

    Raises
    ------
    ModelError
        As `outputs_of`.
    """
    outputs = [NetworkOutput(name, None, None) for name in names]
    outputs_of(tables, outputs, beside)
    return [{**table, "output": _output(table, outputs)} for table in tables]


def check_channels(heads: Sequence[Head], channels: int, path: str) -> None:
    """Check that a network has the channels that its heads use.

    Parameters
    ----------
    heads
        The heads.
    channels
        Number of channels of all outputs that are used.
    path
        Path of the network, for messages.

    Raises
    ------
    ModelError
        If it has not.
    """
    for head in heads:
        wanted = channels_of([head]) if head.source is None else max(head.source) + 1
        wanted = 1 if head.source is None and head.kind == "classes" and head.activation.startswith("sigmoid") else wanted
        if wanted > channels or (head.source is None and wanted != channels):
            raise ModelError(f"the head {head.name!r} has {wanted} channels, but {path} gives {channels}: correct its table")


def _check_keys(table: Mapping[str, Any], beside: str) -> None:
    """Refuse keys that are unknown, and values of another type than their key has."""
    for key, value in table.items():
        if key not in KEYS:
            raise ModelError(f"a head has the unknown key {key!r} in {beside}: use {', '.join(KEYS)}")
        words, fits = KEYS[key]
        if not fits(value):
            raise ModelError(f"the head {table.get('name')!r} in {beside} has {key} = {value!r}, not {words}: correct it")


def _head(table: Mapping[str, Any], outputs: Sequence[NetworkOutput], starts: Mapping[int, int], beside: str) -> Head:
    """Return the head of one table."""
    kind = cast("HeadKind", table.get("kind"))
    name = str(table.get("name", CLASSES if kind == "classes" else ""))
    output = outputs[_output(table, outputs)]
    start, source = starts[_output(table, outputs)], table.get("channels")
    if source is not None:
        source = tuple(source)
        if min(source, default=0) < 0 or (output.channels is not None and max(source, default=-1) >= output.channels):
            raise ModelError(
                f"the head {name!r} takes the channels {list(source)}, but there are {output.channels or 'several'}, counted "
                "from 0: correct them"
            )
    count = len(source) if source is not None else output.channels
    if len(starts) > 1:  # several outputs are joined
        channels = source if source is not None else range(_channels(output, beside))
        source = tuple(start + channel for channel in channels)
    offsets = tuple(map(triple, table.get("offsets", ())))
    activation = cast("Activation", table.get("activation", "none" if kind == "values" else ""))
    if not activation:
        raise ModelError(f"the head {name!r} has no activation: say whether its channels are probabilities or their logits")
    two = kind == "classes" and activation.startswith("sigmoid")
    names = tuple(table.get("names", ())) or _names(kind, name, offsets, 2 if two else count)
    threshold = table.get("threshold", 0.5)
    thresholds = tuple(map(float, threshold)) if isinstance(threshold, list) else (float(threshold),) * len(names)
    scale = table.get("scale")
    return Head(
        name=name,
        kind=kind,
        channels=names,
        activation=activation,
        source=source,
        thresholds=thresholds if kind == "independent" or "threshold" in table else (),
        offsets=offsets,
        anchor=table.get("anchor", "source"),
        repulsive=table.get("repulsive", False),
        scale=None if scale is None else cast("tuple[float, float]", tuple(map(float, scale))),
    )


def _output(table: Mapping[str, Any], outputs: Sequence[NetworkOutput]) -> int:
    """Return the number of the output that a table tells by its name or number."""
    asked, head = table.get("output"), table.get("name")
    names = [output.name for output in outputs]
    known: dict[Any, int] = {**dict(zip(names, range(len(names)), strict=True)), **dict(enumerate(range(len(names))))}
    if asked is None and len(names) > 1:
        raise ModelError(f"the head {head!r} names none of the outputs {', '.join(names)}: add output = NAME")
    if (number := 0 if asked is None else known.get(asked)) is None:
        raise ModelError(f"the head {head!r} has the output {asked!r}, but there are {', '.join(names)}: name one of them")
    return number


def _channels(output: NetworkOutput, beside: str) -> int:
    """Return the number of channels of an output, which its file must say if others follow."""
    if output.channels is None:
        raise ModelError(
            f"heads in {beside} use several outputs, but the file does not say how many channels {output.name!r} has: export "
            "the network with fixed numbers of channels"
        )
    return output.channels


def _names(kind: HeadKind, head: str, offsets: Sequence[tuple[int, int, int]], count: int | None) -> tuple[str, ...]:
    """Return the usual names of channels."""
    if kind == "affinities":
        return tuple(" ".join(map(str, offset)) for offset in offsets)
    if count is None:
        raise ModelError(f"the head {head!r} does not say how many channels it has: give channels, or names")
    if kind == "classes":
        return ("background", "foreground") if count == 2 else tuple(f"class {number}" for number in range(count))
    return tuple(f"{head}_{number}" for number in range(count))
