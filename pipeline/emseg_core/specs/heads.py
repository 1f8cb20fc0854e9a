"""Heads of a network: named groups of its output channels that mean the same kind of thing, and the images that store them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from emseg_core.box import Triple, triple
from emseg_core.errors import InputError, ModelError

Activation = Literal["logits", "softmax", "sigmoid", "sigmoid logits", "none"]
"""What the channels of a network's output are.

Logits of mutually exclusive classes, or their probabilities (``softmax``); probabilities that do not exclude one another
(``sigmoid``), or their logits; or values that are no probabilities (``none``).
"""
HeadKind = Literal["classes", "independent", "affinities", "values"]
"""What the channels of a head mean.

``classes`` exclude one another: a voxel gets the label of the most probable one. ``independent`` classes do not: each has a
label image of its own. ``affinities`` tell whether two voxels at a fixed offset belong to the same object. ``values`` are
anything else, such as distances, flows or descriptors.
"""
Anchor = Literal["source", "destination"]
"""Voxel that an affinity is stored at: the one that the offset starts from, or the one that it leads to."""

ACTIVATIONS: dict[HeadKind, tuple[Activation, ...]] = {
    "classes": ("logits", "softmax", "sigmoid", "sigmoid logits"),
    "independent": ("sigmoid logits", "sigmoid"),
    "affinities": ("sigmoid logits", "sigmoid"),
    "values": ("none",),
}
"""Activations that each kind of head may have."""
CLASSES, PROBABILITIES = "classes", "probabilities"
"""Names of the images of exclusive classes."""
RESERVED = (CLASSES, PROBABILITIES, "labels", "emseg", "instances", "raw", "names")
"""Names that no other head or independent class may have: they mean something else in an output, or where it is shown."""
MAX_CHANNELS = 254
"""Most channels of a head."""
MAX_FLOAT32 = 3.4028234e38
"""Largest range of a scale: values are scaled in ``float32``."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""Names of heads and of independent classes, which are names of folders."""


@dataclass(frozen=True, slots=True)
class Head:
    """A named group of channels of a network's output.

    Raises
    ------
    ModelError
        If the fields are inconsistent.
    """

    name: str
    """Name of the head, and of the image that stores it."""
    kind: HeadKind
    """What its channels mean."""
    channels: tuple[str, ...]
    """Name of each channel; of classes, in the order of the label values from 0."""
    activation: Activation
    """What the network's output is."""
    source: tuple[int, ...] | None = None
    """Channels of the network's output, counted from 0; None for all of them. Outputs that a network has besides follow."""
    thresholds: tuple[float, ...] = ()
    """Probability from which a voxel belongs to each independent class."""
    offsets: tuple[Triple, ...] = ()
    """Offset (z, y, x) in voxels of each affinity."""
    anchor: Anchor = "source"
    """Voxel that affinities are stored at."""
    repulsive: bool = False
    """Whether an affinity of 1 means different objects instead of the same one."""
    scale: tuple[float, float] | None = None
    """Values stored as 0 and as 254 in ``uint8``; None to store values as ``float16``."""

    def __post_init__(self) -> None:
        where = f"the head {self.name!r}"
        if self.kind not in get_args(HeadKind):
            raise ModelError(f"{where} is of kind {self.kind!r}: use one of {', '.join(get_args(HeadKind))}")
        if self.kind != "classes" and not _is_name(self.name):
            raise ModelError(f"a head is named {self.name!r}: use letters, digits and _, and none of {', '.join(RESERVED)}")
        if not 1 <= len(self.channels) <= MAX_CHANNELS or len({*self.channels}) < len(self.channels):
            raise ModelError(f"{where} names {len(self.channels)} channels: give 1 to {MAX_CHANNELS} different names")
        if self.activation not in ACTIVATIONS[self.kind]:
            raise ModelError(
                f"{where} of kind {self.kind} has the activation {self.activation!r}: "
                f"use {' or '.join(map(repr, ACTIVATIONS[self.kind]))}"
            )
        if self.source is not None and (len({*self.source}) < len(self.source) or min(self.source, default=0) < 0):
            raise ModelError(f"{where} takes the channels {list(self.source)}: name different ones, counted from 0")
        width = 1 if self.activation.startswith("sigmoid") and self.kind == "classes" else len(self.channels)
        if self.source is not None and len(self.source) != width:
            raise ModelError(
                f"{where} takes {len(self.source)} channels, but names {len(self.channels)}: give one name for each"
            )
        self._check_kind(where)

    def _check_kind(self, where: str) -> None:
        """Check the fields that only some kinds have."""
        of_kind = {"thresholds": "independent", "offsets": "affinities", "scale": "values", "repulsive": "affinities"}
        for field, kind in of_kind.items():
            if getattr(self, field) and self.kind != kind:
                raise ModelError(f"{where} of kind {self.kind} has {field}, which only {kind} have: remove it")
        if self.anchor != "source" and self.kind != "affinities":
            raise ModelError(f"{where} of kind {self.kind} has anchor, which only affinities have: remove it")
        if self.kind == "independent":
            if bad := [name for name in self.channels if not _is_name(name)]:
                raise ModelError(
                    f"{where} has the class {bad[0]!r}: use letters, digits and _, and none of {', '.join(RESERVED)}"
                )
            if len(self.thresholds) != len(self.channels) or not all(0 < value < 1 for value in self.thresholds):
                raise ModelError(f"{where} has the thresholds {list(self.thresholds)}: give one between 0 and 1 for each class")
        if self.kind == "affinities":
            if len(self.offsets) != len(self.channels) or len({*self.offsets}) < len(self.offsets) or (0, 0, 0) in self.offsets:
                raise ModelError(
                    f"{where} has {len(self.channels)} channels and the offsets {[list(offset) for offset in self.offsets]}: "
                    "give a different one, other than 0 0 0, for each channel"
                )
            if self.anchor not in get_args(Anchor):
                raise ModelError(f"{where} has the anchor {self.anchor!r}: use {' or '.join(get_args(Anchor))}")
        if self.scale is not None and not _is_range(self.scale):
            raise ModelError(
                f"{where} has the scale {list(self.scale)}: give the two values that are stored as 0 and as 254, the lower one "
                "first, which differ in float32"
            )

    @property
    def limits(self) -> tuple[float, ...]:
        """Probability from which each channel counts as 1: the thresholds of independent classes, 0.5 of affinities."""
        return self.thresholds or (0.5,) * len(self.channels)

    def __str__(self) -> str:
        names = ", ".join(self.channels)
        match self.kind:
            case "classes":
                return f"{self.name}: {len(self.channels)} classes that exclude one another ({names}), from {self.activation}"
            case "independent":
                return f"{self.name}: classes that do not exclude one another ({names}), from {self.activation}"
            case "affinities":
                meaning = "different objects" if self.repulsive else "the same object"
                return (
                    f"{self.name}: affinities (1 = {meaning}) at the {self.anchor} voxel, offsets (z y x) {names}, "
                    f"from {self.activation}"
                )
        kept = "float16" if self.scale is None else f"uint8, 0 to 254 for {self.scale[0]:g} to {self.scale[1]:g}"
        return f"{self.name}: values ({names}), stored as {kept}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not the default ones as JSON values."""
        given = asdict(self)
        return {entry.name: given[entry.name] for entry in fields(self) if given[entry.name] != entry.default}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the head that `to_json` wrote.

        Raises
        ------
        ModelError
            If a field is missing, unknown or wrong.
        """
        try:
            found = dict(data)
            found["channels"] = tuple(map(str, found["channels"]))
            if "offsets" in found:
                found["offsets"] = tuple(triple(map(int, offset)) for offset in found["offsets"])
            for name, kind in (("source", int), ("thresholds", float), ("scale", float)):
                if found.get(name) is not None:
                    found[name] = tuple(map(kind, found[name]))
            return cls(**found)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the description of a head is not valid: {error}") from error


def _is_name(name: str) -> bool:
    """Return whether a head or an independent class may have this name."""
    return NAME.fullmatch(name) is not None and name.lower() not in RESERVED


def _is_range(scale: Sequence[float]) -> bool:
    """Return whether these are two numbers in rising order, also as ``float32``."""
    try:
        low, high = (struct.unpack("f", struct.pack("f", value))[0] for value in scale)
    except (OverflowError, ValueError):  # too large for float32, or not two
        return False
    return bool(0 < high - low <= MAX_FLOAT32)


def classes_head(classes: tuple[str, ...], activation: Activation = "logits", channel: int | None = None) -> Head:
    """Return the head of a network that has exclusive classes.

    Parameters
    ----------
    classes
        Name of each class, in the order of the label values from 0.
    activation
        What the network's output is.
    channel
        The only channel to use, if there are others.

    Returns
    -------
    Head
        The head.
    """
    return Head(CLASSES, "classes", classes, activation, None if channel is None else (channel,))


def classes_of(heads: Sequence[Head]) -> tuple[str, ...]:
    """Return the names of the classes that exclude one another.

    Parameters
    ----------
    heads
        Heads of a network, or those of them that an output stores.

    Returns
    -------
    tuple of str
        Name of each class, in the order of the label values from 0; empty if no head has such classes.
    """
    return next((head.channels for head in heads if head.kind == "classes"), ())


def check_heads(heads: Sequence[Head]) -> None:
    """Check that heads can belong to one network.

    Parameters
    ----------
    heads
        Heads of a network.

    Raises
    ------
    ModelError
        If there are none, two have the same name or classes of the same name, or two are classes.
    """
    if not heads:
        raise ModelError("a network has no heads: state at least one")
    if sum(head.kind == "classes" for head in heads) > 1:
        raise ModelError("two heads have classes that exclude one another: state one of them as independent, or as values")
    folders = [*(head.name for head in heads)]
    folders += [name for head in heads if head.kind == "independent" for name in head.channels]
    same = [name.lower() for name in folders]  # as some file systems do not tell them apart
    if twice := [name for name in folders if same.count(name.lower()) > 1]:
        raise ModelError(f"two heads or independent classes are named {twice[0]!r}: give each a name of its own")


def parts_of(heads: Sequence[Head]) -> Iterator[tuple[Head, slice]]:
    """Yield each head with its channels in a prediction, which holds the channels of all heads in their order.

    Parameters
    ----------
    heads
        Heads of a network.

    Yields
    ------
    head : Head
        A head.
    part : slice
        Its channels.
    """
    start = 0
    for head in heads:
        yield head, slice(start, start + len(head.channels))
        start += len(head.channels)


def channels_of(heads: Sequence[Head]) -> int:
    """Return the number of channels of a prediction.

    Parameters
    ----------
    heads
        Heads of a network.

    Returns
    -------
    int
        Channels of all heads together.
    """
    return sum(len(head.channels) for head in heads)


def chosen_heads(heads: Sequence[Head], names: Sequence[str] | None) -> tuple[Head, ...]:
    """Return the heads that a run stores.

    Parameters
    ----------
    heads
        Heads of the network.
    names
        Names of those to store; None for all of them.

    Returns
    -------
    tuple of Head
        In the order of the names, those with exclusive classes last.

    Raises
    ------
    InputError
        If there is no head of a name, or none is named.
    """
    known = {head.name: head for head in heads}
    wanted = list(known) if names is None else list(dict.fromkeys(names))
    if not wanted or (unknown := [name for name in wanted if name not in known]):
        said = f"no head {unknown[0]!r}" if wanted else "nothing to store"
        raise InputError(f"the model has {said}, but {', '.join(known)}: name some of these with --heads")
    return tuple(sorted((known[name] for name in wanted), key=lambda head: head.kind == "classes"))


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image of an output: voxels of one head in one form."""

    head: Head
    """The head."""
    name: str
    """Name of the image."""
    content: Literal["labels", "probabilities", "values"]
    """Labels ``(z, y, x)``; or probabilities or values ``(c, z, y, x)``."""
    names: tuple[str, ...]
    """Names of the label values, or of the channels."""

    @property
    def channels(self) -> int:
        """Length of the channel axis; 0 if there is none."""
        return 0 if self.content == "labels" else len(self.names)

    @property
    def dtype(self) -> Literal["uint8", "float16"]:
        """Type of the voxels. In ``uint8`` 255 means not computed, in ``float16`` NaN does."""
        return "float16" if self.content == "values" and self.head.scale is None else "uint8"


def images_of(heads: Sequence[Head], probabilities: bool) -> tuple[StoredImage, ...]:
    """Return the images that store heads, in the order of writing: where the last one exists, all others do.

    Parameters
    ----------
    heads
        The heads that a run stores; those with exclusive classes come last.
    probabilities
        Whether probabilities of classes are stored beside their labels.

    Returns
    -------
    tuple of StoredImage
        The images.
    """
    images: list[StoredImage] = []
    for head in heads:
        if head.kind == "values":
            images.append(StoredImage(head, head.name, "values", head.channels))
        elif head.kind == "affinities" or probabilities:
            name = PROBABILITIES if head.kind == "classes" else head.name
            images.append(StoredImage(head, name, "probabilities", head.channels))
        if head.kind == "independent":
            images += [StoredImage(head, name, "labels", ("background", name)) for name in head.channels]
        elif head.kind == "classes":
            images.append(StoredImage(head, CLASSES, "labels", head.channels))
    return tuple(images)
