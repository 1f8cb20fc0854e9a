"""Contents of an output, and whether they are complete and undamaged. All commands use the checks in this module.

    shards      voxels of each level of the run's images and of instance labels; checksums cover each byte
    documents   metadata of groups and arrays, and the blocks that a mask excludes; they follow from the output's own metadata
    tables      segments of instance labels; the metadata of these have their SHA-256

Missing shards, documents and tables are found quickly. Damaged shards are found only by reading them.
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

from emseg.runs.stop import Stop, StoppedError
from emseg.runs.tally import quantity
from emseg_core.box import Triple
from emseg_core.errors import BlockError, OutputError
from emseg_core.grid.pyramid import level_shapes
from emseg_core.recipe import Recipe
from emseg_core.store.files.atomic_write import output_error
from emseg_core.store.files.faults import StoreError
from emseg_core.store.files.files import Files, open_files
from emseg_core.store.files.place import ZARR_JSON, Place
from emseg_core.store.outputs.descriptions import (
    COPY_FILE,
    DIGEST_KEY,
    OUTPUT_KEY,
    copies_attributes,
    find_file,
    root_description,
)
from emseg_core.store.outputs.instances import (
    descriptions,
    digest_of,
    instance_levels,
    instances_group,
    labels_attributes,
    space_of,
    table_path,
)
from emseg_core.store.outputs.layout import Generation, OutputLayout
from emseg_core.store.outputs.level import REPAIR_HINT, Level
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.outputs.scratch import image_documents
from emseg_core.store.zarrs.arrays import group_metadata, same_document
from emseg_core.store.zarrs.ome import levels, multiscales_of

CLASSES = ""
"""Stands for the images that the run itself has written, next to the names of instance labels."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something missing or damaged, apart from single shards."""

    name: str
    """Name of a file or an image of the output."""
    cause: str
    image: str | None = None
    """Image to which it belongs: `CLASSES` or the name of instance labels; None for the output itself."""
    remedy: str = REPAIR_HINT

    def __str__(self) -> str:
        return f"{self.name} {self.cause}: {self.remedy}"

    def hides(self, image: str) -> bool:
        """Check whether an image can no longer be shown, because more than its table is lost.

        Parameters
        ----------
        image
            Name of the image.

        Returns
        -------
        bool
            False also for flaws of other images.
        """
        return self.image == image and self.name != table_path(image)


@dataclass(frozen=True, slots=True)
class Inventory:
    """Contents of an output apart from its shards, according to its metadata."""

    files: Files
    root: dict[str, Any]
    """Metadata of the output."""
    recipe: Recipe
    generation: Generation
    outside: NDArray[np.bool_] | None
    """Blocks that a mask excludes, ``(z, y, x) bool``; None without a mask, or if that file is lost."""
    instances: dict[str, dict[str, Any]]
    """Metadata of each image of instance labels, by name."""

    @property
    def lost_mask(self) -> bool:
        """Whether the file of blocks that a mask excludes is lost."""
        return self.recipe.mask is not None and self.outside is None

    def documents(self) -> Iterator[tuple[str, bytes, str | None]]:
        """Yield the documents as they should be, the root's metadata last.

        Yields
        ------
        tuple
            Name, content, and the image to which the document belongs (None for the output itself).
        """
        attributes = {key: value for key, value in self.root.items() if key not in (OUTPUT_KEY, DIGEST_KEY)}
        outside = np.zeros(self.recipe.plan.grid, bool) if self.lost_mask else self.outside
        form = layout_of(self.recipe, outside, attributes)
        for name, document in form.documents(self.generation):
            if name != self.generation.outside or not self.lost_mask:
                yield name, document, CLASSES
        for image, description in self.instances.items():
            for name, document in self._image(image, description):
                yield name, document, image
        yield (
            f"labels/{ZARR_JSON}",
            group_metadata(labels_attributes(form.listed(self.generation), [*self.instances, *self.unknown])),
            None,
        )
        yield COPY_FILE, group_metadata(copies_attributes(self.root, self.instances)), None
        root = form.root(self.generation)
        if DIGEST_KEY not in self.root:
            del root["emseg"][DIGEST_KEY]
        yield ZARR_JSON, group_metadata(root), None

    @property
    def unknown(self) -> list[str]:
        """Names of instance labels of an older release, without copies of metadata, whose metadata are lost."""
        if DIGEST_KEY in self.root:
            return []
        try:
            names = json.loads(find_file(self.files, f"labels/{ZARR_JSON}") or b"")["attributes"]["ome"]["labels"]
            return [str(name) for name in names if name not in {self.generation.classes, *self.instances}]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []

    def flaws(self) -> Iterator[Flaw]:
        """Yield each document and each table that is missing or damaged.

        Yields
        ------
        Flaw
            One for each.

        Raises
        ------
        OutputError
            If the store is unavailable.
        """
        yield from self.damaged_documents()
        with _read(self.files.place):
            for image, description in self.instances.items():
                digest = digest_of(self.files, table_path(image))
                if digest is None or digest != description.get("table", digest):
                    yield Flaw(table_path(image), _cause(digest), image)
            for image in self.unknown:
                yield Flaw(f"labels/{image}", "no longer records how it was made", image, "label it again")

    def damaged_documents(self) -> Iterator[Flaw]:
        """Yield each document that is missing or damaged.

        Yields
        ------
        Flaw
            One for each.

        Raises
        ------
        OutputError
            If the store is unavailable.
        """
        with _read(self.files.place):
            for name, document, image in self.documents():
                found = find_file(self.files, name)
                older = name == COPY_FILE and DIGEST_KEY not in self.root and same_document(found, group_metadata({}))
                if not (older or same_document(found, document)):
                    yield Flaw(name, _cause(found), image)
            if self.lost_mask:
                name = self.generation.outside
                yield Flaw(name, _cause(find_file(self.files, name)), CLASSES)

    def _image(self, image: str, description: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Yield the documents of instance labels, which may have fewer levels than the output if an older release made them."""
        plan, steps = self.recipe.plan, self.recipe.steps
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            group = json.loads(find_file(self.files, f"labels/{image}/{ZARR_JSON}") or b"")["attributes"]
            steps = steps[: max(0, len(list(levels(multiscales_of(group)))) - 1)] if DIGEST_KEY not in description else steps
        space = space_of(self.recipe.volume, plan.region)
        shapes: list[Triple] = list(level_shapes(plan.region.shape, steps))
        group = instances_group(space, steps, description)
        yield from image_documents(f"labels/{image}", space, shapes, plan.unit, plan.chunk, group)


def layout_of(recipe: Recipe, outside: NDArray[np.bool_] | None, attributes: dict[str, Any]) -> OutputLayout:
    """Return the layout of an output of a recipe.

    Parameters
    ----------
    outside
        Blocks that a mask excludes, ``(z, y, x) bool`` on the grid of the plan; None without a mask.
    attributes
        Metadata of the output.

    Returns
    -------
    OutputLayout
        The layout.
    """
    return OutputLayout(
        volume=recipe.volume,
        region=recipe.plan.region,
        heads=recipe.stored_heads,
        unit=recipe.plan.unit,
        chunk=recipe.plan.chunk,
        probabilities=recipe.probabilities,
        attributes=attributes,
        steps=recipe.steps,
        outside=outside,
    )


def inventory(place: Place) -> Inventory:
    """List the contents of an output.

    Parameters
    ----------
    place
        Place of the output.

    Returns
    -------
    Inventory
        The contents, as they should be.

    Raises
    ------
    OutputError
        If there is no output, or it no longer records how it was made.
    """
    files = open_files(place)
    try:
        root = root_description(files)
    except OSError as error:
        open_output(place)  # has a better message if there is nothing, or something else
        raise output_error(place, error) from error
    if root is None:
        open_output(place)
        raise OutputError(
            f"neither {ZARR_JSON} nor its copy {COPY_FILE} in the output {place} records how it was made: restore one of them, "
            "or remove the output and compute it again"
        )
    recipe, generation = _made_by(place, root)
    with _read(place):
        return Inventory(files, root, recipe, generation, _outside(files, generation, recipe), descriptions(files))


def matches_mask(outside: NDArray[np.bool_], recipe: Recipe) -> bool:
    """Check whether these are the blocks that the mask of a recipe excludes.

    Parameters
    ----------
    outside
        Whether each block is excluded, ``(z, y, x) bool``.
    recipe
        Recipe of the output.

    Returns
    -------
    bool
        True if their digest is the one in the recipe.
    """
    return mask_digest(outside) == recipe.mask


def mask_digest(outside: NDArray[np.bool_]) -> str:
    """Return the SHA-256 of the blocks that a mask excludes, as in recipes."""
    return hashlib.sha256(np.packbits(outside).tobytes()).hexdigest()


def find_flaws(stored: Output) -> tuple[Flaw, ...]:
    """Find missing or damaged parts of an output without reading its shards.

    Blocks and write units of coarser levels that are not written yet do not count.

    Parameters
    ----------
    stored
        The open output.

    Returns
    -------
    tuple of Flaw
        Everything missing or damaged.

    Raises
    ------
    OutputError
        If the store is unavailable.
    """
    found = inventory(stored.path)
    flaws = list(found.flaws())
    for name, levels_of in image_levels(stored, found, flaws).items():
        if name != CLASSES:
            flaws += _gaps(name, levels_of)
    return tuple(flaws)


def image_levels(stored: Output, found: Inventory, flaws: Sequence[Flaw]) -> dict[str, tuple[Level, ...]]:
    """Open the levels of each image of an output.

    Parameters
    ----------
    stored
        The open output.
    found
        Its contents.
    flaws
        Everything missing or damaged.

    Returns
    -------
    dict
        Levels by the name of the image, `CLASSES` first, without images whose metadata have a flaw.
    """
    images = {CLASSES: stored.levels}
    for name in found.instances:
        if not any(flaw.hides(name) for flaw in flaws):
            images[name] = instance_levels(stored, name)
    return images


def why_damaged(stored: Output, name: str, stop: Stop) -> str:
    """Verify every byte of instance labels and their table, to decide whether they must be made again.

    Parameters
    ----------
    stored
        The open output.
    name
        Name of the instance labels.
    stop
        Request to end.

    Returns
    -------
    str
        Why they must be made again; empty if they are undamaged.

    Raises
    ------
    BlockError
        If the store fails temporarily, so that nothing is known about the labels.
    OutputError
        If the store is unavailable.
    StoppedError
        If a stop was requested.
    """
    found = inventory(stored.path)
    flaws = [flaw for flaw in found.flaws() if flaw.image == name]
    image = image_levels(stored, found, flaws).get(name, ())
    flaws += _gaps(name, image)
    if flaws:
        return f"{flaws[0].name} {flaws[0].cause}"
    for number, level in enumerate(image):
        for error in check_level(stored, name, number, level, stop).damage.values():
            if error.fault == "store":
                raise error
            return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class LevelCondition:
    """Condition of the write units of a level."""

    done: NDArray[np.bool_]
    """Units that are written, ``(unit,) bool``."""
    damage: Mapping[int, BlockError]
    """Written units that cannot be read, and why."""
    where: Callable[[int], str]
    """Returns the voxels of a unit; of the finest level, in the format of ``--roi``."""

    @property
    def missing(self) -> int:
        """Number of units that are not written."""
        return int((~self.done).sum())

    @property
    def unusable(self) -> int:
        """Number of units that cannot be used."""
        return len(self.damage) + self.missing


def check_level(
    stored: Output, image: str, number: int, level: Level, stop: Stop, again: Iterable[int] | None = None
) -> LevelCondition:
    """Read every byte of a level, one write unit at a time.

    Parameters
    ----------
    stored
        The output.
    image
        Name of the image, `CLASSES` or that of instance labels.
    number
        Number of the level.
    level
        The level.
    stop
        Interrupts the reading.
    again
        Units to read; None for all that are written.

    Returns
    -------
    LevelCondition
        Condition of the units.

    Raises
    ------
    StoppedError
        If a stop was requested.
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
    return LevelCondition(done, damage, where)


def _place(stored: Output, image: str, number: int, level: Level, index: int) -> str:
    box = level.blocks.block(index).write
    inside = f"level {number}, {box}" if number else str(box.shift(stored.region.start))
    return inside if image == CLASSES else f"{image}, {inside}"


def _gaps(image: str, levels_of: Sequence[Level]) -> Iterator[Flaw]:
    """Yield a flaw for each level of instance labels that is incomplete."""
    for number, level in enumerate(levels_of):
        if missing := int((~level.done()).sum()):
            yield Flaw(f"labels/{image}/{number}", f"lacks {missing} of {quantity(len(level.blocks), 'shard')}", image)


@contextmanager
def _read(place: Place) -> Iterator[None]:
    """Convert errors of the store within the ``with`` to an `OutputError`: they do not mean that files are damaged."""
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
        return Recipe.from_json(root["recipe"]), Generation(int(root[OUTPUT_KEY]["generation"]))
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"the output {place} does not record how it was made ({error!r}): start over with --overwrite"
        ) from error


def _outside(files: Files, generation: Generation, recipe: Recipe) -> NDArray[np.bool_] | None:
    """Read the blocks that a mask excludes, ``(z, y, x) bool``; None without a mask, or if their file is damaged."""
    if recipe.mask is None:
        return None
    grid = recipe.plan.grid
    document = find_file(files, generation.outside)
    try:
        found = np.unpackbits(np.load(io.BytesIO(document or b"")))[: math.prod(grid)].astype(bool).reshape(grid)
    except Exception:  # a damaged file makes NumPy raise almost any type
        return None
    return found if matches_mask(found, recipe) else None
