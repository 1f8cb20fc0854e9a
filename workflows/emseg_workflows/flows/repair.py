"""`emseg verify --checksums` and `--repair`: each stored byte is read, and what is damaged is made again.

A checksum proves that a shard is as it was written, not that it belongs where it lies: that a shard was exchanged for
another block's, only `emseg verify` sees, which computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.errors import OutputError
from emseg.model.device import Device
from emseg.model.source import ModelPlace, digest_of
from emseg.normalise import survey
from emseg.printable import printable_lines
from emseg.recipe import Recipe
from emseg.store.arrays import open_shards
from emseg.store.lease import Token
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Address, Place, place_of
from emseg.store.remote import NODE
from emseg.store.staging import output_error
from emseg_workflows.events import Event, Observer
from emseg_workflows.flows.label import label_again
from emseg_workflows.flows.outputs import claimed, token_of
from emseg_workflows.flows.plan import outside_of
from emseg_workflows.flows.record import model_of, recipe_of, volume_of
from emseg_workflows.flows.segment import segment
from emseg_workflows.flows.status import named
from emseg_workflows.flows.whole import (
    CLASSES,
    Flaw,
    Found,
    Inventory,
    examine,
    images_of,
    inventory,
    is_left_out,
)
from emseg_workflows.placement import WhereOnGpus, on_cpus
from emseg_workflows.report import Failure
from emseg_workflows.stop import Stop, StoppedError

Look = Mapping[str, Sequence[Found]]
"""What was found of each level of each image, by its name."""


@dataclass(frozen=True, slots=True)
class Soundness:
    """What of an output can be read back."""

    blocks: int
    """Blocks of the plan."""
    checked: int
    """Blocks of which each byte was read; none where the metadata that it takes are damaged."""
    damaged: tuple[Failure, ...]
    """Blocks that cannot be read back."""
    missing: int
    """Blocks that are not written; a file that is empty or shorter than its own index counts as none."""
    repaired: int = 0
    """Blocks that were damaged or missing, and have been computed again."""
    units: int = 0
    """Write units of coarser levels."""
    units_damaged: tuple[Failure, ...] = ()
    """Of these, those that cannot be read back."""
    units_missing: int = 0
    """Of these, those that are not written."""
    units_repaired: int = 0
    """Of these, those that were damaged or missing, and have been built again."""
    instances: int = 0
    """Write units of instance labels, on all levels."""
    instances_damaged: tuple[Failure, ...] = ()
    """Of these, those that cannot be read back."""
    instances_missing: int = 0
    """Of these, those that are not there."""
    instances_repaired: int = 0
    """Of these, those that were damaged or missing, and have been made again."""
    files_damaged: tuple[Flaw, ...] = ()
    """Metadata, tables of segments and what a mask left out, where that is missing or damaged."""
    files_repaired: int = 0
    """How many of these were, and have been made again."""

    @property
    def holds(self) -> bool:
        """Whether all that is stored is there and can be read back."""
        damaged = self.damaged or self.units_damaged or self.instances_damaged or self.files_damaged
        return not (damaged or self.missing or self.units_missing or self.instances_missing)

    @property
    def exit_code(self) -> int:
        """0 if all holds, else 3."""
        return 0 if self.holds else 3

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        return printable_lines(
            [
                f"blocks     {self.checked} of {self.blocks} checked, {len(self.damaged)} damaged, {self.missing} missing, "
                f"{self.repaired} repaired",
                *named("damaged", self.damaged),
                *_told("levels", "coarser levels", self.units, self.units_damaged, self.units_missing, self.units_repaired),
                *_told(
                    *("instances", "instance labels", self.instances, self.instances_damaged),
                    *(self.instances_missing, self.instances_repaired),
                ),
                f"files      metadata and tables, {len(self.files_damaged)} damaged or missing, {self.files_repaired} repaired",
                *(f"damaged    {flaw}" for flaw in self.files_damaged),
                f"verdict    {'each checksum holds' if self.holds else 'NOT whole: --repair makes again what is not'}",
            ]
        )


def _told(what: str, where: str, units: int, damaged: tuple[Failure, ...], missing: int, repaired: int) -> Iterator[str]:
    """What is told of units, if there are any."""
    if not units:
        return
    yield f"{what:<11}{units} units of {where}, {len(damaged)} damaged, {missing} missing, {repaired} repaired"
    yield from named("damaged", damaged)


def check(output: str | Place) -> Soundness:
    """What of an output can be read back; one block is in memory at a time, and nothing is computed.

    Raises
    ------
    OutputError
        If there is no output, or it does not say any more how it was made.
    """
    found = inventory(place_of(output).absolute())
    flaws = list(found.flaws())
    if not _readable(flaws):
        return Soundness(len(found.recipe.plan), 0, (), 0, files_damaged=tuple(flaws))
    stored = open_output(output)
    look = _look(stored, found, flaws, Stop())
    return _soundness(stored, look, look, flaws, flaws)


def repair(
    output: str | Place,
    *,
    volume: str | Path | Address | None = None,
    model: str | Path | None = None,
    predictor: str | None = None,
    mask: str | Path | None = None,
    device: Device | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[WhereOnGpus],
) -> Soundness:
    """What of an output can be read back after the damaged and the missing parts were made again.

    A repair that is killed is gone on with by another one, or by any run. Metadata are made first, as the output says itself
    what they are; then blocks are computed, and what is made of them; then instance labels that are not whole are made again.

    Parameters
    ----------
    output
        What a run has written.
    volume, model
        Where the volume and the model are, if not where the run found them; they are needed where blocks are damaged.
    predictor
        The class of your own that the run predicted with, ``module:Class``, if it did.
    mask
        The mask of the run; needed where what it left out is lost, and blocks are missing.
    device
        What to compute on; if that is ``cuda``, and nothing is said of where, a worker on each GPU of this machine.
    stop, on_event, **where
        As for `emseg_workflows.segment`.

    Raises
    ------
    InputError
        If the output, its volume or its model is not there or not the same, or a run goes on.
    """
    place, stop, notify = place_of(output).absolute(), stop or Stop(), on_event or _ignore
    known = inventory(place)
    flaws = list(known.flaws())
    if any(known.damaged_documents()):
        _mend_documents(place, Path(mask) if mask is not None else None, notify)
    stored = open_output(place)
    recipe = recipe_of(stored)
    with claimed(place, notify) as claim:
        found = inventory(place)
        left = list(found.flaws())
        before = _look(stored, found, left, stop)
        spoilt = any(part.spoilt for part in before[CLASSES])
        inputs = _inputs(stored, recipe, volume, model, predictor) if spoilt else None
        if any(_lasting(part) for part in before[CLASSES]):
            with claim.held() as lease:
                _remove(open_output(place, token_of(place, lease)), before[CLASSES])
    if inputs is not None:
        source, weights = inputs
        segment(
            *(source, place),
            model=weights if isinstance(weights, Path) else None,
            predictor=predictor,
            region=recipe.plan.region,
            probabilities=recipe.probabilities,
            tta=recipe.tta,
            normalise=recipe.normalisation.scope,
            tile=recipe.plan.tile,
            threads=recipe.numerics.threads,
            device=device,
            stop=stop,
            on_event=on_event,
            **_placed(where, device),
        )
    for name in found.instances:
        damaged = any(part.missing or _lasting(part) for part in before.get(name, ()))
        if (damaged or any(flaw.image == name for flaw in left)) and not stop.number:
            label_again(place, name, stop=stop, on_event=on_event, **on_cpus(where))
    if stop.number:
        raise StoppedError(stop.number)
    found = inventory(place)
    now = list(found.flaws())
    return _soundness(stored, before, _look(stored, found, now, stop, before), flaws, now)


def _readable(flaws: Sequence[Flaw]) -> bool:
    """Whether classes and probabilities can be opened as they were written."""
    return not any(flaw.image == CLASSES or flaw.name == NODE for flaw in flaws)


def _look(
    stored: Output, found: Inventory, flaws: Sequence[Flaw], stop: Stop, before: Look | None = None
) -> dict[str, list[Found]]:
    """What is found of each image, the finest level first; after another look, only what was damaged then is read again."""
    looked: dict[str, list[Found]] = {}
    for image, levels in images_of(stored, found, flaws).items():
        then = before.get(image) if before is not None else None
        again = [part.damage for part in then] if then is not None else [None] * len(levels)
        looked[image] = [
            examine(stored, image, number, level, stop, damage)
            for number, (level, damage) in enumerate(zip(levels, again, strict=True))
        ]
    return looked


def _lasting(part: Found) -> list[int]:
    """Which units are damaged; a disk that is away for a while says nothing about what lies on it."""
    return [index for index, error in part.damage.items() if error.fault != "store"]


def _remove(stored: Output, found: Sequence[Found]) -> None:
    """Makes what is damaged *not computed* again, the coarsest level first."""
    for level, part in reversed(list(zip(stored.levels, found, strict=True))):
        for index in _lasting(part):
            level.remove(level.blocks.block(index).write)


def _mend_documents(place: Place, mask: Path | None, notify: Observer) -> None:
    """Makes documents that are lost or damaged again, the root's metadata last."""
    with claimed(place, notify) as claim, claim.held() as lease:
        token, found = token_of(place, lease), inventory(place)
        damaged = {flaw.name for flaw in found.damaged_documents()}
        try:
            _put(found, damaged, token)
            if found.lost_mask:
                _put(replace(found, outside=_left_out(found, mask)), {found.generation.outside}, token)
        except OSError as error:
            raise output_error(place, error) from error


def _put(found: Inventory, names: set[str], token: Token) -> None:
    for name, document, _ in found.documents():
        if name in names:
            found.files.put(name, document, token.check)


def _left_out(found: Inventory, mask: Path | None) -> NDArray[np.bool_]:
    """What a mask left out, ``(z, y, x) bool``: by that mask, or as all blocks that are not there."""
    recipe, place = found.recipe, found.files.place
    if (given := outside_of(mask, recipe.plan, recipe.volume)) is not None:
        if not is_left_out(given, recipe):
            raise OutputError(f"the mask {mask} is not the one that {place} was made with: give the right one with --mask")
        return given
    arrays = [open_shards(found.files, f"{found.generation.labels}/0", 0)]
    if recipe.probabilities:
        classes = len(recipe.plan.model.classes)
        arrays.append(open_shards(found.files, f"{found.generation.probabilities}/0", classes))
    stored = [array.stored() for array in arrays]
    nowhere: NDArray[np.bool_] = ~np.logical_or.reduce(stored)
    for outside in (nowhere, *(~there for there in stored)):
        if is_left_out(outside, recipe):
            return outside
    raise OutputError(
        f"{place} has lost {found.generation.outside}, and blocks beside those that it left out: give the mask of its run "
        "with --mask"
    )


def _placed(where: WhereOnGpus, device: Device | None) -> WhereOnGpus:
    """Where predictors compute: on the GPUs here if these are asked for, and no place is."""
    anywhere = all(value in (None, "local") for value in where.values())
    return {**where, "cluster": "cuda"} if device == "cuda" and anywhere else where


def _soundness(stored: Output, before: Look, now: Look, flaws: Sequence[Flaw], left: Sequence[Flaw]) -> Soundness:
    """What is told of two looks."""
    finest, *coarser = _counts(before, now, [CLASSES])
    instances = _counts(before, now, [name for name in now if name != CLASSES])
    return Soundness(
        blocks=finest.units,
        checked=int(before[CLASSES][0].done.sum()) - int(stored.outside.sum()),
        damaged=finest.damaged,
        missing=finest.missing,
        repaired=finest.repaired,
        units=sum(part.units for part in coarser),
        units_damaged=tuple(itertools.chain(*(part.damaged for part in coarser))),
        units_missing=sum(part.missing for part in coarser),
        units_repaired=sum(part.repaired for part in coarser),
        instances=sum(part.units for part in instances),
        instances_damaged=tuple(itertools.chain(*(part.damaged for part in instances))),
        instances_missing=sum(part.missing for part in instances),
        instances_repaired=sum(part.repaired for part in instances),
        files_damaged=tuple(left),
        files_repaired=len({flaw.name for flaw in flaws} - {flaw.name for flaw in left}),
    )


@dataclass(frozen=True, slots=True)
class _Count:
    """What is told of a level."""

    units: int
    damaged: tuple[Failure, ...]
    missing: int
    repaired: int


def _counts(before: Look, now: Look, images: Iterable[str]) -> list[_Count]:
    """What is told of each level of images; what could not be looked at before was all to be made again."""
    counts: list[_Count] = []
    for image in images:
        for number, found in enumerate(now[image]):
            damaged = tuple(Failure(index, found.where(index), str(error)) for index, error in found.damage.items())
            then = before[image][number].spoilt if image in before else found.done.size
            counts.append(_Count(found.done.size, damaged, found.missing, then - found.spoilt))
    return counts


def _inputs(
    stored: Output,
    recipe: Recipe,
    volume: str | Path | Address | None,
    model: str | Path | None,
    predictor: str | None,
) -> tuple[Place, ModelPlace]:
    """Where the volume and the model are that the output was made from: proven before anything is removed."""
    source = volume_of(stored, volume)
    weights = model_of(stored, model, predictor)
    _, digest = survey(source, recipe.normalisation.scope)
    found = replace(recipe, volume_digest=digest, model_digest=digest_of(weights))
    if differences := "; ".join(recipe.differences(found)):
        raise OutputError(
            f"{stored.path} was made from another volume or model than {source.path} and {weights} (there / now): "
            f"{differences}: give the right ones with --volume and --model"
        )
    return source.path, weights


def _ignore(event: Event) -> None:
    """Nobody watches."""
