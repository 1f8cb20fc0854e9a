"""`emseg verify --checksums` and `--repair`: each stored byte is read, and what is damaged is computed again.

A checksum proves that a shard is as it was written, not that it belongs where it lies: that a shard was exchanged for
another block's, only `emseg verify` sees, which computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.errors import BlockError, OutputError
from emseg.model.device import Device
from emseg.model.source import ModelPlace, digest_of
from emseg.normalise import survey
from emseg.recipe import Recipe
from emseg.store.lease import Token, take_lease
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Address, Place
from emseg_workflows.events import Observer
from emseg_workflows.flows.record import model_of, recipe_of, volume_of
from emseg_workflows.flows.segment import segment
from emseg_workflows.flows.status import named
from emseg_workflows.report import Failure
from emseg_workflows.stop import Stop, StoppedError


@dataclass(frozen=True, slots=True)
class Soundness:
    """What of an output can be read back."""

    blocks: int
    """Blocks of the plan."""
    checked: int
    """Blocks of which each byte was read."""
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

    @property
    def holds(self) -> bool:
        """Whether each block, and each unit of a coarser level, is there and can be read back."""
        return not (self.damaged or self.missing or self.units_damaged or self.units_missing)

    @property
    def exit_code(self) -> int:
        """0 if all holds, else 3."""
        return 0 if self.holds else 3

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        return "\n".join(
            [
                f"blocks     {self.checked} of {self.blocks} checked, {len(self.damaged)} damaged, {self.missing} missing, "
                f"{self.repaired} repaired",
                *named("damaged", self.damaged),
                *self._coarser(),
                f"verdict    {'each checksum holds' if self.holds else 'NOT whole: --repair computes again what is not'}",
            ]
        )

    def _coarser(self) -> Iterator[str]:
        """What is told of coarser levels, if there are any."""
        if not self.units:
            return
        yield (
            f"levels     {self.units} units of coarser levels, {len(self.units_damaged)} damaged, "
            f"{self.units_missing} missing, {self.units_repaired} repaired"
        )
        yield from named("damaged", self.units_damaged)


def check(output: str | Place) -> Soundness:
    """What of an output can be read back; one block is in memory at a time, and nothing is computed.

    Raises
    ------
    OutputError
        If there is no output, or it is damaged as a whole.
    """
    stored = open_output(output)
    found = _examine(stored, Stop())
    return _soundness(stored, found, found)


def repair(
    output: str | Place,
    *,
    volume: str | Path | Address | None = None,
    model: str | Path | None = None,
    predictor: str | None = None,
    workers: int | None = None,
    device: Device = "cpu",
    stop: Stop | None = None,
    on_event: Observer | None = None,
) -> Soundness:
    """What of an output can be read back after the damaged and the missing blocks were computed again.

    A repair that is killed is gone on with by another one, or by any run.

    Parameters
    ----------
    output
        What a run has written.
    volume, model
        Where the volume and the model are, if not where the run found them.
    predictor
        The class of your own that the run predicted with, ``module:Class``, if it did.
    workers, stop, on_event
        As for `emseg_workflows.segment`.
    device
        What to compute on, ``cpu`` or ``cuda``; unless in this process, a worker on each GPU.

    Raises
    ------
    InputError
        If the output, its volume or its model is not there or not the same, or a run goes on.
    """
    stored, stop = open_output(output), stop or Stop()
    recipe = recipe_of(stored)
    plan = recipe.plan
    source, weights = _inputs(stored, recipe, volume, model, predictor)
    lease = take_lease(stored.records, stored.path)
    with lease.held():
        before = _examine(stored, stop)
        for level, found in reversed(list(zip(stored.levels, before, strict=True))):
            for index, error in found.damage.items():
                if error.fault != "store":  # a disk that is away for a while says nothing about what lies on it
                    Token(stored.records, lease.run).check()
                    level.remove(level.blocks.block(index).write)
    if any(found.spoilt for found in before):
        segment(
            *(source, stored.path),
            model=weights if isinstance(weights, Path) else None,
            predictor=predictor,
            region=plan.region,
            probabilities=recipe.probabilities,
            tta=recipe.tta,
            normalise=recipe.normalisation.scope,
            tile=plan.tile,
            threads=recipe.numerics.threads,
            workers=workers,
            cluster="cuda" if device == "cuda" and workers is None else "local",
            device=device,
            stop=stop,
            on_event=on_event,
        )
        if stop.number:
            raise StoppedError(stop.number)
    return _soundness(stored, before, _examine(stored, stop, [found.damage for found in before]))


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found of the write units of a level."""

    done: NDArray[np.bool_]
    """Which are written, ``(unit,) bool``."""
    damage: dict[int, BlockError]
    """Which of these cannot be read back, and why."""

    @property
    def missing(self) -> int:
        """How many are not written."""
        return int((~self.done).sum())

    @property
    def spoilt(self) -> int:
        """How many cannot be used."""
        return len(self.damage) + self.missing


def _examine(stored: Output, stop: Stop, again: Sequence[Iterable[int]] | None = None) -> list[_Found]:
    """What is found of each level, the finest first; given which units to read again, no others are read."""
    found: list[_Found] = []
    for number, level in enumerate(stored.levels):
        done, damage = level.done().ravel(), {}
        for index in np.flatnonzero(level.written()) if again is None else filter(done.__getitem__, again[number]):
            if stop.number:
                raise StoppedError(stop.number)
            try:
                level.check(level.blocks.block(int(index)).write, _name(stored, number, int(index)))
            except BlockError as error:
                damage[int(index)] = error
        found.append(_Found(done, damage))
    return found


def _soundness(stored: Output, before: list[_Found], now: list[_Found]) -> Soundness:
    """What is told of two looks."""
    damaged = [
        tuple(Failure(index, _place(stored, number, index), str(error)) for index, error in found.damage.items())
        for number, found in enumerate(now)
    ]
    repaired = [then.spoilt - found.spoilt for then, found in zip(before, now, strict=True)]
    return Soundness(
        blocks=now[0].done.size,
        checked=int(before[0].done.sum()) - int(stored.outside.sum()),
        damaged=damaged[0],
        missing=now[0].missing,
        repaired=repaired[0],
        units=sum(found.done.size for found in now[1:]),
        units_damaged=tuple(itertools.chain(*damaged[1:])),
        units_missing=sum(found.missing for found in now[1:]),
        units_repaired=sum(repaired[1:]),
    )


def _place(stored: Output, level: int, index: int) -> str:
    """The voxels of a write unit, of the finest level as they are typed after ``--roi``."""
    box = stored.levels[level].blocks.block(index).write
    return f"level {level}, {box}" if level else str(box.shift(stored.region.start))


def _name(stored: Output, level: int, index: int) -> str:
    return f"{'a unit' if level else 'the block'} {_place(stored, level, index)}"


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
