"""What the output of a network means: which output, which channel, which activation, and who says so.

Nothing is guessed from values: logits may lie between 0 and 1, and the channels of a network may exclude one another or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from emseg_core.errors import ModelError
from emseg_core.specs.heads import Activation

Ending = Literal["softmax", "log-softmax", "sigmoid"]
"""Last operation of a network that says what its output means; a softmax is one over the channels."""

AS_ENDED: dict[Ending, Activation] = {"softmax": "softmax", "log-softmax": "logits", "sigmoid": "sigmoid"}
"""Activation of an output by how the network ends. Logarithms of probabilities are logits."""
AS_POSTPROCESSED: dict[str, Activation] = {"softmax": "logits", "sigmoid": "sigmoid logits"}
"""Activation of an output by what is applied to it afterwards."""


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """An output of a network, as its file describes it."""

    name: str
    channels: int | None
    """Number of channels, if the file says."""
    ending: Ending | None
    """The last operation, if it is one that says what the output means."""
    rank: int | None = None
    """Number of axes, batch and channels included, if the file says."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What is stated about the output of a network."""

    settings: Mapping[str, Any]
    """Settings by name, of which ``output``, ``channel`` and ``activation`` are used."""
    postprocessing: tuple[str, ...]
    """What its package applies to the output."""
    path: str
    """Path of the network, for messages."""
    beside: str
    """Name of the file with settings beside the network, for messages."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the output of a network is taken for."""

    activation: Activation
    why: str
    """Who says so."""


def index_of(outputs: Sequence[NetworkOutput], stated: Statement) -> int:
    """Return which output of a network is used.

    Parameters
    ----------
    outputs
        All outputs of the network.
    stated
        What is stated about it.

    Returns
    -------
    int
        Its index.

    Raises
    ------
    ModelError
        If there are several and none is chosen, or the chosen one does not exist.
    """
    asked = stated.settings.get("output")
    listed = ", ".join(
        f'{number} ("{output.name}"{f", {output.channels} channels" if output.channels else ""})'
        for number, output in enumerate(outputs)
    )
    if asked is None and len(outputs) != 1:
        raise ModelError(
            f"{stated.path} has {len(outputs)} outputs, {listed}, and nothing says which one to use: write a line such as "
            f"output = 0 into {stated.beside} beside it, or a table [[heads]] for each group of channels that is wanted"
        )
    known: dict[Any, int] = {output.name: number for number, output in enumerate(outputs)}
    index = 0 if asked is None else asked if isinstance(asked, int) else known.get(asked, -1)
    if not 0 <= index < len(outputs):
        raise ModelError(f"{stated.path} has the outputs {listed}, but {stated.beside} selects {asked!r}: select one of them")
    return index


def meaning_of(output: NetworkOutput, stated: Statement, channels: int | None) -> Meaning:
    """Return what an output is taken for.

    Parameters
    ----------
    output
        The output.
    stated
        What is stated about it.
    channels
        Its number of channels, if known.

    Returns
    -------
    Meaning
        Its meaning.

    Raises
    ------
    ModelError
        If nothing says what it means, or what is stated does not fit.
    """
    channel = stated.settings.get("channel")
    if channel is not None and channels is not None and not 0 <= channel < channels:
        raise ModelError(
            f"{stated.path} has {channels} channels, counted from 0, but its settings select channel {channel}: correct them"
        )
    single = channels == 1 or channel is not None
    meaning = _told(output, stated) or _found(output, stated)
    if meaning is None:
        raise _unknown(stated, channels, single=single)
    shares = meaning.activation == "softmax" and channel is not None and channels != 1
    if shares and "activation" not in stated.settings:
        meaning = Meaning("sigmoid", meaning.why)  # one of several shares is a probability
    if single and not meaning.activation.startswith("sigmoid"):
        raise ModelError(
            f"{stated.path} gives a single channel to use, not {meaning.activation} of several ({meaning.why}): write "
            f'activation = "sigmoid logits" or activation = "sigmoid" into {stated.beside} beside it, or leave out channel'
        )
    if not single and channels is not None and meaning.activation.startswith("sigmoid"):
        raise ModelError(
            f"{stated.path} gives {channels} channels that do not exclude one another ({meaning.activation}, {meaning.why}): "
            f"choose the channel to use in {stated.beside} beside it, channel = 0 to {channels - 1}, or write a table "
            "[[heads]] for each group of channels that is wanted"
        )
    return meaning


def _told(output: NetworkOutput, stated: Statement) -> Meaning | None:
    """Return the meaning that the settings state."""
    activation: Activation | None = stated.settings.get("activation")
    if activation is None:
        return None
    agrees = output.ending is None or AS_ENDED[output.ending] == activation
    return Meaning(
        activation, f"stated in {stated.beside}" + ("" if agrees else f", although the network ends with a {output.ending}")
    )


def _found(output: NetworkOutput, stated: Statement) -> Meaning | None:
    """Return the meaning that follows from the last operation of the network and the package's postprocessing."""
    applied = [step for step in stated.postprocessing if step in AS_POSTPROCESSED]
    meaning = None
    if output.ending is not None:
        meaning = Meaning(AS_ENDED[output.ending], f"the network ends with a {output.ending}")
    if applied:
        if output.ending is not None:
            raise ModelError(
                f"{stated.path} ends with a {output.ending}, and its package applies a {applied[0]} after it, so one of the "
                f"two is a mistake: write activation = into {stated.beside} beside it, with what the network itself gives"
            )
        meaning = Meaning(AS_POSTPROCESSED[applied[0]], f"the package's postprocessing is a {applied[0]}")
    if "binarize" in stated.postprocessing and (meaning is None or not meaning.activation.startswith("sigmoid")):
        raise ModelError(
            f"the package {stated.path} binarizes an output that is not known to be a probability: write activation = "
            f"into {stated.beside} beside it, with what the network itself gives"
        )
    return meaning


def _unknown(stated: Statement, channels: int | None, *, single: bool) -> ModelError:
    """Return the question what the output means, with the possible answers."""
    one = (
        'activation = "sigmoid logits" (its sigmoid is the probability of the second class) or activation = "sigmoid" (it is '
        "that probability)"
    )
    if single:
        return ModelError(
            f"nothing says what the channel of {stated.path} means: write {one} into {stated.beside} beside it, or a table "
            "[[heads]] for distances and other values"
        )
    count, last = ("", "the last") if channels is None else (f"{channels} ", channels - 1)
    return ModelError(
        f"nothing says what the {count}channels of {stated.path} mean: write into {stated.beside} beside it "
        f'activation = "logits" (the {count}channels exclude one another: softmax, labels by argmax), '
        'activation = "softmax" (they are probabilities that add up to 1), or, for channels that do not exclude one another, '
        f"channel = 0 to {last} and {one}, or a table [[heads]] for each group of channels, which also stores affinities and "
        "other values"
    )
