"""What happens to one block: read -> normalise -> mirror -> tiles -> predict -> stitch -> write."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.canary import batch_is_free
from emseg.digest import voxel_digest
from emseg.errors import BlockError, Fault, MemoryShortageError
from emseg.grid.blocks import Block
from emseg.grid.mirror import Reflection, reflect
from emseg.grid.plan import Plan
from emseg.grid.stitch import NOT_COMPUTED, QUANTA, Canvas, classify, finite, quantise, softmax
from emseg.grid.tiles import Tile, hull_of, tiles_of
from emseg.normalise import Normalisation, normalised, refuse_nonfinite
from emseg.outcome import Outcome, Stopwatch
from emseg.ports import Batch, Classifier, LabelWriter, Predictor, VolumeReader
from emseg.recipe import Empty, Recipe

MOST_CAUSE = 400
"""Longest cause in an outcome, in characters: libraries may raise pages."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a worker holds open while it segments blocks, several at a time."""

    recipe: Recipe
    volume: VolumeReader
    predictor: Predictor
    labels: LabelWriter
    turn: AbstractContextManager[object]
    """Held by the block whose turn it is at the predictor; the others read and write meanwhile."""


def segment_block(bench: Bench, block: Block) -> Outcome:
    """How the segmentation of one block ended."""
    return outcome_of(block, partial(_segment, bench, block))


def reread_block(volume: VolumeReader, plan: Plan, block: Block) -> Outcome:
    """How reading again ended what one block sees of a volume; nothing else is done to it."""

    def reread(watch: Stopwatch) -> str:
        with watch.phase("read"):
            return voxel_digest(volume.read(reflect(plan.read_box(block), volume.spec.shape).source))

    return outcome_of(block, reread)


def outcome_of(block: Block, work: Callable[[Stopwatch], str | None]) -> Outcome:
    """How the work on one block ended, with the digest of what it has read, where it gives one.

    A failure is an outcome, never an exception.
    """
    watch = Stopwatch()
    cause: str | None = None
    read: str | None = None
    fault: Fault | None = None
    try:
        read = work(watch)
    except BlockError as error:
        cause, fault = str(error), error.fault
    except Exception as error:  # whatever goes wrong in one block must not end the run
        cause, fault = f"{type(error).__name__}: {error}", "block"
    return Outcome(
        block=block.index,
        status="done" if cause is None else "failed",
        voxels=block.write.voxels,
        seconds=watch.seconds(),
        cause=None if cause is None else _one_line(cause),
        fault=fault,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        peak_bytes=_peak_bytes(),
        read=read or "",
    )


def _segment(bench: Bench, block: Block, watch: Stopwatch) -> str:
    plan, model, box = bench.recipe.plan, bench.recipe.plan.model, block.write
    with watch.phase("read"):
        seen, read = _read(bench.volume, bench.recipe.normalisation, plan.read_box(block))
    if bench.recipe.empty is not None and seen.shows_only(bench.recipe.empty.value):
        with watch.phase("write"):
            bench.labels.write(box, *declared(bench.recipe, bench.recipe.empty, box))
        return read
    labels: Canvas[np.uint8] = Canvas(box, np.uint8)
    probabilities: Canvas[np.uint8] | None = None
    if bench.recipe.probabilities:
        probabilities = Canvas(box, np.uint8, len(model.classes))
    predictor = InTurn(bench, watch)
    with watch.phase("stitch"), closing(predictor.label(seen, plan.tiles(block))) as found:  # whatever happens, the turn ends
        for target, label, stored in found:
            labels.paste(target, label)
            if probabilities is not None and stored is not None:
                probabilities.paste(target, stored)
    with watch.phase("write"):
        bench.labels.write(box, labels.finish(), None if probabilities is None else probabilities.finish())
    return read


class InTurn:
    """The predictor of a bench for one of several blocks, which take turns; the time they wait and predict is counted.

    The turn goes from tile to tile, so that while one block makes labels of its logits, another's tile is computed.
    """

    def __init__(self, bench: Bench, watch: Stopwatch) -> None:
        self.spec = bench.predictor.spec
        self._bench = bench
        self._watch = watch

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x') float32`` of normalised tiles ``(n, z, y, x) float32``."""
        with self._turn():
            return self._bench.predictor.predict(tiles)

    def label(self, seen: Seen, tiles: Iterator[Tile]) -> Generator[tuple[Box, NDArray[np.uint8], NDArray[np.uint8] | None]]:
        """As `label_tiles`; a predictor that makes bytes itself is ahead of us by a tile, so its turn is the whole block."""
        batch, probabilities = self._bench.recipe.plan.batch, self._bench.recipe.probabilities
        if not isinstance(self._bench.predictor, Classifier):
            yield from label_tiles(self, seen, tiles, batch, probabilities)
            return
        with self._turn():
            yield from label_tiles(self._bench.predictor, seen, tiles, batch, probabilities)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._watch.phase("wait"):
            self._bench.turn.__enter__()
        try:
            with self._watch.phase("predict"):
                yield
        finally:
            self._bench.turn.__exit__(None, None, None)


def predict_box(
    volume: VolumeReader, predictor: Predictor, normalisation: Normalisation, box: Box, tile: Triple, lead: Triple
) -> NDArray[np.float32]:
    """Probabilities ``(class, z, y, x) float32`` of any box inside a volume, through tiles of any valid shape and lead."""
    seen = read_seen(volume, normalisation, hull_of(box, tile, predictor.spec, lead))
    canvas: Canvas[np.float32] = Canvas(box, np.float32, len(predictor.spec.classes))
    for target, logits in predict_tiles(predictor, seen, tiles_of(box, tile, predictor.spec, lead), batch=1):
        canvas.paste(target, softmax(logits))
    return canvas.finish()


@dataclass(frozen=True, slots=True)
class Seen:
    """The voxels of a box, which may reach beyond the volume that mirrors them: as they are stored, a quarter of the memory."""

    box: Box
    """In the volume's coordinates."""
    voxels: NDArray[Any]
    """``(z, y, x)`` in the volume's type."""
    mean: NDArray[np.float32]
    """Of each slice, ``(z)``."""
    deviation: NDArray[np.float32]
    """Of each slice, ``(z)``."""

    def shows_only(self, value: float) -> bool:
        """Whether each voxel has this value."""
        return bool((self.voxels == value).all())

    def batch(self, group: list[Tile]) -> Batch:
        """What these tiles see."""
        where = [tile.source.relative_to(self.box.start).slices() for tile in group]
        mean, deviation = (np.stack([table[slices[0]] for slices in where]) for table in (self.mean, self.deviation))
        if len(where) == 1:  # a tile by itself is not copied: nobody writes to a batch
            return Batch(self.voxels[where[0]][None], mean, deviation)
        return Batch(np.stack([self.voxels[slices] for slices in where]), mean, deviation)


def declared(recipe: Recipe, empty: Empty, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Labels ``(z, y, x)`` of a block that is not predicted, and probabilities ``(class, z, y, x)`` if the run keeps them."""
    labels = np.full(box.shape, empty.label, np.uint8)
    if not recipe.probabilities:
        return labels, None
    probabilities = np.zeros((len(recipe.plan.model.classes), *box.shape), np.uint8)
    probabilities[empty.label] = QUANTA
    return labels, probabilities


def read_seen(volume: VolumeReader, normalisation: Normalisation, box: Box) -> Seen:
    """The voxels of a box, which may reach beyond the volume.

    Raises
    ------
    BlockError
        If a voxel is NaN or infinite, or what is stored cannot be read.
    """
    reflection = reflect(box, volume.spec.shape)
    return _mirrored(volume.read(reflection.source), reflection, normalisation, box)


def _read(volume: VolumeReader, normalisation: Normalisation, box: Box) -> tuple[Seen, str]:
    """As `read_seen`, with the digest of what was read."""
    reflection = reflect(box, volume.spec.shape)
    values = volume.read(reflection.source)
    return _mirrored(values, reflection, normalisation, box), voxel_digest(values)


def _mirrored(values: NDArray[Any], reflection: Reflection, normalisation: Normalisation, box: Box) -> Seen:
    """The voxels of a box, made of those ``(z, y, x)`` of them that lie within the volume."""
    refuse_nonfinite(values, reflection.source, BlockError)
    return Seen(box, reflection.fill(values), *normalisation.table(reflection.source.start[0] + reflection.gather[0]))


def label_tiles(
    predictor: Predictor, seen: Seen, tiles: Iterator[Tile], batch: int, probabilities: bool
) -> Iterator[tuple[Box, NDArray[np.uint8], NDArray[np.uint8] | None]]:
    """Each tile's target with its labels ``(z, y, x)`` and, if asked for, stored probabilities ``(class, z, y, x)``.

    Raises
    ------
    BlockError
        As `predict_tiles`.
    """
    if not isinstance(predictor, Classifier):
        for target, logits in predict_tiles(predictor, seen, tiles, batch):
            yield target, classify(logits), quantise(softmax(logits)) if probabilities else None
        return
    ours, theirs = itertools.tee(_grouped(tiles, batch))
    try:
        found = predictor.classify((seen.batch(group) for group in ours), probabilities)
        for group, (labels, stored) in zip(theirs, found, strict=True):
            for number, tile in enumerate(group):
                kept = tile.target.relative_to(tile.output.start).slices()
                if (labels[number] == NOT_COMPUTED).any():
                    raise _not_finite(tile)
                yield tile.target, labels[number][kept], None if stored is None else stored[number][(slice(None), *kept)]
    except MemoryShortageError as error:
        raise _too_large(batch, error) from error


def predict_tiles(
    predictor: Predictor, seen: Seen, tiles: Iterator[Tile], batch: int
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Each tile's target with its logits ``(class, z, y, x) float32``.

    Raises
    ------
    BlockError
        If the network predicts NaN or infinity, or has too little memory for a batch that cannot be made smaller.
    """
    for group in _grouped(tiles, batch):
        for tile, logits in zip(group, _predict(predictor, normalised(*seen.batch(group))), strict=True):
            if not finite(logits):
                raise _not_finite(tile)
            kept = tile.target.relative_to(tile.output.start).slices()
            yield tile.target, logits[(slice(None), *kept)]


def _grouped(tiles: Iterator[Tile], batch: int) -> Iterator[list[Tile]]:
    while group := list(itertools.islice(tiles, batch)):
        yield group


def _not_finite(tile: Tile) -> BlockError:
    return BlockError(f"the network predicts NaN or infinity in {tile.target}: its weights or the voxels are broken")


def _predict(predictor: Predictor, sources: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits of a batch, which is halved if memory is short and this predictor gives the same bytes for any batch."""
    try:
        return predictor.predict(sources)
    except MemoryShortageError as error:
        if len(sources) > 1 and batch_is_free(predictor, len(sources)):
            half = len(sources) // 2
            return np.concatenate([_predict(predictor, sources[:half]), _predict(predictor, sources[half:])])
        raise _too_large(len(sources), error) from error


def _too_large(batch: int, error: MemoryShortageError) -> BlockError:
    return BlockError(
        f"the network has too little memory for a batch of {batch} of the run's tiles ({error}): "
        "use fewer workers or a device with more memory, or start over with --overwrite and a smaller --tile"
    )


def _one_line(cause: str) -> str:
    line = " ".join(cause.split()) or "no reason given"
    return line if len(line) <= MOST_CAUSE else f"{line[: MOST_CAUSE - 3]}..."


def _peak_bytes() -> int:
    """Largest memory of this process; on Linux without what it shared with its parent before it became a program of its own."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
