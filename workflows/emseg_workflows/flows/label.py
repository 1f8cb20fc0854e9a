"""`emseg label`: from what a run has stored to instance labels, each segment with its own number throughout the volume."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.box import AXES
from emseg.errors import InputError, OutputError
from emseg.grid.order import strands_of
from emseg.grid.pyramid import level_shapes
from emseg.instances.piece import Segments
from emseg.instances.reduction import merge, number
from emseg.printable import printable_lines
from emseg.recipe import Recipe
from emseg.specs.labelling import Connectivity, Labelling, Method
from emseg.store.described import with_digest
from emseg.store.instances import (
    TABLE,
    digest_of,
    instances_group,
    missing_digest,
    publish,
    space_of,
    stored_instances,
    table_of,
)
from emseg.store.lease import Token
from emseg.store.ledger import Output
from emseg.store.level import remove_unfounded
from emseg.store.output import Generation, open_output
from emseg.store.place import Place, place_of
from emseg.store.records import FOLDER
from emseg.store.scratch import Scratch, create_scratch, describe, remove_scratch
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import Event, Noticed, Observer
from emseg_workflows.flows.outputs import claimed, token_of
from emseg_workflows.flows.record import recipe_of
from emseg_workflows.flows.stage import Stages
from emseg_workflows.flows.whole import why_not_whole
from emseg_workflows.labelling import LabelWork, Stage
from emseg_workflows.launch import Launch, check_main, open_executor
from emseg_workflows.placement import Placement, Where
from emseg_workflows.stop import Stop

CLASSES = ("membrane", "boundary", "border", "membranes", "boundaries")
"""Names of the class that parts segments."""
APART = 2.0
"""Sections this many times as thick as pixels are wide are labelled one by one before they are joined."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """How a labelling ended."""

    instances: Place
    """The image of instance labels."""
    table: Place
    """The table of segments, CSV."""
    segments: int | None
    """Number of segments; None if the labelling is not complete."""
    exit_code: int
    """0 if all is done, 128 and the signal if that stopped it, else 3."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "instances": str(self.instances), "table": str(self.table)}

    def __str__(self) -> str:
        if self.segments is None:
            return "labelling  not complete: run the same command again to go on"
        return printable_lines([f"instances  {self.segments} segments in {self.instances}", f"table      {self.table}"])


def label(
    output: str | Place,
    *,
    method: Method = "watershed",
    class_name: str | None = None,
    threshold: float | None = None,
    smoothing: int | None = None,
    planar: bool | None = None,
    connectivity: Connectivity = 6,
    smallest: int = 0,
    name: str = "instances",
    allow_incomplete: bool = False,
    overwrite: bool = False,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[Where],
) -> Labelled:
    """How the labelling of what a run has stored ended; what an earlier one has done is not done again.

    Segments and their numbers, 1 to N in the order of their first voxels (z, y, x), depend on no block, worker or stop.

    Parameters
    ----------
    output
        What `emseg run` has written; with probabilities, for a watershed.
    method
        ``watershed``: fragments grow from the lowest places of the boundary's probability, and are merged by its mean between
        them. ``components``: what hangs together of one class.
    class_name
        The class that is the boundary (watershed), or consists of segments (components); by default the one called membrane
        or boundary, or inside.
    threshold, smoothing, connectivity, smallest
        See `emseg.specs.labelling.Labelling`.
    planar
        Grow fragments within z slices; by default where voxels are twice as thick as wide, or more.
    name
        Of the image of instance labels.
    allow_incomplete
        Label what there is, and leave the rest *not computed*: 0.
    overwrite
        Replace instance labels that were made otherwise.
    policy, stop, on_event
        As for `emseg_workflows.segment`.
    **where
        Who computes, and where: see `emseg_workflows.placement.Where`.

    Raises
    ------
    InputError
        If what was asked for does not fit; nothing was written then.
    """
    placement = Placement(**where)
    check_main(placement)
    stored = open_output(place_of(output).absolute())
    labelling = _labelling(stored, recipe_of(stored), method, class_name, threshold, smoothing, planar, connectivity, smallest)
    called = _Call(allow_incomplete, overwrite, placement, policy or Policy(), stop or Stop(), on_event or _ignore)
    return _label(stored, labelling, name, called)


def label_again(
    output: str | Place,
    name: str,
    *,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[Where],
) -> Labelled:
    """How instance labels of this name were made once more with the settings that they were made with, if they are not whole.

    Parameters
    ----------
    output
        What they were made of.
    name
        Of the image of instance labels.
    policy, stop, on_event, **where
        As for `label`.

    Raises
    ------
    InputError
        If there are none, or they do not say how they were made.
    """
    placement = Placement(**where)
    check_main(placement)
    stored = open_output(place_of(output).absolute())
    try:
        labelling = Labelling.from_json((stored_instances(stored.files, name) or {})["labelling"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{stored.path / f'labels/{name}'} does not say how it was made: label again") from error
    called = _Call(True, True, placement, policy or Policy(), stop or Stop(), on_event or _ignore)
    return _label(stored, labelling, name, called)


@dataclass(frozen=True, slots=True)
class _Call:
    """What a labelling is told besides its settings."""

    allow_incomplete: bool
    overwrite: bool
    placement: Placement
    policy: Policy
    stop: Stop
    notify: Observer


def _label(stored: Output, labelling: Labelling, name: str, call: _Call) -> Labelled:
    """How a labelling with these settings ended."""
    place, recipe, stop = stored.path, recipe_of(stored), call.stop
    done = stored.done_units().ravel()
    if not done.all() and not call.allow_incomplete:
        raise OutputError(
            f"{place} lacks {int((~done).sum())} of {len(done)} blocks: finish it with the same `emseg run`, "
            "or label what there is with --allow-incomplete"
        )
    _check_name(name)
    described = _described(labelling, recipe, stored, done)
    before, folder = stored_instances(stored.files, name), f"{name}-{described['fingerprint'][:12]}"
    same = before is not None and before.get("fingerprint") == described["fingerprint"]
    scratch = Scratch(stored.files, f"{FOLDER}/{folder}")
    if before is not None and same and not scratch.image:
        if scratch.left:  # killed while it was published
            with claimed(place, call.notify) as claim, claim.held() as lease:
                publish(lease.token.files, scratch.folder, name, Generation(stored.generation).classes)
        if not (cause := why_not_whole(stored, name, stop)):
            return Labelled(place / f"labels/{name}", place / table_of(name), int(before["segments"]), 0)
        call.notify(Noticed(f"{cause}: {name} are made again"))
    if before is not None and not (same or call.overwrite):
        raise OutputError(
            f"{place / f'labels/{name}'} was made with other settings (there / now): {_differences(before, described)}: choose "
            "another --name, or replace it with --overwrite"
        )
    launch = Launch(call.placement, len(done), 1, place, call.notify)
    with claimed(place, call.notify) as claim, open_executor(launch, stop) as executor, claim.held() as lease:
        token = token_of(place, lease)
        scratch = replace(scratch, files=token.files)
        remove_scratch(scratch, name)
        stages = Stages(place, executor, lease, call.policy, stop, call.notify)
        return _Labeller(
            stored, recipe, labelling, described, done & ~stored.outside.ravel(), name, scratch, token, stages
        ).label()


@dataclass(frozen=True, slots=True)
class _Labeller:
    """One labelling under a lease: cut, sew, number, paint, publish, each for the blocks that are left."""

    stored: Output
    recipe: Recipe
    labelling: Labelling
    described: dict[str, Any]
    there: NDArray[np.bool_]
    """Blocks that a run has written."""
    name: str
    scratch: Scratch
    token: Token
    stages: Stages

    def label(self) -> Labelled:
        """How it ended."""
        scratch, blocks, steps, stop = self.scratch, len(self.recipe.plan), self.recipe.steps, self.stages.stop
        place = self.stored.path
        unfinished = Labelled(place / f"labels/{self.name}", place / table_of(self.name), None, 3)
        space = space_of(self.recipe.volume, self.stored.region)
        if not scratch.begun:
            shapes = level_shapes(self.stored.region.shape, steps)
            group = instances_group(space, steps, with_digest(self.described))
            create_scratch(scratch, space, shapes, self.stored.unit, self.stored.chunk, self.described, group)
        levels = scratch.levels(steps)
        if code := self._run("cut", scratch.kept("pieces", blocks)):
            return replace(unfinished, exit_code=code)
        if scratch.numbers("offsets") is None:
            counts = [len(scratch.piece(block).segments) for block in range(blocks)]
            scratch.keep_numbers("offsets", np.cumsum([0, *counts])[:-1])
        if code := self._run("sew", scratch.kept("seams", blocks)):
            return replace(unfinished, exit_code=code)
        if scratch.numbers("segments") is None:
            segments = self._number()
            table = digest_of(scratch.files, f"{scratch.folder}/{TABLE}") or ""
            scratch.keep_numbers("table", np.frombuffer(bytes.fromhex(table), np.uint8))
            scratch.keep_numbers("segments", np.array(segments))
        if code := self._run("paint", remove_unfounded(levels).ravel()):
            return replace(unfinished, exit_code=code)
        levels[0].done(tidy=True)  # what workers that died have left half-written
        if self.stages.build(levels, np.ones(self.recipe.plan.grid, bool)):
            return replace(unfinished, exit_code=128 + stop.number if stop.asked else 3)
        facts: dict[str, Any] = {**self.described, "segments": self._segments}
        if (digest := scratch.numbers("table")) is not None:  # else an older release has begun it
            facts["table"] = digest.tobytes().hex()
        describe(scratch, instances_group(space, steps, with_digest(facts)))
        publish(scratch.files, scratch.folder, self.name, Generation(self.stored.generation).classes)
        return replace(unfinished, segments=facts["segments"], exit_code=0)

    @property
    def _segments(self) -> int:
        """Number of segments, once that is known."""
        kept = self.scratch.numbers("segments")
        if kept is None:
            raise OutputError(f"{self.scratch.place} is damaged: remove it, and label again with --overwrite")
        return int(kept)

    def _run(self, stage: Stage, done: NDArray[np.bool_]) -> int:
        """The exit code of one stage."""
        plan, done = self.recipe.plan, done | ~self.there
        if done.all():
            stop = self.stages.stop
            return 128 + stop.number if stop.asked else 0
        work = LabelWork(stage, self.stored.path, self.scratch.folder, self.token, self.labelling)
        strands = strands_of(plan, self.recipe.volume, ~done)
        return self.stages.run(work, stage, plan, done, strands).exit_code

    def _number(self) -> int:
        """Merges segments throughout the volume, keeps each block's final numbers and the table; the number of segments."""
        scratch, grid, offsets = self.scratch, self.recipe.plan.grid, self.scratch.numbers("offsets")
        assert offsets is not None
        merged = merge(offsets.reshape(grid), scratch.piece, scratch.seam, self.labelling)
        given, before = np.zeros(len(merged.segments), np.uint64), 0
        width = grid[1] * grid[2]
        with scratch.files.writing(f"{scratch.folder}/{TABLE}") as stream:
            text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_columns(self.recipe))
            for first in range(0, len(offsets), width):
                row = range(first, first + width)
                maps, table = number(offsets, row, scratch.piece, merged, given, before, self.labelling.smallest)
                for block, numbers in zip(row, maps, strict=True):
                    scratch.keep_map(block, numbers)
                writer.writerows(_table(table, before, self.recipe, self.stored))
                before += len(table)
            text.detach()
        return before


def _columns(recipe: Recipe) -> list[str]:
    names = [f"{what}_{axis}" for what in ("start", "stop", "centroid") for axis in AXES]
    return ["id", "voxels", *([] if _micrometres(recipe) is None else ["volume_um3"]), *names, "touches_edge"]


def _table(table: Segments, before: int, recipe: Recipe, stored: Output) -> Iterator[tuple[Any, ...]]:
    """Rows of the table; coordinates are voxels of the volume."""
    corner, shape = np.array(stored.region.start), np.array(stored.region.shape)
    size = _micrometres(recipe)
    columns: list[NDArray[Any]] = [np.arange(before + 1, before + 1 + len(table)), table.voxels]
    if size is not None:
        columns.append(np.array([f"{voxels * size:.6g}" for voxels in table.voxels.tolist()], object))
    sides = ((table.start == 0) | (table.stop == shape)) & (np.array(recipe.volume.shape) > 1)  # an image has no end in z
    edge = sides.any(axis=1).astype(int)
    centroids = np.round(table.sums / np.maximum(table.voxels, 1)[:, None] + corner, 3)
    for part in (table.start + corner, table.stop + corner, centroids):
        columns += list(part.T)
    return zip(*(column.tolist() for column in (*columns, edge)), strict=True)


def _micrometres(recipe: Recipe) -> float | None:
    """Volume of a voxel in cubic micrometres, if that is known."""
    edges = [size * unit / 1e3 for size, unit in zip(recipe.volume.scale, recipe.volume.unit_sizes, strict=True) if unit]
    return math.prod(edges) if len(edges) == len(AXES) else None


def _labelling(
    stored: Output,
    recipe: Recipe,
    method: Method,
    class_name: str | None,
    threshold: float | None,
    smoothing: int | None,
    planar: bool | None,
    connectivity: Connectivity,
    smallest: int,
) -> Labelling:
    """The settings asked for, with defaults from what the run has recorded."""
    if method == "watershed" and not stored.keeps_probabilities:
        raise OutputError(
            f"{stored.path} keeps labels alone, but a watershed needs probabilities: run again with --probabilities "
            "--overwrite, or use --method components"
        )
    usual = CLASSES if method == "watershed" else ("inside",)
    found = [class_name] if class_name is not None else [each for each in stored.classes if each.lower() in usual]
    if len(found) != 1 or found[0] not in stored.classes:
        asked = f"no class {class_name!r}" if class_name is not None else f"no class called {' or '.join(usual[:2])}"
        raise InputError(f"{stored.path} has {asked}, but {', '.join(stored.classes)}: choose one of these with --class")
    z, y, x = recipe.volume.scale
    settings = {"threshold": threshold, "smoothing": smoothing}
    return Labelling(
        method,
        stored.classes.index(found[0]),
        planar=method == "watershed" and (z >= APART * max(y, x) if planar is None else planar),
        connectivity=connectivity,
        smallest=smallest,
        **{key: value for key, value in settings.items() if value is not None},  # type: ignore[arg-type]
    )


def _described(labelling: Labelling, recipe: Recipe, stored: Output, done: NDArray[np.bool_]) -> dict[str, Any]:
    """What instance labels say about themselves: all that decides their bytes, and a digest of that."""
    facts = {"labelling": labelling.to_json(), "recipe": recipe.fingerprint, "generation": stored.generation}
    if (missing := missing_digest(done)) is not None:
        facts["missing"] = missing
    return {**facts, "fingerprint": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Each setting that differs, with both values."""
    old, new = (
        {**described.get("labelling", {}), **{k: described.get(k) for k in ("recipe", "generation", "missing")}}
        for described in (before, now)
    )
    return "; ".join(f"{key} {old.get(key)} / {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key))


def _check_name(name: str) -> None:
    """Refuse a name that is none, or taken."""
    if not name.replace("-", "").replace("_", "").isalnum() or name.startswith(("-", "classes", "run-")):
        raise InputError(f"{name!r} cannot name instance labels: use letters, digits, - and _, and not classes")


def _ignore(event: Event) -> None:
    """Nobody watches."""
