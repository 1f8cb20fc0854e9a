"""`emseg verify --checksums` and `--repair`: each stored byte is read, and what is damaged is computed again.

A checksum proves that a shard is as it was written, not that it belongs where it lies: that a shard was exchanged for
another block's, only `emseg verify` sees, which computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emseg.errors import BlockError, OutputError
from emseg.grid.plan import Plan
from emseg.model.bundled import resolve_model
from emseg.model.device import Device
from emseg.model.header import model_digest
from emseg.normalise import survey
from emseg.recipe import Recipe
from emseg.store.lease import Token, take_lease
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.records import FolderRecords
from emseg_workflows.events import Observer
from emseg_workflows.flows.record import input_of, recipe_of, volume_of
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

    @property
    def holds(self) -> bool:
        """Whether each block is there and can be read back."""
        return not (self.damaged or self.missing)

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
                f"verdict    {'each checksum holds' if self.holds else 'NOT whole: --repair computes again what is not'}",
            ]
        )


def check(output: str | Path) -> Soundness:
    """What of an output can be read back; one block is in memory at a time, and nothing is computed.

    Raises
    ------
    OutputError
        If there is no output, or it is damaged as a whole.
    """
    stored = open_output(output)
    plan, done = recipe_of(stored).plan, stored.done_units().ravel()
    damaged = tuple(_failure(plan, index, error) for index, error in _damage(stored, plan, np.flatnonzero(done), Stop()))
    return Soundness(len(plan), int(done.sum()), damaged, int((~done).sum()))


def repair(
    output: str | Path,
    *,
    volume: str | Path | None = None,
    model: str | Path | None = None,
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
    source, weights = _inputs(stored, recipe, volume, model)
    lease = take_lease(FolderRecords(stored.records), stored.path)
    with lease.held():
        done = stored.done_units().ravel()
        damage = dict(_damage(stored, plan, np.flatnonzero(done), stop))
        for index, error in damage.items():
            if error.fault != "store":  # a disk that is away for a while says nothing about what lies on it
                Token(stored.records, lease.run).check()
                stored.remove_unit(plan.block(index).write)
    if damage or not done.all():
        segment(
            *(source, stored.path),
            model=weights,
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
    now = stored.done_units().ravel()
    again = [index for index in damage if now[index]]
    damaged = tuple(_failure(plan, index, error) for index, error in _damage(stored, plan, again, stop))
    missing, spoilt = int((~now).sum()), len(damage) + int((~done).sum())
    return Soundness(len(plan), int(done.sum()), damaged, missing, spoilt - len(damaged) - missing)


def _damage(stored: Output, plan: Plan, blocks: Iterable[int], stop: Stop) -> Iterator[tuple[int, BlockError]]:
    """Each of these blocks that cannot be read back, and why."""
    for index in map(int, blocks):
        if stop.number:
            raise StoppedError(stop.number)
        try:
            stored.check_unit(plan.block(index).write)
        except BlockError as error:
            yield index, error


def _failure(plan: Plan, index: int, error: BlockError) -> Failure:
    return Failure(index, str(plan.block(index).write), str(error))


def _inputs(stored: Output, recipe: Recipe, volume: str | Path | None, model: str | Path | None) -> tuple[Path, Path]:
    """Paths of the volume and the model that the output was made from: proven before anything is removed."""
    source = volume_of(stored, volume)
    weights = input_of(stored, "model", resolve_model(model) if model is not None else None)
    _, digest = survey(source, recipe.normalisation.scope)
    found = replace(recipe, volume_digest=digest, model_digest=model_digest(weights))
    if differences := "; ".join(recipe.differences(found)):
        raise OutputError(
            f"{stored.path} was made from another volume or model than {source.path} and {weights} (there / now): "
            f"{differences}: give the right ones with --volume and --model"
        )
    return source.path, weights
