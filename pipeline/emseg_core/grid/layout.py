"""Choice of tile, write unit and chunk: the cheapest layout that leaves enough blocks to distribute.

Every axis is treated by the same arithmetic. A write unit is a power of two times the lattice, and is divided evenly into
tiles. The price of a layout is the arithmetic of all its tiles, plus the cost of reading and decompressing their input, plus a
surcharge for tiles that need much memory. Nothing here depends on the number of workers or on measured speed; otherwise the
same run would not give the same bytes twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import ModelError, PlanError
from emseg_core.grid.plan import Plan
from emseg_core.grid.reading import reading_of
from emseg_core.specs.network import NetworkSpec
from emseg_core.specs.volume import VolumeSpec

BLOCKS_WANTED = 32
"""Blocks wanted in a short run: four for each of eight workers."""
MAX_ARITHMETIC_RATIO = 3.0
"""Largest factor by which a layout may exceed the least arithmetic in order to have more blocks."""
LONG_RUN_FLOPS = 2**39
"""Floating-point operations of a run that takes a while; from here on, the price alone decides how many blocks there are."""
WORKER_COUNTS = range(1, 9)
"""Numbers of workers among which blocks should divide evenly."""
MAX_UNIT_VOXELS = 2**23
"""Largest write unit, in voxels: 128 x 256 x 256.

From a quarter of a gigavoxel on, blocks and memory stay the same.
"""
MAX_CHUNK_VOXELS = 2**18
"""Largest chunk, in voxels: 64 cubed. Smaller chunks cost zarr-python more time than their data."""
DEFAULT_TILE_BYTES = 2**30
"""Largest activation memory of a tile, in bytes, if nothing is known about the machine."""
SMALL_TILE_BYTES = 2**28
"""Activation memory of a tile, in bytes, that every machine has for each of its cores."""
MEMORY_SURCHARGE = 0.08
"""Relative surcharge each time the tiles' memory doubles beyond `SMALL_TILE_BYTES`."""
NETWORK_CALL_FLOPS = 2**30
"""Price of one call of the network, in floating-point operations: a few milliseconds of a core."""
MAX_BLOCK_FLOPS = 600 * 2**34
"""Largest arithmetic of a block: ten minutes at 17 GFLOP/s, the speed of a slow core. A block in progress may be lost."""
MAX_SMALL_UNIT_BLOCKS = 2**12
"""Write units smaller than a quarter of the largest are only tried if there are fewer blocks than this."""
FLOPS_PER_BYTE = 4000
"""Price of reading and decompressing a byte, in floating-point operations.

A core does about 400 in that time (80 GFLOP/s of convolutions against 200 MB/s through zarr-python, measured), and a GPU on a
shared file system 100 times as many; one plan must serve both.
"""
UNCACHED_BLOCK_INTERVAL = 8
"""One block in this many is priced as if none of its input were cached.

It starts a sequence, is retried, or its worker shares the sequence with others. Without this, blocks whose shape is far from
that of the chunks would seem to cost next to nothing.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a layout besides its price."""

    tile_bytes: int = DEFAULT_TILE_BYTES
    """Largest activation memory of a tile, in bytes."""
    block_flops: int = MAX_BLOCK_FLOPS
    """Largest number of floating-point operations of a block.

    Write units are made smaller to respect it, down to a lattice cell or the step of a given tile.
    """


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to divide a region, with its cost."""

    unit: Triple
    """Shape (z, y, x) of a write unit, in voxels."""
    tile: Triple
    """Shape (z, y, x) of a network input, in voxels."""
    blocks: int
    """Number of blocks."""
    flops: int
    """Floating-point operations of all convolutions of all tiles."""
    bytes_read: int
    """Bytes that a single worker decompresses."""
    tile_bytes: int
    """Activation memory of a tile, in bytes."""
    price: float
    """Price in floating-point operations."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Division of one axis."""

    unit: int
    """Length of a write unit, in voxels."""
    parts: int
    """Tiles along a whole write unit."""
    tile: int
    """Length of a tile, in voxels."""
    units: int
    """Write units along the region."""
    tiles: int
    """Tiles along the region."""


def plan_volume(
    volume: VolumeSpec, model: NetworkSpec, region: Box | None = None, tile: Triple | None = None, limits: Limits | None = None
) -> Plan:
    """Choose the plan with the lowest price for a region of a volume.

    Parameters
    ----------
    volume
        The volume.
    model
        The network.
    region
        The region to segment; by default the whole volume.
    tile
        Shape (z, y, x) of a network input, in voxels, if it is not to be chosen.
    limits
        Bounds of memory and block size.

    Returns
    -------
    Plan
        The plan.

    Raises
    ------
    PlanError
        If the region is not inside the volume, or the network cannot process the volume.
    """
    region = region or volume.box
    return plan_with(layouts_of(volume, model, region, tile, limits)[0], volume, model, region)


def plan_with(layout: Layout, volume: VolumeSpec, model: NetworkSpec, region: Box) -> Plan:
    """Return the plan for a region of a volume that follows a layout.

    Parameters
    ----------
    layout
        The layout.
    volume
        The volume.
    model
        The network.
    region
        The region that the layout divides.

    Returns
    -------
    Plan
        The plan.
    """
    return Plan(region, layout.unit, volume.shape, model, layout.tile, 1, _chunk(layout.unit))


def layouts_of(
    volume: VolumeSpec, model: NetworkSpec, region: Box, tile: Triple | None = None, limits: Limits | None = None
) -> list[Layout]:
    """List all layouts of a region that are worth considering, the cheapest first.

    A region gets the tiles of a run on the whole volume, so that its last bits are those of a crop from such a run.

    Parameters
    ----------
    volume
        The volume.
    model
        The network.
    region
        The region to segment.
    tile
        Shape (z, y, x) of a network input, in voxels, if it is not to be chosen.
    limits
        Bounds of memory and block size.

    Returns
    -------
    list of Layout
        At least one layout.

    Raises
    ------
    PlanError
        If the region is not inside the volume, or the network cannot process the volume.
    """
    limits = limits or Limits()
    if not volume.box.contains(region):
        raise PlanError(f"the region {region} is not inside the volume {volume.box}: give a region within it")
    if model.channels != (given := max(1, len(volume.channels))):
        raise PlanError(f"the model needs {model.channels} channels, but a volume has {given}: use a model for {given}")
    if tile is None and region != volume.box:
        tile = plan_volume(volume, model, limits=limits).tile
    if tile is not None:
        try:
            model.step(tile)
        except ModelError as error:
            raise PlanError(str(error)) from error
    cut: list[tuple[Cut, ...]] = []
    largest = 4 * MAX_UNIT_VOXELS
    while not cut:  # with an expensive network, only small units keep to the limit
        largest //= 4
        cut = list(_cuts(model, region, tile, limits, largest))
    least = min(_flops(model, cuts) for cuts in cut)
    affordable = [cuts for cuts in cut if _flops(model, cuts) <= MAX_ARITHMETIC_RATIO * least]
    wanted = 1 if least > LONG_RUN_FLOPS else min(BLOCKS_WANTED, max(_count(cuts) for cuts in affordable))
    layouts = [_layout(volume, model, region, cuts) for cuts in affordable if _count(cuts) >= wanted]
    return sorted(layouts, key=lambda layout: layout.price)


def _cuts(model: NetworkSpec, region: Box, tile: Triple | None, limits: Limits, largest: int) -> Iterator[tuple[Cut, ...]]:
    """Yield each combination of write units that is neither too large nor too small, with every suitable choice of tiles."""
    lengths = [_unit_lengths(model, region, axis, tile) for axis in range(3)]
    least = triple(axis[0] for axis in lengths)
    for units in itertools.product(*lengths):
        voxels, blocks = math.prod(units), math.prod(-(-n // unit) for n, unit in zip(region.shape, units, strict=True))
        if units != least and (voxels > largest or (voxels < largest // 4 and blocks > MAX_SMALL_UNIT_BLOCKS)):
            continue
        if tile is not None:
            suited = iter([tuple(_cut(model, region, axis, unit, tile=tile[axis]) for axis, unit in enumerate(units))])
        else:
            suited = _fitted(model, region, triple(units), limits.tile_bytes)
        for cuts in suited:
            in_time = _flops(model, cuts) <= limits.block_flops * _count(cuts)
            if in_time if units != least else voxels > largest // 4 or blocks <= MAX_SMALL_UNIT_BLOCKS:
                yield cuts


def _unit_lengths(model: NetworkSpec, region: Box, axis: int, tile: Triple | None) -> list[int]:
    """List the lengths of a write unit to try along one axis; only the last one may reach the region's length.

    With a given tile they are multiples of its step. One lattice cell is subtracted if the region starts off the lattice: its
    tiles must then start before it, and would not reach the end of a whole multiple.
    """
    lattice, length = model.lattice[axis], region.shape[axis]
    step = lattice if tile is None else model.step(tile)[axis]
    spare = lattice if tile is not None and region.start[axis] % lattice and step > lattice else 0
    lengths = [step - spare]
    while lengths[-1] < length:
        step *= 2
        lengths.append(step - spare)
    return lengths


def _fitted(model: NetworkSpec, region: Box, units: Triple, most: int) -> Iterator[tuple[Cut, ...]]:
    """Yield divisions of these units into tiles whose activations need at most `most` bytes.

    The fewest tiles come first; the last ones need no more than `SMALL_TILE_BYTES`.
    """
    cuts = tuple(_cut(model, region, axis, unit, parts=1) for axis, unit in enumerate(units))
    while True:
        needed = model.activation_bytes(triple(cut.tile for cut in cuts))
        if needed <= most:
            yield cuts
        if needed <= min(most, SMALL_TILE_BYTES):
            return
        finer = [
            tuple(_cut(model, region, i, cut.unit, parts=cut.parts * 2) if i == axis else cut for i, cut in enumerate(cuts))
            for axis in range(3)
            if cuts[axis].parts < cuts[axis].unit // model.lattice[axis]
        ]
        if not finer and needed <= most:
            return
        if not finer:
            raise PlanError(
                f"the smallest tile of this model needs {needed} bytes of activations, but the limit is {most}: "
                "use a model of less width or depth"
            )
        cuts = min(finer, key=lambda tried: _flops(model, tried))


def _cut(model: NetworkSpec, region: Box, axis: int, unit: int, *, parts: int = 0, tile: int = 0) -> Cut:
    """Divide one axis into units of this length, and these into `parts` tiles or into tiles of length `tile`."""
    length, lattice = region.shape[axis], model.lattice[axis]
    ahead = region.start[axis] % lattice  # the first tile starts on the lattice, this many voxels early
    if not tile:
        target = -(-(min(unit, length) + ahead) // (parts * lattice)) * lattice
        tile = model.next_valid(axis, target + 2 * model.context[axis])
    step = (tile - 2 * model.context[axis]) // lattice * lattice
    units = -(-length // unit)
    last = length - (units - 1) * unit
    tiles = (units - 1) * -(-(unit + ahead) // step) + -(-(last + ahead) // step)
    return Cut(unit, parts, tile, units, tiles)


def _layout(volume: VolumeSpec, model: NetworkSpec, region: Box, cuts: tuple[Cut, ...]) -> Layout:
    """Return the layout of these cuts, with its cost."""
    unit, tile = triple(cut.unit for cut in cuts), triple(cut.tile for cut in cuts)
    reading, flops, needed = reading_of(volume, region, model, unit, tile), _flops(model, cuts), model.activation_bytes(tile)
    price: float = flops + NETWORK_CALL_FLOPS * math.prod(cut.tiles for cut in cuts)
    price += FLOPS_PER_BYTE * volume.itemsize * (reading.voxels + reading.alone / UNCACHED_BLOCK_INTERVAL)
    price *= imbalance(_count(cuts))
    price *= 1 + MEMORY_SURCHARGE * max(0.0, math.log2(needed / SMALL_TILE_BYTES))
    # All channels of a chunk are decompressed, but the price counts one: its layout is that of a volume of its own.
    read = reading.voxels * volume.itemsize * volume.together
    return Layout(unit, tile, _count(cuts), flops, read, needed, price)


def imbalance(blocks: int) -> float:
    """Return how much uneven distribution lengthens a run, on average over `WORKER_COUNTS`.

    Parameters
    ----------
    blocks
        Number of blocks.

    Returns
    -------
    float
        Ratio to the time of blocks that could be divided, at least 1.
    """
    return sum(workers * -(-blocks // workers) for workers in WORKER_COUNTS) / (len(WORKER_COUNTS) * blocks)


def _flops(model: NetworkSpec, cuts: tuple[Cut, ...]) -> int:
    return math.prod(cut.tiles for cut in cuts) * model.flops(triple(cut.tile for cut in cuts))


def _count(cuts: tuple[Cut, ...]) -> int:
    return math.prod(cut.units for cut in cuts)


def _chunk(unit: Triple) -> Triple:
    """Return the shape (z, y, x) of the chunks of a write unit: halves of it, about cubic, of at most `MAX_CHUNK_VOXELS`."""
    chunk = list(unit)
    while math.prod(chunk) > MAX_CHUNK_VOXELS:
        longest = max((axis for axis in range(3) if chunk[axis] % 2 == 0), key=lambda axis: chunk[axis], default=None)
        if longest is None:
            break
        chunk[longest] //= 2
    return triple(chunk)
