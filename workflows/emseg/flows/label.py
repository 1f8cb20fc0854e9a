"""`emseg label`: compute instance labels from a stored run, with ids that are unique throughout the volume."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.completeness import why_damaged
from emseg.flows.records.run_log import recipe_of
from emseg.flows.running.claim import claim_output, worker_token
from emseg.flows.running.stages import StageRunner
from emseg.launch import Launch, check_limits, check_main, open_executor
from emseg.placement import Placement, Where
from emseg.runs.dispatch import Policy
from emseg.runs.events import Noticed, Observer
from emseg.runs.notices import log
from emseg.runs.stop import Stop
from emseg.tasks.labelling import LabelWork, Stage
from emseg_core.box import AXES
from emseg_core.errors import InputError, OutputError
from emseg_core.grid.order import block_sequences
from emseg_core.grid.pyramid import level_shapes
from emseg_core.instances.block_segments import Segments
from emseg_core.instances.reduction import merge_segments, number_segments
from emseg_core.printable import printable_lines
from emseg_core.recipe import Recipe
from emseg_core.specs.labelling import Connectivity, Labelling, Method
from emseg_core.store.files.lease import Token
from emseg_core.store.files.place import Place, parse_place
from emseg_core.store.files.records import RECORDS_FOLDER
from emseg_core.store.outputs.descriptions import with_digest
from emseg_core.store.outputs.instances import (
    TABLE,
    digest_of,
    instances_group,
    missing_digest,
    publish,
    space_of,
    stored_instances,
    table_path,
)
from emseg_core.store.outputs.layout import Generation, label_names
from emseg_core.store.outputs.level import remove_stale_units
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.outputs.scratch import Scratch, create_scratch, describe_image, remove_scratch

BOUNDARY_CLASSES = ("membrane", "boundary", "border", "membranes", "boundaries")
"""Names of the class that separates segments."""
MIN_ANISOTROPY = 2.0
"""Ratio of slice thickness to pixel width from which on fragments grow within single slices."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Result of instance labelling."""

    instances: Place
    """Where the image of instance labels is."""
    table: Place
    """Where the CSV table of segments is."""
    segments: int | None
    """Number of segments; None if labelling is not complete."""
    exit_code: int
    """0 if labelling is complete, 128 plus the signal that stopped it, else 3."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "instances": str(self.instances), "table": str(self.table)}

    def __str__(self) -> str:
        if self.segments is None:
            return "labelling  not complete: run the same command again to resume"
        return printable_lines(
            [
                f"instances  {self.segments} segment{'s' if self.segments != 1 else ''} in {self.instances}",
                f"table      {self.table}",
            ]
        )


def label(
    output: str | Place,
    *,
    method: Method = "watershed",
    class_name: str | None = None,
    threshold: float | None = None,
    smoothing: int | None = None,
    connectivity: Connectivity = 6,
    smallest: int = 0,
    planar: bool | None = None,
    name: str = "instances",
    allow_incomplete: bool = False,
    overwrite: bool = False,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[Where],
) -> Labelled:
    """Compute instance labels from a stored run, resuming unfinished work.

    Segments are numbered 1 to N in the order of their first voxels (z, y, x). The result depends neither on how the volume was
    divided into blocks, nor on the workers or on interruptions.

    Parameters
    ----------
    output
        The output of `emseg run`; with probabilities, for a watershed.
    method
        ``watershed``: fragments grow from local minima of the boundary probability, and are merged in order of the mean
        boundary probability between them. ``components``: connected components of one class.
    class_name
        The class of the boundary (watershed) or of the segments (components); by default the one called membrane or boundary,
        or inside.
    threshold, smoothing, connectivity, smallest
        See `emseg_core.specs.labelling.Labelling`.
    planar
        Grow fragments within z slices; by default if voxels are at least twice as thick as wide.
    name
        Name of the image of instance labels in the output.
    allow_incomplete
        Label the finished blocks of an unfinished output, and leave the others *not computed*: 0.
    overwrite
        Replace instance labels that were made with other settings.
    policy, stop, on_event
        As for `emseg.segment`.
    **where
        Workers, and where they run: see `emseg.placement.Where`.

    Returns
    -------
    Labelled
        Where the instance labels are, how many segments there are, and whether labelling is complete.

    Raises
    ------
    InputError
        If the settings do not fit the output or each other; nothing is written then.
    OutputError
        If there is no such output, it is not complete or damaged, another run is in progress on it, or it has instance labels
        of this name that were made with other settings.
    """
    placement = Placement(**where)
    check_main(placement)
    check_limits(placement)
    stored = open_output(parse_place(output).absolute())
    recipe, watershed = recipe_of(stored), method == "watershed"
    given = {"threshold": threshold, "smoothing": smoothing}
    labelling = Labelling(
        method,
        _class_of(stored, class_name, watershed),
        planar=watershed and (_thick(recipe) if planar is None else planar),
        connectivity=connectivity,
        smallest=smallest,
        **{key: value for key, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    options = _Options(allow_incomplete, overwrite, placement, policy or Policy(), stop or Stop(), on_event or log)
    return _label(stored, labelling, name, options)


def label_again(
    output: str | Place, name: str, *, stop: Stop | None = None, on_event: Observer | None = None, **where: Unpack[Where]
) -> Labelled:
    """Compute damaged or unfinished instance labels again, with the settings that they were made with.

    Parameters
    ----------
    output
        The output that contains them.
    name
        Name of the image of instance labels.
    stop, on_event, **where
        As for `label`.

    Returns
    -------
    Labelled
        As for `label`.

    Raises
    ------
    InputError
        If there are no such labels, or their settings are not recorded.
    """
    placement = Placement(**where)
    check_main(placement)
    check_limits(placement)
    stored = open_output(parse_place(output).absolute())
    try:
        labelling = Labelling.from_json((stored_instances(stored.files, name) or {})["labelling"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{stored.path / f'labels/{name}'} does not record its settings: label again with --overwrite"
        ) from error
    options = _Options(True, True, placement, Policy(), stop or Stop(), on_event or log)
    return _label(stored, labelling, name, options)


@dataclass(frozen=True, slots=True)
class _Options:
    """Options of a labelling that do not decide the labels."""

    allow_incomplete: bool
    overwrite: bool
    placement: Placement
    policy: Policy
    stop: Stop
    notify: Observer


def _label(stored: Output, labelling: Labelling, name: str, options: _Options) -> Labelled:
    """Label an output with these settings, or return the finished labels that it has."""
    place, recipe, stop, notify = stored.path, recipe_of(stored), options.stop, options.notify
    done = stored.done_units().ravel()
    if not done.all() and not options.allow_incomplete:
        raise OutputError(
            f"{place} lacks {int((~done).sum())} of {len(done)} blocks: finish it with the same `emseg run`, "
            "or label the finished blocks with --allow-incomplete"
        )
    _check_name(name, stored)
    described = _described(labelling, recipe, stored, done)
    before, folder = stored_instances(stored.files, name), f"{name}-{described['fingerprint'][:12]}"
    same = before is not None and before.get("fingerprint") == described["fingerprint"]
    scratch = Scratch(stored.files, f"{RECORDS_FOLDER}/{folder}")
    if before is not None and same and not scratch.has_image:
        if scratch.has_files:  # an earlier process was killed while it published them
            with claim_output(place, notify) as claim, claim.held() as lease:
                publish(lease.token.files, scratch.folder, name, label_names(stored.images, Generation(stored.generation)))
        if not (cause := why_damaged(stored, name, stop)):
            return Labelled(place / f"labels/{name}", place / table_path(name), int(before["segments"]), 0)
        notify(Noticed(f"{cause}: computing {name} again"))
    if before is not None and not (same or options.overwrite):
        raise OutputError(
            f"{place / f'labels/{name}'} was made with other settings: {_differences(before, described)}: choose another "
            "--name, or replace it with --overwrite"
        )
    launch = Launch(options.placement, len(done), 1, place, notify)
    with claim_output(place, notify) as claim, open_executor(launch, stop) as executor, claim.held() as lease:
        token = worker_token(place, lease)
        scratch = replace(scratch, files=token.files)
        remove_scratch(scratch, name)
        labeller = _Labeller(
            stored=stored,
            recipe=recipe,
            labelling=labelling,
            described=described,
            computed=done & ~stored.outside.ravel(),
            name=name,
            scratch=scratch,
            token=token,
            stages=StageRunner(place, executor, lease, options.policy, stop, notify),
        )
        return labeller.label()


@dataclass(frozen=True, slots=True)
class _Labeller:
    """Instance labelling under a lease: make fragments, merge them across blocks, number segments, write labels, publish."""

    stored: Output
    recipe: Recipe
    labelling: Labelling
    described: dict[str, Any]
    computed: NDArray[np.bool_]
    """Blocks that a run has computed, ``(block,) bool``."""
    name: str
    scratch: Scratch
    token: Token
    stages: StageRunner

    def label(self) -> Labelled:
        """Run each stage for the blocks that it has not done yet."""
        scratch, blocks, steps, stop = self.scratch, len(self.recipe.plan), self.recipe.steps, self.stages.stop
        place = self.stored.path
        unfinished = Labelled(place / f"labels/{self.name}", place / table_path(self.name), None, 3)
        space = space_of(self.recipe.volume, self.stored.region)
        if not scratch.exists:
            shapes = level_shapes(self.stored.region.shape, steps)
            group = instances_group(space, steps, with_digest(self.described))
            create_scratch(scratch, space, shapes, self.stored.unit, self.stored.chunk, self.described, group)
        levels = scratch.levels(steps)
        if code := self._run("cut", scratch.stored_blocks("pieces", blocks)):
            return replace(unfinished, exit_code=code)
        if scratch.read_shared("offsets") is None:
            counts = [len(scratch.read_block_segments(block).segments) for block in range(blocks)]
            scratch.write_shared("offsets", np.cumsum([0, *counts])[:-1])
        if code := self._run("sew", scratch.stored_blocks("seams", blocks)):
            return replace(unfinished, exit_code=code)
        if scratch.read_shared("segments") is None:
            segments = self._number()
            table = digest_of(scratch.files, f"{scratch.folder}/{TABLE}") or ""
            scratch.write_shared("table", np.frombuffer(bytes.fromhex(table), np.uint8))
            scratch.write_shared("segments", np.array(segments))
        if code := self._run("paint", remove_stale_units(levels).ravel()):
            return replace(unfinished, exit_code=code)
        levels[0].done(tidy=True)  # remove files that workers which died left half-written
        if self.stages.build(levels, np.ones(self.recipe.plan.grid, bool)):
            return replace(unfinished, exit_code=128 + stop.number if stop.asked else 3)
        facts: dict[str, Any] = {**self.described, "segments": self._segments}
        if (digest := scratch.read_shared("table")) is not None:  # None if an older release started it
            facts["table"] = digest.tobytes().hex()
        describe_image(scratch, instances_group(space, steps, with_digest(facts)))
        publish(scratch.files, scratch.folder, self.name, label_names(self.stored.images, Generation(self.stored.generation)))
        return replace(unfinished, segments=facts["segments"], exit_code=0)

    @property
    def _segments(self) -> int:
        """Number of segments, once they are numbered."""
        kept = self.scratch.read_shared("segments")
        if kept is None:
            raise OutputError(f"{self.scratch.place} is damaged: remove it, and label again with --overwrite")
        return int(kept)

    def _run(self, stage: Stage, done: NDArray[np.bool_]) -> int:
        """Run one stage for the blocks that are not done, and return its exit code."""
        plan, done = self.recipe.plan, done | ~self.computed
        if done.all():
            stop = self.stages.stop
            return 128 + stop.number if stop.asked else 0
        work = LabelWork(stage, self.stored.path, self.scratch.folder, self.token, self.labelling)
        sequences = block_sequences(plan, self.recipe.volume, ~done)
        return self.stages.run(work, stage, plan, done, sequences).exit_code

    def _number(self) -> int:
        """Merge segments throughout the volume, store final ids of each block and the table, and return how many there are."""
        scratch, grid, offsets = self.scratch, self.recipe.plan.grid, self.scratch.read_shared("offsets")
        assert offsets is not None
        merged = merge_segments(offsets.reshape(grid), scratch.read_block_segments, scratch.read_face_matches, self.labelling)
        given, before = np.zeros(len(merged.segments), np.uint64), 0
        width = grid[1] * grid[2]
        with scratch.files.writing(f"{scratch.folder}/{TABLE}") as stream:
            text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_columns(self.recipe))
            for first in range(0, len(offsets), width):
                row = range(first, first + width)
                maps, table = number_segments(
                    offsets, row, scratch.read_block_segments, merged, given, before, self.labelling.smallest
                )
                for block, numbers in zip(row, maps, strict=True):
                    scratch.write_map(block, numbers)
                writer.writerows(_table(table, before, self.recipe, self.stored))
                before += len(table)
            text.detach()
        return before


def _columns(recipe: Recipe) -> list[str]:
    names = [f"{what}_{axis}" for what in ("start", "stop", "centroid") for axis in AXES]
    return ["id", "voxels", *([] if _micrometres(recipe) is None else ["volume_um3"]), *names, "touches_edge"]


def _table(table: Segments, before: int, recipe: Recipe, stored: Output) -> Iterator[tuple[Any, ...]]:
    """Return the rows of the table; coordinates are in voxels of the volume."""
    corner, shape = np.array(stored.region.start), np.array(stored.region.shape)
    size = _micrometres(recipe)
    columns: list[NDArray[Any]] = [np.arange(before + 1, before + 1 + len(table)), table.voxels]
    if size is not None:
        columns.append(np.array([f"{voxels * size:.6g}" for voxels in table.voxels.tolist()], object))
    sides = ((table.start == 0) | (table.stop == shape)) & (np.array(recipe.volume.shape) > 1)  # an image has no faces in z
    edge = sides.any(axis=1).astype(int)
    centroids = np.round(table.sums / np.maximum(table.voxels, 1)[:, None] + corner, 3)
    for part in (table.start + corner, table.stop + corner, centroids):
        columns += list(part.T)
    lists = [column.tolist() for column in (*columns, edge)]
    return zip(*lists, strict=True)


def _micrometres(recipe: Recipe) -> float | None:
    """Return the volume of a voxel in cubic micrometres; None if it is not known."""
    edges = [size * unit / 1e3 for size, unit in zip(recipe.volume.scale, recipe.volume.unit_sizes, strict=True) if unit]
    return math.prod(edges) if len(edges) == len(AXES) else None


def _class_of(stored: Output, name: str | None, watershed: bool) -> int:
    """Return the number of the class of the boundary, or of the components; by default, that of the usual name."""
    stored.require_classes()
    if watershed and not stored.keeps_probabilities:
        raise OutputError(
            f"{stored.path} stores no probabilities, but a watershed needs them: run again with --probabilities --overwrite, "
            "or use --method components"
        )
    usual = BOUNDARY_CLASSES if watershed else ("inside",)
    found = [name] if name is not None else [each for each in stored.classes if each.lower() in usual]
    if len(found) != 1 or found[0] not in stored.classes:
        missing = f"no class {name!r}" if name is not None else f"no class called {' or '.join(usual[:2])}"
        raise InputError(f"{stored.path} has {missing}, but {', '.join(stored.classes)}: choose one of these with --class")
    return stored.classes.index(found[0])


def _thick(recipe: Recipe) -> bool:
    """Return whether slices are so thick that fragments grow within single ones."""
    z, y, x = recipe.volume.scale
    return z >= MIN_ANISOTROPY * max(y, x)


def _described(labelling: Labelling, recipe: Recipe, stored: Output, done: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the description of instance labels: everything that decides their bytes, and a digest of it."""
    facts = {"labelling": labelling.to_json(), "recipe": recipe.fingerprint, "generation": stored.generation}
    if (missing := missing_digest(done)) is not None:
        facts["missing"] = missing
    return {**facts, "fingerprint": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return each setting that differs, with both values."""
    old, new = (
        {**described.get("labelling", {}), **{k: described.get(k) for k in ("recipe", "generation", "missing")}}
        for described in (before, now)
    )
    return "; ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key))


def _check_name(name: str, stored: Output) -> None:
    """Refuse a name that is not valid, reserved, or that of labels of the run itself, in any generation."""
    if not name.replace("-", "").replace("_", "").isalnum() or name.startswith(("-", "classes", "run-")):
        raise InputError(
            f"{name!r} cannot be a name of instance labels: use letters, digits, - and _, and do not begin with classes or run-"
        )
    for image in stored.images:
        if image.content == "labels" and re.fullmatch(rf"{image.name}(-\d+)?", name, re.IGNORECASE):
            raise InputError(f"{stored.path} has labels of the class {image.name!r} under this name: choose another --name")
