"""`emseg verify --checksums` and `--repair`: read every stored byte, and compute damaged parts again.

A checksum proves that a shard is as it was written, not that it belongs where it is: only `emseg verify`, which computes,
notices that the shards of two blocks were exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.flows.label import label_again
from emseg.flows.records.completeness import (
    CLASSES,
    Flaw,
    Inventory,
    LevelCondition,
    check_level,
    image_levels,
    inventory,
    matches_mask,
)
from emseg.flows.records.run_log import model_of, recipe_of, volume_of
from emseg.flows.running.claim import claim_output, worker_token
from emseg.flows.running.draft import outside_of
from emseg.flows.segment import segment
from emseg.placement import WhereOnGpus, on_cpus
from emseg.runs.events import Observer
from emseg.runs.notices import log
from emseg.runs.stop import Stop, StoppedError
from emseg.runs.tally import Failure, failure_lines
from emseg.settings.run import RunSettings
from emseg_core.errors import OutputError
from emseg_core.model.model_place import ModelPlace, digest_of, files_of
from emseg_core.normalise import survey
from emseg_core.printable import printable_lines
from emseg_core.recipe import Recipe
from emseg_core.store.files.atomic_write import output_error
from emseg_core.store.files.lease import Token
from emseg_core.store.files.place import ZARR_JSON, Address, Place, parse_place
from emseg_core.store.outputs.level import REPAIR_HINT
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.zarrs.arrays import open_shards

Look = Mapping[str, Sequence[LevelCondition]]
"""The state of each level of each image, by the image's name."""


@dataclass(frozen=True, slots=True)
class ChecksumReport:
    """The result of reading an output back, and of its repair."""

    blocks: int
    """Blocks of the plan."""
    checked: int
    """Blocks of which every byte was read; none where the metadata needed for that are damaged."""
    damaged: tuple[Failure, ...]
    """Blocks that cannot be read back."""
    missing: int
    """Blocks that are not written; a file that is empty or shorter than its own index counts as none."""
    repaired: int = 0
    """Blocks that were damaged or missing and were computed again."""
    units: int = 0
    """Write units of coarser levels."""
    units_damaged: tuple[Failure, ...] = ()
    """Those that cannot be read back."""
    units_missing: int = 0
    """Those that are not written."""
    units_repaired: int = 0
    """Those that were damaged or missing and were built again."""
    instances: int = 0
    """Write units of instance labels, on all levels."""
    instances_damaged: tuple[Failure, ...] = ()
    """Those that cannot be read back."""
    instances_missing: int = 0
    """Those that are missing."""
    instances_repaired: int = 0
    """Those that were damaged or missing and were computed again."""
    files_damaged: tuple[Flaw, ...] = ()
    """Metadata, tables of segments and lists of masked blocks that are missing or damaged."""
    files_repaired: int = 0
    """Number of those that were missing or damaged and were restored."""

    @property
    def holds(self) -> bool:
        """Whether everything is there and can be read back."""
        damaged = self.damaged or self.units_damaged or self.instances_damaged or self.files_damaged
        return not (damaged or self.missing or self.units_missing or self.instances_missing)

    @property
    def exit_code(self) -> int:
        """0 if all holds, else 3."""
        return 0 if self.holds else 3

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        return printable_lines(
            [
                f"blocks     {self.checked} of {self.blocks} checked, {len(self.damaged)} damaged, {self.missing} missing, "
                f"{self.repaired} repaired",
                *failure_lines("damaged", self.damaged),
                *self._lines("levels", "coarser levels", "units"),
                *self._lines("instances", "instance labels", "instances"),
                f"files      metadata and tables, {len(self.files_damaged)} damaged or missing, {self.files_repaired} repaired",
                *(f"damaged    {flaw}" for flaw in self.files_damaged),
                "verdict    PASS: every checksum holds" if self.holds else f"verdict    FAIL: {REPAIR_HINT}",
            ]
        )

    def _lines(self, what: str, where: str, name: str) -> Iterator[str]:
        """Yield the results for the units that the fields with a name count, if there are any."""
        units, damaged, missing, repaired = (getattr(self, f"{name}{of}") for of in ("", "_damaged", "_missing", "_repaired"))
        if units:
            yield f"{what:<11}{units} units of {where}, {len(damaged)} damaged, {missing} missing, {repaired} repaired"
            yield from failure_lines("damaged", damaged)


def verify_checksums(output: str | Place) -> ChecksumReport:
    """Read every stored byte of an output, and check it; nothing is computed.

    One block is in memory at a time.

    Parameters
    ----------
    output
        The output of a run.

    Returns
    -------
    ChecksumReport

    Raises
    ------
    OutputError
        If there is no output, or its description is lost.
    """
    found = inventory(parse_place(output).absolute())
    flaws = list(found.flaws())
    if not _readable(flaws):
        return ChecksumReport(len(found.recipe.plan), 0, (), 0, files_damaged=tuple(flaws))
    stored = open_output(output)
    look = _look(stored, found, flaws, Stop())
    return _report(stored, look, look, flaws, flaws)


def repair(
    output: str | Place,
    *,
    volume: str | Path | Address | None = None,
    model: str | Path | Sequence[str | Path] | None = None,
    predictor: str | None = None,
    mask: str | Path | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[WhereOnGpus],
) -> ChecksumReport:
    """Restore the damaged and missing parts of an output.

    Metadata come first, as they follow from the output's own description; then blocks and the levels above them; then instance
    labels that are not complete. Another repair, or any run, resumes one that was killed.

    Parameters
    ----------
    output
        The output of a run.
    volume, model
        Paths of the volume and the model, if they were moved since the run; needed if blocks are damaged.
    predictor
        The class that the run predicted with, ``module:Class``, if it was one of your own.
    mask
        The mask of the run; needed if blocks are missing and the list of masked blocks is lost.
    stop, on_event
        As for `emseg.segment`.
    **where
        Fields of `Placement`; with ``device="cuda"`` alone, a worker on each GPU of this machine.

    Returns
    -------
    ChecksumReport

    Raises
    ------
    InputError
        If the output, its volume or its model is missing or another one, or a run is in progress.
    """
    place, stop, notify = parse_place(output).absolute(), stop or Stop(), on_event or log
    known = inventory(place)
    flaws = list(known.flaws())
    if any(known.damaged_documents()):
        _mend_documents(place, Path(mask) if mask is not None else None, notify)
    stored = open_output(place)
    recipe = recipe_of(stored)
    with claim_output(place, notify) as claim:
        found = inventory(place)
        left = list(found.flaws())
        before = _look(stored, found, left, stop)
        spoilt = any(part.unusable for part in before[CLASSES])
        inputs = _inputs(stored, recipe, volume, model, predictor) if spoilt else None
        if any(_lasting(part) for part in before[CLASSES]):
            with claim.held() as lease:
                _remove(open_output(place, worker_token(place, lease)), before[CLASSES])
    if inputs is not None:
        source, weights = inputs
        settings = RunSettings.of(recipe, model=files_of(weights), predictor=predictor)
        segment(source, place, settings, stop=stop, on_event=on_event, **_on_gpus(where))
    for name in found.instances:
        damaged = any(part.missing or _lasting(part) for part in before.get(name, ()))
        if (damaged or any(flaw.image == name for flaw in left)) and not stop.number:
            label_again(place, name, stop=stop, on_event=on_event, **on_cpus(where))
    if stop.number:
        raise StoppedError(stop.number)
    found = inventory(place)
    now = list(found.flaws())
    return _report(stored, before, _look(stored, found, now, stop, before), flaws, now)


def _readable(flaws: Sequence[Flaw]) -> bool:
    """Return whether the images of the run can be opened as they were written."""
    return not any(flaw.image == CLASSES or flaw.name == ZARR_JSON for flaw in flaws)


def _look(
    stored: Output, found: Inventory, flaws: Sequence[Flaw], stop: Stop, before: Look | None = None
) -> dict[str, list[LevelCondition]]:
    """Examine each image, the finest level first; after an earlier look, read only what was damaged then."""
    looked: dict[str, list[LevelCondition]] = {}
    for image, levels in image_levels(stored, found, flaws).items():
        then = before.get(image) if before is not None else None
        again = [part.damage for part in then] if then is not None else [None] * len(levels)
        looked[image] = [
            check_level(stored, image, number, level, stop, damage)
            for number, (level, damage) in enumerate(zip(levels, again, strict=True))
        ]
    return looked


def _lasting(part: LevelCondition) -> list[int]:
    """Return the damaged units; a disk that is unavailable for a while proves no damage."""
    return [index for index, error in part.damage.items() if error.fault != "store"]


def _remove(stored: Output, found: Sequence[LevelCondition]) -> None:
    """Remove damaged units, the coarsest level first. They are *not computed* afterwards."""
    for level, part in reversed(list(zip(stored.levels, found, strict=True))):
        for index in _lasting(part):
            level.remove(level.blocks.block(index).write)


def _mend_documents(place: Place, mask: Path | None, notify: Observer) -> None:
    """Write documents that are lost or damaged again, the root's metadata last."""
    with claim_output(place, notify) as claim, claim.held() as lease:
        token, found = worker_token(place, lease), inventory(place)
        damaged = {flaw.name for flaw in found.damaged_documents()}
        try:
            _put(found, damaged, token)
            if found.lost_mask:
                _put(replace(found, outside=_left_out(found, mask)), {found.generation.outside}, token)
        except OSError as error:
            raise output_error(place, error) from error


def _put(found: Inventory, names: set[str], token: Token) -> None:
    """Write documents of these names."""
    for name, document, _ in found.documents():
        if name in names:
            found.files.put(name, document, token.check)


def _left_out(found: Inventory, mask: Path | None) -> NDArray[np.bool_]:
    """Return the masked blocks, ``(z, y, x) bool``: those of the mask, or else all missing blocks."""
    recipe, place = found.recipe, found.files.place
    if (given := outside_of(mask, recipe.plan, recipe.volume)) is not None:
        if not matches_mask(given, recipe):
            raise OutputError(f"the mask {mask} is not the one that {place} was made with: give the right one with --mask")
        return given
    images = recipe.images[::-1]
    arrays = [open_shards(found.files, f"{found.generation.path(image)}/0", image.channels) for image in images]
    stored = [array.stored() for array in arrays]
    nowhere: NDArray[np.bool_] = ~np.logical_or.reduce(stored)
    for outside in (nowhere, *(~there for there in stored)):
        if matches_mask(outside, recipe):
            return outside
    raise OutputError(
        f"{place} has lost {found.generation.outside}, and blocks besides the masked ones: give the mask of its run with --mask"
    )


def _on_gpus(where: WhereOnGpus) -> WhereOnGpus:
    """Add the cluster of this machine's GPUs if predictors are to compute on GPUs and no other cluster is chosen."""
    anywhere = all(value in (None, "local") for name, value in where.items() if name != "device")
    return {**where, "cluster": "cuda"} if where.get("device") == "cuda" and anywhere else where


def _report(stored: Output, before: Look, now: Look, flaws: Sequence[Flaw], left: Sequence[Flaw]) -> ChecksumReport:
    """Report two looks, before and after a repair."""
    finest, *coarser = _counts(before, now, [CLASSES])
    instances = _counts(before, now, [name for name in now if name != CLASSES])
    return ChecksumReport(
        blocks=finest.units,
        checked=int(before[CLASSES][0].done.sum()) - int(stored.outside.sum()),
        damaged=finest.damaged,
        missing=finest.missing,
        repaired=finest.repaired,
        **_summed("units", coarser),
        **_summed("instances", instances),
        files_damaged=tuple(left),
        files_repaired=len({flaw.name for flaw in flaws} - {flaw.name for flaw in left}),
    )


@dataclass(frozen=True, slots=True)
class _Count:
    """Counts of a level."""

    units: int
    damaged: tuple[Failure, ...]
    missing: int
    repaired: int


def _summed(name: str, counts: Sequence[_Count]) -> dict[str, Any]:
    """Return the fields of a name in a report: the sums of counts."""
    return {
        name: sum(part.units for part in counts),
        f"{name}_damaged": tuple(failure for part in counts for failure in part.damaged),
        f"{name}_missing": sum(part.missing for part in counts),
        f"{name}_repaired": sum(part.repaired for part in counts),
    }


def _counts(before: Look, now: Look, images: Iterable[str]) -> list[_Count]:
    """Count what two looks found of each level; what could not be examined before counts as damaged then."""
    counts: list[_Count] = []
    for image in images:
        for number, found in enumerate(now[image]):
            damaged = tuple(Failure(index, found.where(index), str(error)) for index, error in found.damage.items())
            then = before[image][number].unusable if image in before else found.done.size
            counts.append(_Count(found.done.size, damaged, found.missing, then - found.unusable))
    return counts


def _inputs(
    stored: Output,
    recipe: Recipe,
    volume: str | Path | Address | None,
    model: str | Path | Sequence[str | Path] | None,
    predictor: str | None,
) -> tuple[Place, ModelPlace]:
    """Locate the volume and the model of the output, and prove them before anything is removed."""
    source = volume_of(stored, volume)
    weights = model_of(stored, model, predictor)
    _, digest = survey(source, recipe.normalisation.scope)
    found = replace(recipe, volume_digest=digest, model_digest=digest_of(weights))
    if differences := "; ".join(recipe.differences(found)):
        raise OutputError(
            f"{stored.path} was made from another volume or model than {source.path} and {weights}: "
            f"{differences}: give the right ones with --volume and --model"
        )
    return source.path, weights
