"""Choosing tile, write unit and chunk: the cheapest layout that leaves enough blocks to share out.

Each axis goes through the same arithmetic. A write unit is a power of two times the lattice; its tiles divide it
evenly; a layout's price is the arithmetic of all its tiles plus what must be read and decompressed for them, and a
surcharge for tiles that take much memory. Nothing here depends on how many workers there are, or on how fast anything
was, or the same run would not give the same bytes twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from emseg.box import Box, Triple, triple
from emseg.errors import ModelError, PlanError
from emseg.grid.plan import Plan
from emseg.grid.reading import reading_of
from emseg.specs.network import NetworkSpec
from emseg.specs.volume import VolumeSpec

BLOCKS_WANTED = 32
"""Four blocks for each of eight workers, on a run that is over soon."""
DEAREST = 3.0
"""More blocks are not bought with more than this many times the least arithmetic."""
LONG = 2**39
"""Arithmetic of a run that takes some time: there, how well blocks can be shared out is a matter of the price alone."""
CREWS = range(1, 9)
"""Numbers of workers that are to find as many blocks as they can share evenly."""
UNIT_VOXELS = 2**23
"""Largest write unit, in voxels: 128 x 256 x 256. From a quarter of a gigavoxel on, blocks and memory stay the same."""
CHUNK_VOXELS = 2**18
"""Chunks are cut to about this many voxels, 64 cubed: smaller ones cost zarr-python more than their data."""
TILE_BYTES = 2**30
"""Largest activation memory of a tile, in bytes, if nothing is known of the machine."""
SMALL_TILE = 2**28
"""Activation memory of a tile that every machine has for each of its cores."""
MEMORY_PRICE = 0.08
"""Part of its price by which a layout is dearer each time its tiles need twice the memory, from `SMALL_TILE` on."""
TILE_FLOPS = 2**30
"""Price of calling the network once, in floating-point operations done meanwhile: milliseconds of a core."""
BLOCK_FLOPS = 600 * 2**34
"""Most arithmetic of a block: ten minutes at 17 GFLOP/s, which a slow core does. What is being computed may be lost."""
CROWD = 2**12
"""Write units smaller than a quarter of the largest are only tried where there are fewer blocks than this."""
FLOPS_PER_BYTE = 4000
"""Price of reading and decompressing a byte, in floating-point operations done meanwhile.

A core does about 400 (80 GFLOP/s of convolutions against 200 MB/s through zarr-python, measured), a GPU on a shared
file system 100 times as many; one plan must serve both."""
ALONE = 8
"""One block in so many is priced as if nothing of what it reads were kept: it begins a strand, is tried again, or its worker
shares the strand with others. So blocks that are far from chunks in shape are not chosen for next to nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a layout besides its price."""

    tile_bytes: int = TILE_BYTES
    """Largest activation memory of a tile, in bytes."""
    block_flops: int = BLOCK_FLOPS
    """Most floating-point operations of a block; write units are made smaller down to a lattice cell, or a tile's step."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to cut a region, with what it costs."""

    unit: Triple
    """Shape (z, y, x) of a write unit, in voxels."""
    tile: Triple
    """Shape (z, y, x) of a network input, in voxels."""
    blocks: int
    flops: int
    """Floating-point operations of all convolutions of all tiles."""
    bytes_read: int
    """Bytes that one worker decompresses."""
    tile_bytes: int
    """Activation memory of a tile, in bytes."""
    price: float
    """In floating-point operations."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How one axis is cut."""

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
    volume: VolumeSpec,
    model: NetworkSpec,
    region: Box | None = None,
    tile: Triple | None = None,
    limits: Limits | None = None,
) -> Plan:
    """The plan that segments a region of a volume, by default all of it, at the lowest price.

    Parameters
    ----------
    tile
        Shape (z, y, x) in voxels of a network input, if it is not to be chosen.

    Raises
    ------
    PlanError
        If the region is not inside the volume, or volume and network do not fit together.
    """
    region = region or volume.box
    return plan_with(layouts_of(volume, model, region, tile, limits)[0], volume, model, region)


def plan_with(layout: Layout, volume: VolumeSpec, model: NetworkSpec, region: Box) -> Plan:
    """The plan that cuts a region of a volume as one of its layouts says."""
    return Plan(region, layout.unit, volume.shape, model, layout.tile, 1, _chunk(layout.unit))


def layouts_of(
    volume: VolumeSpec, model: NetworkSpec, region: Box, tile: Triple | None = None, limits: Limits | None = None
) -> list[Layout]:
    """All layouts of a region that are to be considered, the cheapest first; there is at least one.

    A region is cut into the tiles of a whole run, so that it gets the same last bits as the crop of one.

    Parameters
    ----------
    tile
        Shape (z, y, x) in voxels of a network input, if it is not to be chosen.

    Raises
    ------
    PlanError
        If the region is not inside the volume, or volume and network do not fit together.
    """
    limits = limits or Limits()
    if not volume.box.contains(region):
        raise PlanError(f"the region {region} is not inside the volume {volume.box}: give a region within it")
    if model.channels != 1:
        raise PlanError(f"the model reads {model.channels} channels, but a volume has 1: use a model with one channel")
    if tile is None and region != volume.box:
        tile = plan_volume(volume, model, limits=limits).tile
    if tile is not None:
        try:
            model.step(tile)
        except ModelError as error:
            raise PlanError(str(error)) from error
    cut: list[tuple[Cut, ...]] = []
    largest = 4 * UNIT_VOXELS
    while not cut:  # on a large volume of a dear network, only small units are done in time
        largest //= 4
        cut = list(_cuts(model, region, tile, limits, largest))
    least = min(_flops(model, cuts) for cuts in cut)
    affordable = [cuts for cuts in cut if _flops(model, cuts) <= DEAREST * least]
    wanted = 1 if least > LONG else min(BLOCKS_WANTED, max(_count(cuts) for cuts in affordable))
    layouts = [_layout(volume, model, region, cuts) for cuts in affordable if _count(cuts) >= wanted]
    return sorted(layouts, key=lambda layout: layout.price)


def _cuts(model: NetworkSpec, region: Box, tile: Triple | None, limits: Limits, largest: int) -> Iterator[tuple[Cut, ...]]:
    """Every combination of write units that is neither too large nor too small, with each choice of tiles that suits it."""
    lengths = [_unit_lengths(model, region, axis, tile) for axis in range(3)]
    least = triple(axis[0] for axis in lengths)
    for units in itertools.product(*lengths):
        voxels, blocks = math.prod(units), math.prod(-(-n // unit) for n, unit in zip(region.shape, units, strict=True))
        if units != least and (voxels > largest or (voxels < largest // 4 and blocks > CROWD)):
            continue
        if tile is not None:
            suited = iter([tuple(_cut(model, region, axis, unit, tile=tile[axis]) for axis, unit in enumerate(units))])
        else:
            suited = _fitted(model, region, triple(units), limits.tile_bytes)
        for cuts in suited:
            in_time = _flops(model, cuts) <= limits.block_flops * _count(cuts)
            if in_time if units != least else voxels > largest // 4 or blocks <= CROWD:
                yield cuts


def _unit_lengths(model: NetworkSpec, region: Box, axis: int, tile: Triple | None) -> list[int]:
    """Lengths to try for a write unit along one axis, the last one not below the region's.

    With a given tile they are multiples of its step, less one lattice cell if the region starts off the lattice: its
    tiles must start before it does, and would not reach the end of a whole multiple.
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
    """The cuts of these units into few tiles whose activations take at most so many bytes: fewest first, to `SMALL_TILE`."""
    cuts = tuple(_cut(model, region, axis, unit, parts=1) for axis, unit in enumerate(units))
    while True:
        needed = model.activation_bytes(triple(cut.tile for cut in cuts))
        if needed <= most:
            yield cuts
        if needed <= min(most, SMALL_TILE):
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
                f"the smallest tile of this model needs {needed} bytes of activations, the limit is {most}: "
                "use a model of less width or depth"
            )
        cuts = min(finer, key=lambda tried: _flops(model, tried))


def _cut(model: NetworkSpec, region: Box, axis: int, unit: int, *, parts: int = 0, tile: int = 0) -> Cut:
    """The cut of one axis into units of this length, and those into `parts` tiles or tiles of length `tile`."""
    length, lattice = region.shape[axis], model.lattice[axis]
    ahead = region.start[axis] % lattice  # the first tile starts on the lattice, up to this many voxels early
    if not tile:
        target = -(-(min(unit, length) + ahead) // (parts * lattice)) * lattice
        tile = model.next_valid(axis, target + 2 * model.context[axis])
    step = (tile - 2 * model.context[axis]) // lattice * lattice
    units = -(-length // unit)
    last = length - (units - 1) * unit
    tiles = (units - 1) * -(-(unit + ahead) // step) + -(-(last + ahead) // step)
    return Cut(unit, parts, tile, units, tiles)


def _layout(volume: VolumeSpec, model: NetworkSpec, region: Box, cuts: tuple[Cut, ...]) -> Layout:
    """These cuts with what they cost."""
    unit, tile = triple(cut.unit for cut in cuts), triple(cut.tile for cut in cuts)
    reading, flops, needed = reading_of(volume, region, model, unit, tile), _flops(model, cuts), model.activation_bytes(tile)
    price: float = flops + TILE_FLOPS * math.prod(cut.tiles for cut in cuts)
    price += FLOPS_PER_BYTE * volume.itemsize * (reading.voxels + reading.alone / ALONE)
    price *= shared_out(_count(cuts))
    price *= 1 + MEMORY_PRICE * max(0.0, math.log2(needed / SMALL_TILE))
    read = reading.voxels * volume.itemsize * volume.together  # the price is that of a channel alone: it is cut the same way
    return Layout(unit, tile, _count(cuts), flops, read, needed, price)


def shared_out(blocks: int) -> float:
    """How much longer a run takes than its blocks would if they could be divided, in the mean over `CREWS`; at least 1."""
    return sum(workers * -(-blocks // workers) for workers in CREWS) / (len(CREWS) * blocks)


def _flops(model: NetworkSpec, cuts: tuple[Cut, ...]) -> int:
    return math.prod(cut.tiles for cut in cuts) * model.flops(triple(cut.tile for cut in cuts))


def _count(cuts: tuple[Cut, ...]) -> int:
    return math.prod(cut.units for cut in cuts)


def _chunk(unit: Triple) -> Triple:
    """Shape (z, y, x) of the chunks of a write unit: halves of it, about cubic, of at most `CHUNK_VOXELS`."""
    chunk = list(unit)
    while math.prod(chunk) > CHUNK_VOXELS:
        longest = max((axis for axis in range(3) if chunk[axis] % 2 == 0), key=lambda axis: chunk[axis], default=None)
        if longest is None:
            break
        chunk[longest] //= 2
    return triple(chunk)
