"""Freeze the normalisations of a network that see a whole tile: measure their statistics once on a sample of a volume.

Instance, group and layer norms over space use the mean and variance of the tile. With statistics that are the same for every
tile, each becomes a product and a sum with constants, and the network is local: labels no longer depend on tiles.

The sample is a lattice of tiles over the whole volume, fixed by arithmetic. It is swept a fixed number of times. In the
first sweep each tile uses its own statistics, in later ones those of the sweep before. So the first norm is exact after one
sweep and the second after two, as all before it are then frozen; the change of deeper ones becomes smaller with each sweep.
Sweeps take the memory of one tile, where all tiles side by side would take that of the sample, and a fixed time, where a sweep
for each norm would take longer for deeper networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emseg_core.block import read_seen
from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError, ModelError, VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.mask import outside
from emseg_core.model.external_model import ExternalModel, norms_refusal, opened
from emseg_core.model.receptive_field import MAX_BYTES, MAX_OPERATIONS
from emseg_core.normalise import Normalisation, normalised
from emseg_core.ports import VolumeReader
from emseg_core.specs.contract import FrozenNorm

SWEEPS = 3
"""Times that the sample goes through the network."""
MOST_TILES, LEAST_TILES = 64, 4
"""Number of tiles of a sample, if the volume has as many."""
LENGTHS_PLANAR, LENGTHS_CUBIC = (512, 256, 128, 64, 32), (128, 96, 64, 32)
"""Lengths of tiles of a sample, in voxels, the first that fits is taken."""
MULTIPLE = 32
"""Lengths of tiles of a small volume are rounded up to multiples of this, in voxels."""
MOST_UNITS = 2**16
"""Number of places that tiles of a sample are chosen from."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Step of an even sequence, as a fraction of the whole."""


def freeze(
    model: ExternalModel, volume: VolumeReader, normalisation: Normalisation, mask: VolumeReader | None = None
) -> ExternalModel:
    """Measure the statistics that a network's normalisations over space are to use for every tile.

    Parameters
    ----------
    model
        The network.
    volume
        The volume.
    normalisation
        How its grey values are normalised.
    mask
        Where it is nonzero, statistics are measured; None for the whole volume.

    Returns
    -------
    ExternalModel
        The network with frozen statistics, which depend on the network, the voxels and the mask alone.

    Raises
    ------
    InputError
        If it has no such normalisation, or no tile of the sample can be computed.
    """
    network, shape, example, _ = opened(model)
    planar = len(shape) == 4
    tile = _tile(model, network, volume.spec.shape, shape, example)
    source = (1, 1, *tile[planar:])
    numbers = network.norms(source)
    if not numbers:
        raise norms_refusal(model.path)
    count = max(1, min(MOST_TILES, MAX_OPERATIONS // (SWEEPS * max(1, network.cost(source)[0]))))
    tiles = _sample(volume, normalisation, tile, count, mask)
    norms: list[FrozenNorm] = []
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # sums depend on the number of threads
        for _ in range(SWEEPS):
            norms = _pooled([network.statistics(torch.from_numpy(part.reshape(source)), numbers, norms) for part in tiles])
    finally:
        torch.set_num_threads(threads)
    if not all(math.isfinite(number) for norm in norms for number in (*norm.mean, *norm.variance)):
        raise ModelError(f"the values in {model.path} overflow, so their statistics cannot be frozen: leave out --norms frozen")
    return replace(model, norms=tuple(norms))


def _tile(
    model: ExternalModel, network: Any, volume: Triple, shape: Sequence[int | None], example: Sequence[int | None]
) -> Triple:
    """Choose the shape (z, y, x) of the tiles of a sample: the only one, or the largest usual one within the limits."""
    planar = len(shape) == 4
    told = model.settings.get("only_tile")
    fixed = [side for side in (told[planar:] if told is not None else shape[2:]) if side is not None]
    if len(fixed) == len(shape) - 2:
        return triple([1] * planar + fixed)
    best = None
    for length in LENGTHS_PLANAR if planar else LENGTHS_CUBIC:
        small = [min(length, -(-side // MULTIPLE) * MULTIPLE) for side in volume]
        for tried in (small, [length] * 3):
            tile = triple((1, *tried[1:]) if planar else tried)
            if (cost := _cost(network, tile[planar:])) is None or cost[1] > MAX_BYTES:
                continue
            best = tile
            if SWEEPS * LEAST_TILES * cost[0] <= MAX_OPERATIONS:
                return tile
    if best is None and None not in example:
        best = triple((1, *example[2:]) if planar else example[2:])  # type: ignore[arg-type]
    if best is None:
        raise ModelError(
            f"{model.path} accepts none of the tiles that its statistics could be measured on: write only_tile = [z, y, x], "
            f"the tile that it was made for, in voxels, into {model.stated.beside}"
        )
    return best


def _cost(network: Any, lengths: Sequence[int]) -> tuple[int, int] | None:
    """Return operations and bytes of a tile; None if the network rejects it."""
    try:
        cost: tuple[int, int] = network.cost((1, 1, *lengths))
        return cost
    except Exception:  # networks raise all kinds of errors for tiles that do not fit
        return None


def _sample(
    volume: VolumeReader, normalisation: Normalisation, tile: Triple, count: int, mask: VolumeReader | None
) -> list[NDArray[np.float32]]:
    """Read the tiles of a sample, without those of a single grey value if there are others."""
    tiles: list[NDArray[np.float32]] = []
    constant: list[NDArray[np.float32]] = []
    for box in sample_boxes(volume, tile, count, mask):
        try:
            seen = read_seen(volume, normalisation, box)
        except BlockError as error:
            raise VolumeError(f"statistics cannot be measured at {box}: {error}") from error
        same = seen.shows_only(seen.voxels.flat[0])
        (constant if same else tiles).append(normalised(seen.voxels, seen.mean, seen.deviation))
    return tiles or constant


def sample_boxes(volume: VolumeReader, tile: Triple, count: int, mask: VolumeReader | None = None) -> Iterator[Box]:
    """Choose the places of a sample's tiles, which are spread evenly over the volume.

    Parameters
    ----------
    volume
        The volume.
    tile
        Shape (z, y, x) of a tile, in voxels.
    count
        Most tiles to choose.
    mask
        Where it is nonzero, tiles are chosen; None for the whole volume.

    Yields
    ------
    Box
        A tile, which reaches beyond the volume only if it is longer than that.

    Raises
    ------
    VolumeError
        If the mask cannot be read, or has no nonzero voxel in the volume.
    """
    unit = tile
    while len(units := Blocks(volume.spec.box, unit)) > MOST_UNITS:
        unit = triple(2 * length for length in unit)
    chosen = np.arange(len(units))
    if mask is not None:
        try:
            chosen = np.flatnonzero(~outside(units, volume.spec, mask))
        except BlockError as error:
            raise VolumeError(f"the mask cannot be read: {error}") from error
    if len(chosen) > count:
        chosen = chosen[sorted({int(len(chosen) * ((number + 0.5) * GOLDEN % 1)) for number in range(count)})]
    for index in chosen:
        write = units.block(int(index)).write
        start = (
            max(0, min(first, length - side)) for first, length, side in zip(write.start, volume.spec.shape, tile, strict=True)
        )
        yield Box.of_shape(tile).shift(triple(start))


def _pooled(tiles: list[list[FrozenNorm]]) -> list[FrozenNorm]:
    """Return the statistics of all tiles together, rounded to the digits of float32, from those of each."""
    pooled = []
    for norms in zip(*tiles, strict=True):
        means, variances = (np.array(part) for part in ([norm.mean for norm in norms], [norm.variance for norm in norms]))
        mean, variance = means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
        pooled.append(FrozenNorm(norms[0].number, _short(mean), _short(variance)))
    return pooled


def _short(numbers: NDArray[np.float64]) -> tuple[float, ...]:
    """Return numbers of float32 with as few digits as tell them apart."""
    return tuple(float(str(number)) for number in numbers.astype(np.float32))
