"""What a run computes, settled in two steps: a draft before any worker is there, the recipe once one has been tried."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import PlanError
from emseg.grid.cost import Cost, cost_of
from emseg.grid.layout import BLOCK_FLOPS, Limits, plan_volume
from emseg.grid.plan import Plan
from emseg.grid.symmetry import check_symmetric
from emseg.model.backend import backend_of
from emseg.model.device import Device
from emseg.model.source import ModelPlace, card_of, describe, digest_of, model_at, title_of
from emseg.normalise import Normalisation, Scope, survey
from emseg.recipe import Empty, Recipe
from emseg.specs.contract import Contract
from emseg.specs.network import NetworkSpec
from emseg.specs.numerics import Accuracy, Backend, Numerics, Precision
from emseg.specs.region import parse_region
from emseg.specs.volume import Part, VolumeSpec
from emseg.store.place import Place
from emseg.store.volume import open_volume
from emseg_workflows.bench import Choice, Trial
from emseg_workflows.flows.limits import check_chunks
from emseg_workflows.flows.plan import levels_for, outside_of
from emseg_workflows.placement import Executor

TRIED = 2**37
"""Floating-point operations of a run on the whole volume from which on a low precision is worth a trial: two seconds of a core.

A region is computed as the whole is, so that it equals the crop of a whole run.
"""
LONGEST = 600.0
"""Seconds that a block may be expected to take."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A run as far as volume and model tell what it computes."""

    path: Place
    """Of the volume."""
    volume: VolumeSpec
    volume_digest: str
    normalisation: Normalisation
    model_place: ModelPlace
    model: NetworkSpec
    model_digest: str
    card: dict[str, str]
    """Of the model."""
    region: Box | None
    tile: Triple | None
    """What was asked for."""
    limits: Limits
    plan: Plan
    probabilities: bool
    tta: bool
    steps: tuple[Triple, ...]
    """Of the output's coarser levels."""
    outside: NDArray[np.bool_] | None
    """Blocks that a mask leaves out, ``(z, y, x) bool`` on the plan's grid; None without one, or where it is as begun."""
    mask_path: Path | None
    empty: Empty | None
    threads: int
    begun: Recipe | None
    """Of the run that is gone on with."""

    @property
    def cost(self) -> Cost:
        """What the plan takes."""
        return cost_of(self.plan, self.volume, self.probabilities, self.tta, self.steps)

    @property
    def mask(self) -> str | None:
        """SHA-256 of which blocks are left out."""
        if self.outside is not None:
            return hashlib.sha256(np.packbits(self.outside).tobytes()).hexdigest()
        return self.begun.mask if self.begun is not None else None

    def with_plan(self, plan: Plan) -> Draft:
        """The same run by another plan."""
        return replace(self, plan=plan, outside=outside_of(self.mask_path, plan, self.volume))

    def recipe(self, numerics: Numerics, accuracy: Accuracy | None) -> Recipe:
        """What decides the output's bytes, if predictors compute so."""
        settings = (self.plan, numerics, self.probabilities, accuracy, self.tta, self.steps, self.mask, self.empty)
        own = title_of(self.model_place)
        return Recipe(self.volume, self.volume_digest, self.model_digest, self.normalisation, *settings, own)


def draft_run(
    volume: Place,
    part: Part,
    model: str | Path | None,
    predictor: str | None,
    region: str | Box | None,
    tile: Triple | None,
    normalise: Scope | None,
    *,
    probabilities: bool,
    tta: bool,
    pyramid: bool | None,
    mask: Path | None,
    empty: tuple[float, str] | None,
    threads: int,
    limits: Limits,
    begun: Recipe | None,
) -> Draft:
    """The draft of a run with these options, as for `segment`.

    Raises
    ------
    InputError
        If volume, model and options do not fit together.
    """
    place, source = model_at(model, predictor), open_volume(volume, part=_part(part, begun))
    spec, card, known = _described(place, begun)
    if tta:
        check_symmetric(spec)
    box = parse_region(region, source.spec) if isinstance(region, str) else region
    tile = tile or spec.only_tile
    plan = _plan(source.spec, spec, box, tile, begun, limits)
    check_chunks(source.spec, volume)
    normalisation, digest = survey(source, normalise or _trained_with(card))
    normalisation = normalisation if normalise else _told(card) or normalisation
    return Draft(
        path=source.path,
        volume=source.spec,
        volume_digest=digest,
        normalisation=normalisation,
        model_place=place.absolute() if isinstance(place, Path) else place,
        model=spec,
        model_digest=known,
        card=card,
        region=box,
        tile=tile,
        limits=limits,
        plan=plan,
        probabilities=probabilities,
        tta=tta,
        outside=outside_of(mask, plan, source.spec),
        mask_path=mask,
        empty=begun.empty if begun is not None and empty is None else _declared(empty, spec),
        steps=begun.steps if begun is not None and pyramid is None else levels_for(source.spec, plan.region, pyramid),
        threads=threads,
        begun=begun,
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """What a run computes, or would compute if it had not begun in another way."""

    recipe: Recipe
    outside: NDArray[np.bool_] | None
    """Blocks that a mask leaves out."""
    notices: tuple[str, ...]
    """What the user should know about it."""


def settle(draft: Draft, executor: Executor, device: Device, backend: Backend | None, precision: Precision | None) -> Settled:
    """The recipe of a run, once a worker has tried how predictors compute there.

    Where a run is gone on with, it is the recipe of what these workers would compute, to be compared.

    Raises
    ------
    DeviceError
        If the device or the precision is not to be had.
    """
    begun, cost = draft.begun, draft.cost
    if precision is None and cost.flops * draft.volume.box.voxels < TRIED * draft.plan.region.voxels:
        precision = "float32"
    trial = Trial(
        volume=draft.path,
        part=draft.volume.part,
        model=draft.model_place,
        spec=draft.model,
        normalisation=draft.normalisation,
        tile=draft.plan.tile,
        threads=draft.threads,
        device=device,
        backend=backend or backend_of(draft.model_place, device),
        precision=precision,
        measured=begun is not None,
    )
    choice = executor.try_out(trial)
    notices: list[str] = []
    if begun is None and (slower := _in_time(cost, choice, draft.limits)) != draft.limits:
        notices.append(f"a predictor does {choice.flops_per_second / 1e9:.1f} GFLOP/s here: blocks are made smaller")
        draft = draft.with_plan(plan_volume(draft.volume, draft.model, draft.region, draft.tile, slower))
        known = replace(trial, tile=draft.plan.tile, precision=choice.numerics.precision, measured=True)
        choice = replace(choice, numerics=executor.try_out(known).numerics)
    recipe = draft.recipe(choice.numerics, begun.accuracy if begun else choice.accuracy)
    return Settled(recipe, draft.outside, (*notices, *_doubts(draft), *_chosen(choice)))


def _part(asked: Part, begun: Recipe | None) -> Part:
    """Which channel and timepoint is segmented: what is asked for, else as the run began."""
    there = begun.volume.part if begun is not None else None
    if there is None:
        return asked
    return Part(
        there.channel if asked.channel is None else asked.channel,
        there.timepoint if asked.timepoint is None else asked.timepoint,
    )


def _described(path: ModelPlace, begun: Recipe | None) -> tuple[NetworkSpec, dict[str, str], str]:
    """What a model is, its card and its digest; of one that was begun with, experiments are not made again."""
    digest = digest_of(path)
    if begun is not None and digest == begun.model_digest and isinstance(begun.plan.model, Contract):
        return begun.plan.model, card_of(path), digest
    return *describe(path), digest


def _declared(empty: tuple[float, str] | None, spec: NetworkSpec) -> Empty | None:
    """What is declared of blocks that see a single value, with the class by its number."""
    if empty is None:
        return None
    value, name = empty
    if name not in spec.classes:
        raise PlanError(f"--empty names the class {name!r}, but the model has {', '.join(spec.classes)}: name one of these")
    return Empty(value, spec.classes.index(name))


def _told(card: Mapping[str, str]) -> Normalisation | None:
    """The numbers that a model was trained with, if it says so."""
    return Normalisation("volume", (float(card["mean"]),), (float(card["deviation"]),)) if "mean" in card else None


def _trained_with(card: Mapping[str, str]) -> Scope:
    """What shared one mean and deviation when a model was trained."""
    return "slice" if card.get("normalise") == "slice" else "volume"


def _plan(
    volume: VolumeSpec, model: NetworkSpec, box: Box | None, tile: Triple | None, begun: Recipe | None, limits: Limits
) -> Plan:
    """The stored plan of a run that has begun, where it answers what is asked for; else a new one."""
    if begun is not None:
        plan = begun.plan
        asked = (volume.shape, model, box or volume.box, tile or plan.tile)
        if asked == (plan.shape, plan.model, plan.region, plan.tile):
            return plan
    return plan_volume(volume, model, box, tile, limits)


def _in_time(cost: Cost, choice: Choice, limits: Limits) -> Limits:
    """Limits with which blocks end in time, if a predictor is so slow that they would not; else the same.

    It is a power of two, so that it hardly ever depends on how fast the same hardware was this time.
    """
    most = LONGEST * choice.flops_per_second
    if cost.flops <= most * cost.blocks:
        return limits
    alike = limits.block_flops / BLOCK_FLOPS  # a layout does not know how often tiles go through the network
    return replace(limits, block_flops=max(1, 2 ** math.floor(math.log2(most * alike))))


def _doubts(draft: Draft) -> Iterator[str]:
    """What the user should know before a run that can still go on."""
    volume = draft.volume
    if isinstance(draft.model, Contract) and not draft.model.local:
        yield "the network sees more of a tile than its context: labels depend on tiles, and may have seams"
    if not draft.model.planar and volume.shape[0] == 1:
        yield "the model is three-dimensional, the volume has a single slice: mirroring repeats it along z"
    trained = draft.card.get("voxel_size", "")
    here = " ".join(f"{scale:g}" for scale in volume.scale)
    if trained and None in volume.units[-volume.rank :]:
        yield f"the volume does not state its voxel size; the model was trained at {trained}"
    elif trained and volume.rank == 3 and not trained.startswith(here):
        yield f"the model was trained at {trained} voxels (z y x), the volume has {here} {volume.units[2]}: labels may be poor"


def _chosen(choice: Choice) -> Iterator[str]:
    """What was found out about precisions."""
    for precision, accuracy in choice.refused:
        yield f"{precision} would be faster, but {accuracy}: --precision {precision} takes it all the same"
    if choice.accuracy is not None:
        yield f"computing in {choice.numerics.precision}: {choice.accuracy}"
