"""What a plan costs, by arithmetic: printed by `emseg plan`, checked against real runs by the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emseg.box import Box, Triple
from emseg.grid.blocks import Blocks
from emseg.grid.plan import Plan
from emseg.grid.pyramid import level_shapes
from emseg.grid.reading import CACHE_BYTES, reading_of
from emseg.grid.symmetry import SYMMETRIES
from emseg.specs.model import FLOAT32_BYTES
from emseg.specs.volume import VolumeSpec

RUNTIME_BYTES = 450 * 2**20
"""Memory of a worker process before it works: Python, torch, zarr and Dask, measured with torch 2.13 for CPUs."""
BLOCKS_IN_FLIGHT = 2
"""Blocks that a worker has in hand at once: one is predicted while another is read or written."""
COPIES = 3
"""Of what a block reads while that is mirrored, axis by axis."""
CANVASES = 2
"""Labels and probabilities: each marks which voxels are painted, a byte each."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The costs of a plan; all bytes are uncompressed."""

    blocks: int
    tiles: int
    """Network inputs in all; with test-time augmentation, each goes through the network in all `SYMMETRIES`."""
    flops: int
    """Floating-point operations of all convolutions."""
    bytes_needed: int
    """Bytes of the region's voxels."""
    bytes_read: int
    """Bytes that one worker decompresses at most, whole chunks and neighbours included; several that share a strand do more."""
    bytes_per_worker: int
    """Memory of a worker process at its worst moment."""
    bytes_per_predictor: int
    """Of these, what lies on the GPU if there is one: the weights, and the activations of a batch."""
    output_bytes: int
    output_files: int
    """Files with voxels; a few small ones of metadata come on top."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the share of reading that is needed."""
        return {**asdict(self), "bytes_read_per_needed": self.bytes_read / self.bytes_needed}


def cost_of(plan: Plan, volume: VolumeSpec, probabilities: bool, tta: bool = False, steps: Sequence[Triple] = ()) -> Cost:
    """What a plan costs on a volume; `steps` are those of its output's coarser levels."""
    model, region = plan.model, plan.region
    tiles = 1
    for axis in range(3):
        lattice, step = model.lattice[axis], model.step(plan.tile)[axis]
        on_axis = 0
        for start in range(region.start[axis], region.stop[axis], plan.unit[axis]):
            stop = min(start + plan.unit[axis], region.stop[axis])
            on_axis += -(-(stop - start // lattice * lattice) // step)
        tiles *= on_axis
    arrays = 1 + (len(model.classes) if probabilities else 0)
    levels = [Blocks(Box.of_shape(shape), plan.unit) for shape in level_shapes(region.shape, steps)]
    return Cost(
        blocks=len(plan),
        tiles=tiles,
        flops=tiles * model.flops(plan.tile) * (len(SYMMETRIES) if tta else 1),
        bytes_needed=region.voxels * volume.itemsize,
        bytes_read=reading_of(volume, region, model, plan.unit, plan.tile).voxels * volume.itemsize * volume.together,
        bytes_per_worker=_worker_bytes(plan, volume, arrays),
        bytes_per_predictor=_predictor_bytes(plan),
        output_bytes=sum(level.region.voxels for level in levels) * arrays,
        output_files=sum(map(len, levels)) * (2 if probabilities else 1),
    )


def _worker_bytes(plan: Plan, volume: VolumeSpec, arrays: int) -> int:
    """Runtime, predictor, kept chunks, and the blocks in hand: as read, while mirrored, stitched."""
    seen = plan.read_box(plan.block(0)).voxels  # the first block is whole; as much is read where nothing is mirrored
    block = COPIES * seen * volume.itemsize + math.prod(plan.unit) * (arrays + CANVASES)
    others = (volume.together - 1) * volume.chunk_bytes  # of a chunk that is being read, the channels that are not
    return RUNTIME_BYTES + _predictor_bytes(plan) + cache_bytes(volume) + BLOCKS_IN_FLIGHT * (block + others)


def cache_bytes(volume: VolumeSpec) -> int:
    """Most bytes of decompressed chunks that a worker keeps."""
    return min(CACHE_BYTES, volume.nbytes) if volume.chunk_bytes <= CACHE_BYTES else 0


def _predictor_bytes(plan: Plan) -> int:
    return FLOAT32_BYTES * plan.model.parameters + plan.batch * plan.model.activation_bytes(plan.tile)
