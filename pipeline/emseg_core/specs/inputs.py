"""What the input channels of a network are, if it takes more than the grey values of a tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from emseg_core.errors import ModelError

InputKind = Literal["grey", "slices", "copies", "channels"]
"""What the channels are.

``grey``: one channel, the grey values. ``slices``: neighbouring z slices, of which the network labels the middle one.
``copies``: the same grey values in each. ``channels``: channels of the volume, each normalised by itself.
"""
TOLD: tuple[InputKind, ...] = ("slices", "copies")
"""Kinds that are told by their name; channels of the volume are told by their numbers."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The input channels of a network.

    Raises
    ------
    ModelError
        If their number does not fit their kind.
    """

    kind: InputKind = "grey"
    """What they are."""
    count: int = 1
    """Their number; of slices, always odd."""
    stacked: bool = False
    """Whether slices lie along z in an input of a single channel, ``(1, 1, count, y, x)``."""
    channels: tuple[int, ...] = ()
    """Channels of the volume, counted from 0, in the order of those of the network."""

    def __post_init__(self) -> None:
        fits = self.count == 1 if self.kind == "grey" else self.count > 1
        fits = fits and len(self.channels) == (self.count if self.kind == "channels" else 0)
        if self.kind not in get_args(InputKind) or not fits or (self.kind == "slices") > self.count % 2:
            raise ModelError(f"a network cannot have the inputs {self.kind!r} in {self.count} channels: correct its contract")

    @property
    def reach(self) -> int:
        """Number of slices on each side of the one that is labelled."""
        return self.count // 2 if self.kind == "slices" else 0

    def shape(self, plane: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of an input of the network.

        Parameters
        ----------
        plane
            Shape (y, x) of a tile, or (z, y, x) if the network is three-dimensional.

        Returns
        -------
        tuple of int
            Shape, batch and channels included.
        """
        return (1, 1, self.count, *plane) if self.stacked else (1, self.count, *plane)

    def __str__(self) -> str:
        match self.kind:
            case "slices":
                return f"{self.count} channels, which are neighbouring z slices; the middle one is labelled"
            case "copies":
                return f"{self.count} channels, which are copies of the grey value"
            case "channels":
                return f"{self.count} channels, which are the channels {', '.join(map(str, self.channels))} of the volume"
        return "1 channel, the grey value"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) if self.channels else {"kind": self.kind, "count": self.count, "stacked": self.stacked}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the inputs that `to_json` wrote."""
        return cls(**{**data, "channels": tuple(data.get("channels", ()))})


GREY = Inputs()
"""Those of a network that takes grey values alone."""


def check_told(told: Any, path: object) -> None:
    """Check what is told of input channels.

    Parameters
    ----------
    told
        One of `TOLD`, or a list of channels of the volume.
    path
        Where it is told, for messages.

    Raises
    ------
    ModelError
        If it is something else.
    """
    if isinstance(told, list):
        if len(told) < 2 or any(type(number) is not int or number < 0 for number in told) or len({*told}) < len(told):
            raise ModelError(
                f"inputs in {path} is {told!r}, not two or more different channels of the volume, counted from 0: correct it; "
                "a single channel is chosen with --channel"
            )
    elif told not in TOLD:
        raise ModelError(f"inputs in {path} is {told!r}, not {' or '.join(TOLD)}, or a list of channels: correct it")
