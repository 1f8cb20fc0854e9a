"""Processing of one block: read -> normalise -> mirror -> tiles -> predict -> stitch -> write."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.canary import batch_is_free
from emseg_core.digest import voxel_digest
from emseg_core.errors import BlockError, Fault, MemoryShortageError
from emseg_core.grid.blocks import Block
from emseg_core.grid.mirror import Reflection, reflect
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA, Canvas, finite, softmax, stored_values
from emseg_core.grid.tiles import Tile, hull_of, tiles_of
from emseg_core.normalise import Normalisation, normalised, refuse_nonfinite
from emseg_core.outcome import Outcome, Stopwatch
from emseg_core.ports import Batch, BlockWriter, Classifier, Predictor, VolumeReader
from emseg_core.recipe import Empty, Recipe
from emseg_core.specs.heads import StoredImage, channels_of, parts_of

MAX_CAUSE_LENGTH = 400
"""Longest failure message in an outcome, in characters; libraries may raise pages."""


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Resources a worker keeps open while it segments blocks, several at a time."""

    recipe: Recipe
    """Recipe of the run."""
    volume: VolumeReader
    """The open volume."""
    predictor: Predictor
    """The network."""
    output: BlockWriter
    """The open output."""
    turn: AbstractContextManager[object]
    """Lock on the predictor. One block holds it at a time; the others read and write meanwhile."""


def segment_block(context: BlockContext, block: Block) -> Outcome:
    """Segment one block: read, predict and write it.

    Parameters
    ----------
    context
        The worker's open resources.
    block
        The block.

    Returns
    -------
    Outcome
        Result of the block. A failure is reported in it and never raised.
    """
    return outcome_of(block, partial(_segment, context, block))


def reread_block(volume: VolumeReader, plan: Plan, block: Block) -> Outcome:
    """Read again the voxels that one block depends on, without predicting or writing.

    Parameters
    ----------
    volume
        The open volume.
    plan
        The plan of the run.
    block
        The block.

    Returns
    -------
    Outcome
        Result of the read, with the digest of the voxels. A failure is reported in it and never raised.
    """

    def reread(watch: Stopwatch) -> str:
        with watch.phase("read"):
            return voxel_digest(volume.read(reflect(plan.read_box(block), volume.spec.shape).source))

    return outcome_of(block, reread)


def outcome_of(block: Block, work: Callable[[Stopwatch], str | None]) -> Outcome:
    """Run `work` on one block and describe how it ended.

    Parameters
    ----------
    block
        The block.
    work
        Function to call with a stopwatch. It returns the digest of the voxels it read, or None.

    Returns
    -------
    Outcome
        Result of the block. A failure is reported in it and never raised.
    """
    watch = Stopwatch()
    cause: str | None = None
    read: str | None = None
    fault: Fault | None = None
    try:
        read = work(watch)
    except BlockError as error:
        cause, fault = str(error), error.fault
    except Exception as error:  # an error in one block must not end the run
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


def _segment(context: BlockContext, block: Block, watch: Stopwatch) -> str:
    plan, box = context.recipe.plan, block.write
    with watch.phase("read"):
        seen, read = _read(context.volume, context.recipe.normalisation, plan.read_box(block))
    if context.recipe.empty is not None and seen.shows_only(context.recipe.empty.value):
        with watch.phase("write"):
            context.output.write(box, empty_block_values(context.recipe, context.recipe.empty, box))
        return read
    canvases: list[Canvas[Any]] = [Canvas(box, image.dtype, image.channels or None) for image in context.recipe.images]
    predictor = TurnTakingPredictor(context, watch)
    # `closing` gives the turn back if an error ends the loop
    with watch.phase("stitch"), closing(predictor.label(seen, plan.tiles(block))) as found:
        for target, values in found:
            for canvas, voxels in zip(canvases, values, strict=True):
                canvas.paste(target, voxels)
    with watch.phase("write"):
        context.output.write(box, [canvas.finish() for canvas in canvases])
    return read


class TurnTakingPredictor:
    """Predictor of a worker as one of its blocks uses it: blocks take turns, and waiting and predicting are timed.

    The turn passes from tile to tile, so that while one block turns predictions into labels, a tile of another is predicted.
    """

    def __init__(self, context: BlockContext, watch: Stopwatch) -> None:
        self.spec = context.predictor.spec
        self._context = context
        self._watch = watch

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a batch of tiles, once it is this block's turn.

        Parameters
        ----------
        tiles
            Normalised tiles, ``(n, z, y, x) float32``.

        Returns
        -------
        ndarray
            Channels of all heads, ``(n, channels, z', y', x') float32``.
        """
        with self._turn():
            return self._context.predictor.predict(tiles)

    def label(self, seen: Seen, tiles: Iterator[Tile]) -> Generator[tuple[Box, list[NDArray[Any]]]]:
        """Label tiles as `label_tiles` does, in turn with the other blocks.

        A predictor that makes labels itself works one tile ahead, so it is held for the whole block.

        Parameters
        ----------
        seen
            Voxels that the tiles read.
        tiles
            Tiles of the block.

        Yields
        ------
        tuple
            Target of each tile with the voxels of each image of the run.
        """
        batch, images = self._context.recipe.plan.batch, self._context.recipe.images
        if not isinstance(self._context.predictor, Classifier):
            yield from label_tiles(self, seen, tiles, batch, images)
            return
        with self._turn():
            yield from label_tiles(self._context.predictor, seen, tiles, batch, images)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._watch.phase("wait"):
            self._context.turn.__enter__()
        try:
            with self._watch.phase("predict"):
                yield
        finally:
            self._context.turn.__exit__(None, None, None)


def predict_box(
    volume: VolumeReader, predictor: Predictor, normalisation: Normalisation, box: Box, tile: Triple, lead: Triple
) -> NDArray[np.float32]:
    """Predict any box inside a volume.

    Parameters
    ----------
    volume
        The open volume.
    predictor
        The network.
    normalisation
        Normalisation of the volume.
    box
        The box, in the volume's coordinates.
    tile
        Shape (z, y, x) of the tiles in voxels, any that is valid for the network.
    lead
        Voxels (z, y, x) by which the first tile starts earlier, see `emseg_core.grid.tiles.tiles_of`.

    Returns
    -------
    ndarray
        Channels of all heads, ``(channel, z, y, x) float32``: probabilities, and values of heads that have none.

    Raises
    ------
    BlockError
        If the box cannot be read or predicted.
    """
    seen = read_seen(volume, normalisation, hull_of(box, tile, predictor.spec, lead))
    heads = predictor.spec.heads
    canvas: Canvas[np.float32] = Canvas(box, np.float32, channels_of(heads))
    for target, output in predict_tiles(predictor, seen, tiles_of(box, tile, predictor.spec, lead), batch=1):
        parts = [softmax(output[part]) if head.kind == "classes" else output[part] for head, part in parts_of(heads)]
        canvas.paste(target, np.concatenate(parts) if len(parts) > 1 else parts[0])
    return canvas.finish()


@dataclass(frozen=True, slots=True)
class Seen:
    """The voxels of a box, mirrored where it reaches beyond the volume.

    They keep the volume's type, which takes a quarter of the memory of normalised voxels if that is ``uint8``.
    """

    box: Box
    """In the volume's coordinates."""
    voxels: NDArray[Any]
    """Voxels ``(z, y, x)``, or ``(c, z, y, x)`` of several channels, in the volume's type."""
    mean: NDArray[np.float32]
    """Mean of each slice, ``(z)``; ``(c, z)`` of several channels, or ``(members, z)`` for an ensemble."""
    deviation: NDArray[np.float32]
    """Standard deviation of each slice, in the same shape."""

    def shows_only(self, value: float) -> bool:
        """Return whether every voxel has this value.

        Parameters
        ----------
        value
            A voxel value before it is normalised.

        Returns
        -------
        bool
            False if there is another value.
        """
        return bool((self.voxels == value).all())

    def batch(self, group: list[Tile]) -> Batch:
        """Return the input of these tiles as a batch that is not normalised yet.

        Parameters
        ----------
        group
            Tiles of one shape.

        Returns
        -------
        Batch
            Voxels of the tiles in the volume's type, ``(n, z, y, x)``, or ``(n, c, z, y, x)`` with a c of 1 for an ensemble,
            with the statistics of each slice.
        """
        where = [tile.source.relative_to(self.box.start).slices() for tile in group]
        mean, deviation = (np.stack([table[..., slices[0]] for slices in where]) for table in (self.mean, self.deviation))
        # no copy for a single tile: batches are read-only
        tiles = [self.voxels[(..., *slices)] for slices in where]
        voxels = tiles[0][None] if len(tiles) == 1 else np.stack(tiles)
        of_ensemble = self.voxels.ndim == 3 and mean.ndim == 3
        return Batch(voxels[:, None] if of_ensemble else voxels, mean, deviation)


def empty_block_values(recipe: Recipe, empty: Empty, box: Box) -> list[NDArray[Any]]:
    """Return what is stored for a block that is declared empty and therefore not predicted.

    Parameters
    ----------
    recipe
        Recipe of the run.
    empty
        Declaration of the grey value and its class.
    box
        Write box of the block.

    Returns
    -------
    list of ndarray
        Voxels of each image of the run.
    """
    values: list[NDArray[Any]] = []
    for image in recipe.images:
        if image.content == "labels":
            values.append(np.full(box.shape, empty.label, np.uint8))
        else:
            values.append(np.zeros((image.channels, *box.shape), np.uint8))
            values[-1][empty.label] = QUANTA
    return values


def read_seen(volume: VolumeReader, normalisation: Normalisation, box: Box) -> Seen:
    """Read the voxels of a box, which may reach beyond the volume.

    Parameters
    ----------
    volume
        The open volume.
    normalisation
        Normalisation of the volume.
    box
        The box, in the volume's coordinates.

    Returns
    -------
    Seen
        The voxels with the mean and deviation of each slice.

    Raises
    ------
    BlockError
        If a voxel is NaN or infinite, or stored data cannot be read.
    """
    reflection = reflect(box, volume.spec.shape)
    return _mirrored(volume.read(reflection.source), reflection, normalisation, box)


def _read(volume: VolumeReader, normalisation: Normalisation, box: Box) -> tuple[Seen, str]:
    """Read as `read_seen` does, and return the digest of the voxels as well."""
    reflection = reflect(box, volume.spec.shape)
    values = volume.read(reflection.source)
    return _mirrored(values, reflection, normalisation, box), voxel_digest(values)


def _mirrored(values: NDArray[Any], reflection: Reflection, normalisation: Normalisation, box: Box) -> Seen:
    """Fill a box from those of its voxels ``(..., z, y, x)`` that lie within the volume."""
    refuse_nonfinite(values, reflection.source, BlockError)
    return Seen(box, reflection.fill(values), *normalisation.table(reflection.source.start[0] + reflection.gather[0]))


def label_tiles(
    predictor: Predictor, seen: Seen, tiles: Iterator[Tile], batch: int, images: Sequence[StoredImage]
) -> Iterator[tuple[Box, list[NDArray[Any]]]]:
    """Predict tiles and turn the predictions into voxels of images.

    Parameters
    ----------
    predictor
        The network.
    seen
        Voxels that the tiles read.
    tiles
        The tiles.
    batch
        Tiles per call of the network.
    images
        Images that are stored; of a predictor that makes labels itself, those of classes alone.

    Yields
    ------
    tuple
        Target of each tile with the voxels of each image.

    Raises
    ------
    BlockError
        As `predict_tiles`, or if a prediction cannot be stored.
    """
    if not isinstance(predictor, Classifier):
        parts = {head.name: part for head, part in parts_of(predictor.spec.heads)}
        for target, output in predict_tiles(predictor, seen, tiles, batch):
            try:
                yield target, [stored_values(image, output[parts[image.head.name]]) for image in images]
            except ValueError as error:
                raise BlockError(f"{error} in {target}: correct the description of the model") from error
        return
    probabilities = len(images) > 1
    inputs, outputs = itertools.tee(_grouped(tiles, batch))
    try:
        found = predictor.classify((seen.batch(group) for group in inputs), probabilities)
        for group, (labels, stored) in zip(outputs, found, strict=True):
            for number, tile in enumerate(group):
                kept = tile.target.relative_to(tile.output.start).slices()
                if (labels[number] == NOT_COMPUTED).any():
                    raise _not_finite(tile)
                shares = [] if stored is None else [stored[number][(slice(None), *kept)]]
                yield tile.target, [*shares, labels[number][kept]]
    except MemoryShortageError as error:
        raise _too_large(batch, error) from error


def predict_tiles(
    predictor: Predictor, seen: Seen, tiles: Iterator[Tile], batch: int
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Predict tiles, several per call.

    Parameters
    ----------
    predictor
        The network.
    seen
        Voxels that the tiles read.
    tiles
        The tiles.
    batch
        Tiles per call of the network.

    Yields
    ------
    tuple
        Target of each tile with the channels of all heads, ``(channel, z, y, x) float32``.

    Raises
    ------
    BlockError
        If the network predicts NaN or infinity, or if memory is too short for a batch that cannot be made smaller.
    """
    for group in _grouped(tiles, batch):
        for tile, output in zip(group, _predict(predictor, normalised(*seen.batch(group))), strict=True):
            if not finite(output):
                raise _not_finite(tile)
            kept = tile.target.relative_to(tile.output.start).slices()
            yield tile.target, output[(slice(None), *kept)]


def _grouped(tiles: Iterator[Tile], batch: int) -> Iterator[list[Tile]]:
    while group := list(itertools.islice(tiles, batch)):
        yield group


def _not_finite(tile: Tile) -> BlockError:
    return BlockError(f"the network predicts NaN or infinity in {tile.target}: check its weights and the voxels there")


def _predict(predictor: Predictor, sources: NDArray[np.float32]) -> NDArray[np.float32]:
    """Predict a batch; if memory is short, halve it, provided that this predictor gives the same bytes for any batch."""
    try:
        return predictor.predict(sources)
    except MemoryShortageError as error:
        if len(sources) > 1 and batch_is_free(predictor, len(sources)):
            half = len(sources) // 2
            return np.concatenate([_predict(predictor, sources[:half]), _predict(predictor, sources[half:])])
        raise _too_large(len(sources), error) from error


def _too_large(batch: int, error: MemoryShortageError) -> BlockError:
    return BlockError(
        f"there is too little memory for a batch of {batch} tile{'s' if batch != 1 else ''} ({error}): "
        "use fewer workers or a device with more memory, or start over with --overwrite and a smaller --tile"
    )


def _one_line(cause: str) -> str:
    line = " ".join(cause.split()) or "no reason given"
    return line if len(line) <= MAX_CAUSE_LENGTH else f"{line[: MAX_CAUSE_LENGTH - 3]}..."


def _peak_bytes() -> int:
    """Return the peak memory of this process.

    On Linux, this leaves out the memory it shared with its parent before ``exec``.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
