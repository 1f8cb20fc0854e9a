"""What an output consists of, and whether it is whole: the same to all commands that ask.

    shards      of each level of classes, probabilities and instance labels; each byte of them has a checksum
    documents   metadata of groups and arrays, and what a mask left out: they follow from what the output says about itself
    tables      of the segments of instance labels, whose SHA-256 these keep

Which shards there should be, documents and tables are looked for quickly. That shards are sound is known once they were read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Triple
from emseg.errors import BlockError, OutputError
from emseg.grid.pyramid import level_shapes
from emseg.recipe import Recipe
from emseg.store.arrays import group_metadata, says_the_same
from emseg.store.blame import StoreError
from emseg.store.described import COPY, DIGEST, SELF, copies, find_file, root_description
from emseg.store.files import Files, open_files
from emseg.store.instances import (
    descriptions,
    digest_of,
    instance_levels,
    instances_group,
    listed,
    space_of,
    table_of,
)
from emseg.store.ledger import Output
from emseg.store.level import MEND, Level
from emseg.store.ome import levels, multiscales_of
from emseg.store.output import Form, Generation, open_output
from emseg.store.place import Place
from emseg.store.remote import NODE
from emseg.store.scratch import image_documents
from emseg.store.staging import output_error
from emseg_workflows.stop import Stop, StoppedError

CLASSES = ""
"""Stands for classes and probabilities among the names of instance labels."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something beside single shards that is not as it should be."""

    name: str
    """Of a file or an image of the output."""
    cause: str
    image: str | None = None
    """The image that it belongs to, `CLASSES` or the name of instance labels; None for the output as such."""
    remedy: str = MEND

    def __str__(self) -> str:
        return f"{self.name} {self.cause}: {self.remedy}"

    def bars(self, image: str) -> bool:
        """Whether this image cannot be shown for what it was: more than its table is lost."""
        return self.image == image and self.name != table_of(image)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an output consists of beside its shards, by what it says about itself."""

    files: Files
    root: dict[str, Any]
    """What it says."""
    recipe: Recipe
    generation: Generation
    outside: NDArray[np.bool_] | None
    """Blocks that a mask left out, ``(z, y, x) bool``; None without one, or where that is lost."""
    instances: dict[str, dict[str, Any]]
    """What each image of instance labels says about itself, by name."""

    @property
    def lost_mask(self) -> bool:
        """Whether it is not known any more what a mask left out."""
        return self.recipe.mask is not None and self.outside is None

    def documents(self) -> Iterator[tuple[str, bytes, str | None]]:
        """Name and content of each document, and the image that it belongs to; the root's metadata last."""
        attributes = {key: value for key, value in self.root.items() if key not in (SELF, DIGEST)}
        outside = np.zeros(self.recipe.plan.grid, bool) if self.lost_mask else self.outside
        form = form_of(self.recipe, outside, attributes)
        for name, document in form.documents(self.generation):
            if name != self.generation.outside or not self.lost_mask:
                yield name, document, CLASSES
        for image, description in self.instances.items():
            for name, document in self._image(image, description):
                yield name, document, image
        yield f"labels/{NODE}", group_metadata(listed(self.generation.classes, [*self.instances, *self.unknown])), None
        yield COPY, group_metadata(copies(self.root, self.instances)), None
        root = form.root(self.generation)
        if DIGEST not in self.root:
            del root["emseg"][DIGEST]
        yield NODE, group_metadata(root), None

    @property
    def unknown(self) -> list[str]:
        """Instance labels of an older release, which kept no copies, that do not say any more how they were made."""
        if DIGEST in self.root:
            return []
        try:
            names = json.loads(find_file(self.files, f"labels/{NODE}") or b"")["attributes"]["ome"]["labels"]
            return [str(name) for name in names if name not in {self.generation.classes, *self.instances}]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []

    def flaws(self) -> Iterator[Flaw]:
        """Each document and each table that is missing or damaged.

        Raises
        ------
        OutputError
            If the store is away.
        """
        yield from self.damaged_documents()
        with _read(self.files.place):
            for image, description in self.instances.items():
                digest = digest_of(self.files, table_of(image))
                if digest is None or digest != description.get("table", digest):
                    yield Flaw(table_of(image), _cause(digest), image)
            for image in self.unknown:
                yield Flaw(f"labels/{image}", "does not say any more how it was made", image, "label it again")

    def damaged_documents(self) -> Iterator[Flaw]:
        """Each document that is missing or damaged.

        Raises
        ------
        OutputError
            If the store is away.
        """
        with _read(self.files.place):
            for name, document, image in self.documents():
                found = find_file(self.files, name)
                older = name == COPY and DIGEST not in self.root and says_the_same(found, group_metadata({}))
                if not (older or says_the_same(found, document)):
                    yield Flaw(name, _cause(found), image)
            if self.lost_mask:
                name = self.generation.outside
                yield Flaw(name, _cause(find_file(self.files, name)), CLASSES)

    def _image(self, image: str, description: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Documents of instance labels; of an older release, these may have fewer levels than the output."""
        plan, steps = self.recipe.plan, self.recipe.steps
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            group = json.loads(find_file(self.files, f"labels/{image}/{NODE}") or b"")["attributes"]
            steps = steps[: max(0, len(list(levels(multiscales_of(group)))) - 1)] if DIGEST not in description else steps
        space = space_of(self.recipe.volume, plan.region)
        shapes: list[Triple] = list(level_shapes(plan.region.shape, steps))
        group = instances_group(space, steps, description)
        yield from image_documents(f"labels/{image}", space, shapes, plan.unit, plan.chunk, group)


def form_of(recipe: Recipe, outside: NDArray[np.bool_] | None, attributes: dict[str, Any]) -> Form:
    """What an output of this recipe looks like.

    Parameters
    ----------
    outside
        Blocks that a mask leaves out, ``(z, y, x) bool`` on the grid of the plan; None without one.
    attributes
        What it says about itself.
    """
    return Form(
        volume=recipe.volume,
        region=recipe.plan.region,
        classes=recipe.plan.model.classes,
        unit=recipe.plan.unit,
        chunk=recipe.plan.chunk,
        probabilities=recipe.probabilities,
        attributes=attributes,
        steps=recipe.steps,
        outside=outside,
    )


def inventory(place: Place) -> Inventory:
    """What the output at a place consists of.

    Raises
    ------
    OutputError
        If there is none, or it does not say any more how it was made.
    """
    files = open_files(place)
    try:
        root = root_description(files)
    except OSError as error:
        open_output(place)  # which says it better where nothing, or something else, is there
        raise output_error(place, error) from error
    if root is None:
        open_output(place)
        raise OutputError(
            f"the output {place} is damaged: neither {NODE} nor its copy {COPY} says any more how it was made: restore one of "
            "them, or remove the output, and compute it again"
        )
    recipe, generation = _made_by(place, root)
    with _read(place):
        return Inventory(files, root, recipe, generation, _outside(files, generation, recipe), descriptions(files))


def is_left_out(outside: NDArray[np.bool_], recipe: Recipe) -> bool:
    """Whether these are the blocks that the mask of a recipe leaves out."""
    return hashlib.sha256(np.packbits(outside).tobytes()).hexdigest() == recipe.mask


def flaws_of(stored: Output) -> tuple[Flaw, ...]:
    """What of an output is missing or damaged, as far as that is known without reading its shards.

    Blocks, and units of coarser levels, that are not written yet are none of it.

    Raises
    ------
    OutputError
        If the store is away.
    """
    found = inventory(stored.path)
    flaws = list(found.flaws())
    for name, levels_of in images_of(stored, found, flaws).items():
        if name != CLASSES:
            flaws += _gaps(name, levels_of)
    return tuple(flaws)


def images_of(stored: Output, found: Inventory, flaws: Sequence[Flaw]) -> dict[str, tuple[Level, ...]]:
    """The levels of each image of an output, by its name, `CLASSES` first; none whose metadata have a flaw."""
    images = {CLASSES: stored.levels}
    for name in found.instances:
        if not any(flaw.bars(name) for flaw in flaws):
            images[name] = instance_levels(stored, name)
    return images


def why_not_whole(stored: Output, name: str, stop: Stop) -> str:
    """Why instance labels have to be made again; empty if each byte of them, and of their table, is as it was written.

    Raises
    ------
    BlockError
        If the store fails in a way that may pass, which says nothing about them.
    OutputError
        If it is away.
    StoppedError
        If that was asked for.
    """
    found = inventory(stored.path)
    flaws = [flaw for flaw in found.flaws() if flaw.image == name]
    image = images_of(stored, found, flaws).get(name, ())
    flaws += _gaps(name, image)
    if flaws:
        return f"{flaws[0].name} {flaws[0].cause}"
    for number, level in enumerate(image):
        for error in examine(stored, name, number, level, stop).damage.values():
            if error.fault == "store":
                raise error
            return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of the write units of a level."""

    done: NDArray[np.bool_]
    """Which are written, ``(unit,) bool``."""
    damage: Mapping[int, BlockError]
    """Which of these cannot be read back, and why."""
    where: Callable[[int], str]
    """The voxels of a unit; of the finest level, as they are typed after ``--roi``."""

    @property
    def missing(self) -> int:
        """How many are not written."""
        return int((~self.done).sum())

    @property
    def spoilt(self) -> int:
        """How many cannot be used."""
        return len(self.damage) + self.missing


def examine(stored: Output, image: str, number: int, level: Level, stop: Stop, again: Iterable[int] | None = None) -> Found:
    """What is found of a level once each byte of it is read, a unit at a time; given which units to read, no others are.

    Raises
    ------
    StoppedError
        If that was asked for.
    """
    done, damage = level.done().ravel(), {}
    what = "the block" if (image, number) == (CLASSES, 0) else "a unit"
    where = partial(_place, stored, image, number, level)
    for index in np.flatnonzero(level.written()).tolist() if again is None else filter(done.__getitem__, again):
        if stop.number:
            raise StoppedError(stop.number)
        try:
            level.check(level.blocks.block(index).write, f"{what} {where(index)}")
        except BlockError as error:
            damage[index] = error
    return Found(done, damage, where)


def _place(stored: Output, image: str, number: int, level: Level, index: int) -> str:
    box = level.blocks.block(index).write
    inside = f"level {number}, {box}" if number else str(box.shift(stored.region.start))
    return inside if image == CLASSES else f"{image}, {inside}"


def _gaps(image: str, levels_of: Sequence[Level]) -> Iterator[Flaw]:
    """What instance labels lack."""
    for number, level in enumerate(levels_of):
        if missing := int((~level.done()).sum()):
            yield Flaw(f"labels/{image}/{number}", f"lacks {missing} of {len(level.blocks)} parts", image)


@contextmanager
def _read(place: Place) -> Iterator[None]:
    """Turns what a store does not give within the ``with`` into an `OutputError`: that it is away says nothing about files."""
    try:
        yield
    except StoreError as error:
        raise OutputError(f"{place} cannot be read ({error.strerror}): {error.remedy}") from error
    except OSError as error:
        raise output_error(place, error) from error


def _cause(found: object) -> str:
    return "is missing" if found is None else "is damaged"


def _made_by(place: Place, root: Mapping[str, Any]) -> tuple[Recipe, Generation]:
    try:
        return Recipe.from_json(root["recipe"]), Generation(int(root[SELF]["generation"]))
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"the output {place} does not say how it was made ({error!r}): start over with --overwrite"
        ) from error


def _outside(files: Files, generation: Generation, recipe: Recipe) -> NDArray[np.bool_] | None:
    """Blocks that a mask left out, ``(z, y, x) bool``; None without one, or where the file of them is not what it was."""
    if recipe.mask is None:
        return None
    grid = recipe.plan.grid
    document = find_file(files, generation.outside)
    try:
        found = np.unpackbits(np.load(io.BytesIO(document or b"")))[: math.prod(grid)].astype(bool).reshape(grid)
    except Exception:  # a damaged file makes NumPy raise almost any type
        return None
    return found if is_left_out(found, recipe) else None
