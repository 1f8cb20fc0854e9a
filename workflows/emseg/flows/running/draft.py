"""Settle what a run computes in two steps: a draft before any worker is there, the recipe once one was tried."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.executors.port import Executor
from emseg.flows.records.completeness import mask_digest
from emseg.flows.running.limits import check_chunks
from emseg.settings.run import RunSettings
from emseg.tasks.trial import Choice, Trial
from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError, PlanError, VolumeError
from emseg_core.grid.cost import Cost, cost_of
from emseg_core.grid.layout import MAX_BLOCK_FLOPS, Limits, plan_volume
from emseg_core.grid.mask import outside
from emseg_core.grid.plan import Plan
from emseg_core.grid.pyramid import steps_of
from emseg_core.grid.symmetry import augmented
from emseg_core.model.backend import backend_of
from emseg_core.model.device import Device
from emseg_core.model.ensemble import EnsemblePlace
from emseg_core.model.external_model import contract_of, norms_refusal
from emseg_core.model.model_place import (
    ModelPlace,
    card_of,
    cards_of,
    describe,
    digest_of,
    freezable,
    locate_model,
    title_of,
)
from emseg_core.model.python_predictor import ImportPath
from emseg_core.normalise import Normalisation, Scope, survey
from emseg_core.ports import VolumeReader
from emseg_core.recipe import Empty, Recipe
from emseg_core.specs.augmented import without_margin
from emseg_core.specs.contract import FREEZE_HINT, NORMALISATION, Contract, Norms
from emseg_core.specs.ensemble import EnsembleSpec
from emseg_core.specs.heads import chosen_heads
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.numerics import Accuracy, Numerics
from emseg_core.specs.region import parse_region
from emseg_core.specs.volume import MASK_DTYPES, Selection, VolumeSpec
from emseg_core.store.files.place import Place
from emseg_core.store.volumes.volume import open_volume

LEAST_TRIAL_FLOPS = 2**37
"""Work of a run on the whole volume from which a low precision is worth a trial: two seconds of a core.

A region is computed as the whole is, so that it equals the crop of a whole run.
"""
LONGEST_BLOCK_SECONDS = 600.0
"""Longest time that a block may be expected to take."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A run as far as its volume and its model decide it."""

    settings: RunSettings
    """As asked for; of an output that was started, its library and its precision where none are asked for."""
    path: Place
    """Of the volume."""
    volume: VolumeSpec
    volume_digest: str
    normalisation: Normalisation
    model_place: ModelPlace
    model_digest: str
    card: dict[str, str]
    """Of the model."""
    limits: Limits
    plan: Plan
    steps: tuple[Triple, ...]
    """Of the output's coarser levels."""
    outside: NDArray[np.bool_] | None
    """Blocks that a mask leaves out, ``(z, y, x) bool`` on the plan's grid; None if no mask is given."""
    empty: Empty | None
    started: Recipe | None
    """Recipe of the output, if it was started by an earlier run."""

    @property
    def cost(self) -> Cost:
        """Cost of the plan."""
        return cost_of(self.plan, self.volume, self.settings.probabilities, self.settings.tta, self.steps, self.heads or None)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads that are stored; empty for a network of classes alone."""
        return heads_stored(self.plan.model, self.settings, self.started)

    @property
    def mask(self) -> str | None:
        """SHA-256 of which blocks are left out."""
        if self.outside is not None:
            return mask_digest(self.outside)
        return self.started.mask if self.started is not None else None

    def within(self, limits: Limits) -> Draft:
        """Return the same run by another plan, within other limits."""
        tile = self.settings.tile or self.plan.model.only_tile
        plan = plan_volume(self.volume, self.plan.model, self.plan.region, tile, limits)
        return replace(self, plan=plan, outside=outside_of(self.settings.mask, plan, self.volume))

    def recipe(self, numerics: Numerics, accuracy: Accuracy | None) -> Recipe:
        """Return what decides the output's bytes, if predictors compute with these numerics.

        Parameters
        ----------
        numerics
            How predictors compute.
        accuracy
            Measured accuracy of a low precision; None in float32.

        Returns
        -------
        Recipe
            The recipe of the output.
        """
        return Recipe(
            volume=self.volume,
            volume_digest=self.volume_digest,
            model_digest=self.model_digest,
            normalisation=self.normalisation,
            plan=self.plan,
            numerics=numerics,
            probabilities=self.settings.probabilities,
            accuracy=accuracy,
            tta=self.settings.tta,
            steps=self.steps,
            mask=self.mask,
            empty=self.empty,
            heads=self.heads,
            predictor=title_of(self.model_place),
        )


def check_settings(settings: RunSettings, source: Callable[[], VolumeReader] | None = None) -> NetworkSpec:
    """Describe the model, and refuse settings that it cannot meet, before anything is written.

    Parameters
    ----------
    settings
        What was asked for.
    source
        Opens the volume, on which frozen statistics are measured; None if it cannot be read yet.

    Returns
    -------
    NetworkSpec
        The model; with statistics of each tile if there is no volume.

    Raises
    ------
    InputError
        If they do not fit the model.
    """
    place = locate_model(settings.model, settings.predictor)
    if source is not None:
        spec, _, _ = _described(place, settings, None, source)
    else:
        spec, _ = describe(place)
        _check_norms(place, spec, None if settings.norms is None else "tile")
    _check_heads(spec, settings, None)
    _empty(settings.empty, spec)
    return _augmented(spec, settings, None)


def heads_stored(spec: NetworkSpec, settings: RunSettings, started: Recipe | None) -> tuple[str, ...]:
    """Return the names of the heads that a run stores, in the order of writing.

    Parameters
    ----------
    spec
        The network.
    settings
        What was asked for.
    started
        Recipe of the output, if an earlier run has started it.

    Returns
    -------
    tuple of str
        Empty for a network of classes alone.

    Raises
    ------
    InputError
        If the network has no such heads.
    """
    known = {head.name for head in spec.heads}  # those of another network are refused for that, when recipes are compared
    if settings.heads is None and started is not None and known.issuperset(started.heads):
        return started.heads
    chosen = chosen_heads(spec.heads, settings.heads)
    return () if all(head.kind == "classes" for head in spec.heads) else tuple(head.name for head in chosen)


def _augmented(spec: NetworkSpec, settings: RunSettings, started: Recipe | None) -> NetworkSpec:
    """Return a network as the run needs it, with test-time augmentation or without."""
    if not settings.tta:
        return spec
    return augmented(spec, chosen_heads(spec.heads, heads_stored(spec, settings, started) or None))


def _check_heads(spec: NetworkSpec, settings: RunSettings, started: Recipe | None) -> None:
    """Refuse settings that the stored heads cannot meet."""
    heads = chosen_heads(spec.heads, heads_stored(spec, settings, started) or None)
    kinds, names = {head.kind for head in heads}, ", ".join(head.name for head in heads)
    if settings.probabilities and not kinds & {"classes", "independent"}:
        raise PlanError(
            f"--probabilities is for classes, but the heads {names} have none: leave it out, they are stored anyway"
        )
    if settings.empty is not None and kinds != {"classes"}:
        raise PlanError(
            f"--empty declares a class, but the heads {names} are stored: leave it out, or store --heads classes alone"
        )


def draft_run(volume: Place, settings: RunSettings, limits: Limits, started: Recipe | None) -> Draft:
    """Draft a run with these settings.

    Parameters
    ----------
    volume
        The array or image to segment, also where the settings name a level.
    settings
        What was asked for.
    limits
        What bounds the layout.
    started
        Recipe of the output, if an earlier run has started it.

    Returns
    -------
    Draft

    Raises
    ------
    InputError
        If volume, model and settings do not fit together.
    """
    place = locate_model(settings.model, settings.predictor)
    spec, card, known = _described(place, settings, started, lambda: open_volume(volume, part=part_of(settings, None, started)))
    source = open_volume(volume, part=part_of(settings, spec, started))
    _check_heads(spec, settings, started)
    spec = _augmented(spec, settings, started)
    region = parse_region(settings.roi, source.spec) if isinstance(settings.roi, str) else settings.roi
    tile = settings.tile or spec.only_tile
    plan = _plan(source.spec, spec, region, tile, started, limits)
    check_chunks(source.spec, volume)
    normalisation, digest = _normalisations(
        source, cards_of(place) if isinstance(place, EnsemblePlace) else [card], settings.normalise
    )
    if started is not None and settings.normalise is None:  # same model and same voxels are compared by their digests
        normalisation = started.normalisation
    if started is not None:
        before = started.numerics
        settings = replace(
            settings, backend=settings.backend or before.library, precision=settings.precision or before.precision
        )
    return Draft(
        settings=settings,
        path=source.path,
        volume=source.spec,
        volume_digest=digest,
        normalisation=normalisation,
        model_place=place if isinstance(place, ImportPath) else place.absolute(),
        model_digest=known,
        card=card,
        limits=limits,
        plan=plan,
        steps=started.steps if started and settings.pyramid is None else levels_for(source.spec, plan.region, settings.pyramid),
        outside=outside_of(settings.mask, plan, source.spec),
        empty=started.empty if started is not None and settings.empty is None else _empty(settings.empty, spec),
        started=started,
    )


def settle(draft: Draft, executor: Executor, device: Device) -> tuple[Draft, Recipe, tuple[str, ...]]:
    """Settle the recipe of a run, once a worker has tried how predictors compute there.

    For an output that was already started, it is the recipe of these workers, to compare with the stored one.

    Returns
    -------
    draft : Draft
        The run, perhaps by another plan.
    recipe : Recipe
        What it computes.
    notices : tuple of str
        Warnings, and what was measured.

    Raises
    ------
    DeviceError
        If the device or the precision is not available.
    """
    started, cost, settings, precision = draft.started, draft.cost, draft.settings, draft.settings.precision
    if precision is None and cost.flops * draft.volume.box.voxels < LEAST_TRIAL_FLOPS * draft.plan.region.voxels:
        precision = "float32"
    trial = Trial(
        volume=draft.path,
        part=draft.volume.selection,
        model=draft.model_place,
        spec=draft.plan.model,
        normalisation=draft.normalisation,
        tile=draft.plan.tile,
        threads=settings.threads,
        device=device,
        backend=settings.backend or backend_of(draft.model_place, device),
        precision=precision,
        measured=started is not None,
    )
    choice = executor.try_out(trial)
    notices: list[str] = []
    if started is None and (slower := _in_time(cost, choice, draft.limits)) != draft.limits:
        notices.append(f"a predictor does {choice.flops_per_second / 1e9:.1f} GFLOP/s here: blocks are made smaller")
        draft = draft.within(slower)
        known = replace(trial, tile=draft.plan.tile, precision=choice.numerics.precision, measured=True)
        choice = replace(choice, numerics=executor.try_out(known).numerics)
    recipe = draft.recipe(choice.numerics, started.accuracy if started else choice.accuracy)
    return draft, recipe, (*notices, *_warnings(draft), *_chosen(choice))


def part_of(settings: RunSettings, spec: NetworkSpec | None = None, started: Recipe | None = None) -> Selection:
    """Return the channels and the timepoint to read.

    Parameters
    ----------
    settings
        Settings of the run.
    spec
        The network, which may say which channels it takes; None for one that takes a single channel.
    started
        Recipe of the output, if an earlier run has started it.

    Returns
    -------
    Selection
        The requested channel and timepoint, else those that the output was started with.

    Raises
    ------
    PlanError
        If a channel is requested, but the network takes several.
    """
    there = (started.volume.selection if started is not None else None) or Selection()
    timepoint = there.timepoint if settings.timepoint is None else settings.timepoint
    channels = spec.inputs.channels if isinstance(spec, Contract) else ()
    if not channels:
        return Selection(there.channel if settings.channel is None else settings.channel, timepoint)
    if settings.channel is not None:
        raise PlanError(
            f"--channel names the channel {settings.channel}, but the model takes the channels "
            f"{', '.join(map(str, channels))}, as the file beside it says: leave out --channel, or change inputs there"
        )
    return Selection(timepoint=timepoint, channels=channels)


def _described(
    path: ModelPlace, settings: RunSettings, started: Recipe | None, source: Callable[[], VolumeReader]
) -> tuple[NetworkSpec, dict[str, str], str]:
    """Return what a model is, its card and its digest; experiments that the output remembers are not made again."""
    digest = digest_of(path)
    known = without_margin(started.plan.model) if started is not None and digest == started.model_digest else None
    if isinstance(known, Contract | EnsembleSpec):
        _check_norms(path, known, settings.norms)
        return known, card_of(path), digest
    if settings.norms != "frozen":
        spec, card = describe(path)
        _check_norms(path, spec, settings.norms)
        return spec, card, digest
    from emseg_core.model.frozen_norms import freeze  # torch takes seconds to import

    model, volume = freezable(path), source()
    normalisation, _ = _normalisation(volume, model.card, settings.normalise)
    mask = None if settings.mask is None else open_volume(settings.mask, dtypes=MASK_DTYPES)
    return contract_of(freeze(model, volume, normalisation, mask)), model.card, digest


def _check_norms(path: ModelPlace, spec: NetworkSpec, asked: Norms | None) -> None:
    """Refuse statistics that an output was not started with, or that a network has no use for."""
    if asked is None:
        return
    frozen = isinstance(spec, Contract) and bool(spec.norms)
    if not (frozen or (isinstance(spec, Contract) and NORMALISATION in spec.reason)):
        raise norms_refusal(path.name if isinstance(path, Path) else str(path))
    if frozen != (asked == "frozen"):
        raise PlanError(
            f"the output was started with --norms {'frozen' if frozen else 'tile'}, not {asked}: leave it out, or start "
            "another output"
        )


def _empty(empty: tuple[float, str] | None, spec: NetworkSpec) -> Empty | None:
    """Return what is declared of blocks that see a single value, with the class by its number."""
    if empty is None:
        return None
    value, name = empty
    if name not in spec.classes:
        raise PlanError(f"--empty names the class {name!r}, but the model has {', '.join(spec.classes)}: name one of these")
    return Empty(float(value), spec.classes.index(name))


def _normalisations(source: VolumeReader, cards: Sequence[Mapping[str, str]], asked: Scope | None) -> tuple[Normalisation, str]:
    """Return what the model wants, or each member of an ensemble, and the digest of the first one's sample."""
    if len(cards) == 1:  # which may have those of further channels
        return _normalisation(source, cards[0], asked)
    (first, digest), *others = (_normalisation(source, card, asked) for card in cards)
    return replace(first, others=tuple(normalisation for normalisation, _ in others)), digest


def _normalisation(source: VolumeReader, card: Mapping[str, str], asked: Scope | None) -> tuple[Normalisation, str]:
    """Return the normalisation that was asked for, else the one that the model wants, and the digest of the sample.

    Raises
    ------
    PlanError
        If the model does something else to intensities than what was asked for.
    """
    if asked is not None:
        if more := [name for name in ("rescale", "clip") if name in card]:
            raise PlanError(
                f"--normalise {asked} would feed the model other intensities than its {' and '.join(more)} is meant for: leave "
                "it out, or state how the model normalises beside its file"
            )
        return survey(source, asked)
    percentiles = tuple(json.loads(card["percentiles"])) if "percentiles" in card else None
    scope: Scope = "slice" if card.get("normalise") == "slice" else "volume"
    measured, digest = survey(source, scope, percentiles=percentiles, eps=float(card.get("eps", 0)))
    if "mean" in card:
        stated = Normalisation("volume", (float(card["mean"]),), (float(card["deviation"]),))
        return replace(stated, others=(stated,) * len(measured.others)), digest
    return measured, digest


def _plan(
    volume: VolumeSpec, model: NetworkSpec, box: Box | None, tile: Triple | None, started: Recipe | None, limits: Limits
) -> Plan:
    """Return the stored plan of the output if it fits the request, else a new one."""
    if started is not None:
        plan = started.plan
        asked = (volume.shape, model, box or volume.box, tile or plan.tile)
        if asked == (plan.shape, plan.model, plan.region, plan.tile):
            return plan
    return plan_volume(volume, model, box, tile, limits)


def _in_time(cost: Cost, choice: Choice, limits: Limits) -> Limits:
    """Return smaller limits if a predictor is so slow that blocks would not end in time; else the same ones.

    The limit is a power of two, so that it hardly ever depends on fluctuations in the speed of the same hardware.
    """
    most = LONGEST_BLOCK_SECONDS * choice.flops_per_second
    if cost.flops <= most * cost.blocks:
        return limits
    alike = limits.block_flops / MAX_BLOCK_FLOPS  # a layout does not know how often tiles go through the network
    return replace(limits, block_flops=max(1, 2 ** math.floor(math.log2(most * alike))))


def _warnings(draft: Draft) -> Iterator[str]:
    """Yield warnings that do not stop a run."""
    volume = draft.volume
    model = without_margin(draft.plan.model)
    for network in model.members if isinstance(model, EnsembleSpec) else (model,):
        if not isinstance(network, Contract):
            continue
        if network.norms:
            since = (
                "those that the output was started with" if draft.started is not None else "measured on a sample of the volume"
            )
            yield f"{len(network.norms)} normalisations of the network use frozen statistics, {since}"
        if not network.local:
            because = f", because of {network.reason}" if network.reason else ""
            hint = f" ({FREEZE_HINT})" if NORMALISATION in network.reason and not network.norms and network is model else ""
            yield f"the network sees more of a tile than its context{because}: labels depend on tiles, and may have seams{hint}"
    if not draft.plan.model.planar and volume.shape[0] == 1:
        yield "the model is three-dimensional, the volume has a single slice: mirroring repeats it along z"
    if isinstance(draft.plan.model, Contract) and draft.plan.model.inputs.kind != "grey":
        yield f"the input of the network is taken for: {draft.plan.model.inputs}"
    if "output" in draft.card:
        yield f"the output of the network is taken for: {draft.card['output']}"
    trained = draft.card.get("voxel_size", "").removesuffix(" (z, y, x)")
    here = " ".join(f"{scale:g}" for scale in volume.scale)
    if trained and None in volume.units[-volume.rank :]:
        yield f"the model was trained on voxels of {trained} (z y x), and the volume does not state its voxel size"
    elif trained and volume.rank == 3 and not trained.startswith(here):
        yield (
            f"the model was trained on voxels of {trained} (z y x), those of the volume are {here} {volume.units[2]}: "
            "labels may be poor; train a network of your own with `emseg train`"
        )


def _chosen(choice: Choice) -> Iterator[str]:
    """Yield what was measured about precisions."""
    for precision, accuracy in choice.refused:
        yield f"{precision} would be faster, but {accuracy}: to use it anyway, give --precision {precision}"
    yield from choice.doubts
    if choice.accuracy is not None:
        yield f"computing in {choice.numerics.precision}: {choice.accuracy}"


def levels_for(volume: VolumeSpec, region: Box, pyramid: bool | None = None) -> tuple[Triple, ...]:
    """Return the step of each coarser level of a region's output; none if `pyramid` is False, or where it is small.

    Parameters
    ----------
    volume
        Description of the volume.
    region
        Region of the output, in voxels of the volume.
    pyramid
        Whether coarser levels are wanted; None to decide by the region's size.

    Returns
    -------
    tuple of Triple
        Number of finer voxels (z, y, x) along each edge of a coarser one, for each level.
    """
    return () if pyramid is False else steps_of(region.shape, volume.proportions)


def outside_of(mask: str | Path | None, plan: Plan, volume: VolumeSpec) -> NDArray[np.bool_] | None:
    """Return the blocks of a plan that a mask leaves out, ``(z, y, x) bool``; None without a mask.

    Parameters
    ----------
    mask
        Path of the mask.
    plan
        Plan of the run.
    volume
        Description of the volume.

    Returns
    -------
    ndarray or None
        True for each block that is left out.

    Raises
    ------
    VolumeError
        If the mask cannot be read, or leaves out all.
    """
    if mask is None:
        return None
    try:
        return outside(plan, volume, open_volume(mask, dtypes=MASK_DTYPES))
    except BlockError as error:
        raise VolumeError(f"the mask {mask} cannot be read: {error}") from error
