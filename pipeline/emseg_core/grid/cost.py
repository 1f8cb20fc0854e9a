"""Predicted cost of a plan, by arithmetic: printed by `emseg plan`, and checked against real runs by the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emseg_core.box import Box, Triple
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.plan import Plan
from emseg_core.grid.pyramid import level_shapes
from emseg_core.grid.reading import CACHE_BYTES, reading_of
from emseg_core.grid.symmetry import SYMMETRIES
from emseg_core.specs.heads import chosen_heads, images_of
from emseg_core.specs.model import FLOAT32_BYTES
from emseg_core.specs.volume import VolumeSpec

RUNTIME_BYTES = 450 * 2**20
"""Memory of an idle worker process, in bytes: Python, torch, zarr and Dask, measured with torch 2.13 for CPUs."""
BLOCKS_IN_FLIGHT = 2
"""Blocks that a worker processes at once: one is predicted while another is read or written."""
MIRROR_COPIES = 3
"""Copies of a block's input that exist while it is mirrored axis by axis."""
CANVASES_PER_BLOCK = 2
"""Canvases of a block of classes, for labels and probabilities; each marks painted voxels with a byte per voxel."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of a plan. All bytes are uncompressed."""

    blocks: int
    """Number of blocks."""
    tiles: int
    """Number of network inputs. With test-time augmentation, each is predicted once for each of the `SYMMETRIES`."""
    flops: int
    """Floating-point operations of all convolutions."""
    bytes_needed: int
    """Bytes of the region's voxels."""
    bytes_read: int
    """Upper bound of the bytes that a single worker decompresses, including whole chunks and neighbours.

    Several workers that share a sequence of blocks decompress more.
    """
    bytes_per_worker: int
    """Peak memory of a worker process, in bytes."""
    bytes_per_predictor: int
    """The part of it that lies on the GPU, if there is one: the weights and the activations of a batch."""
    output_bytes: int
    """Bytes of all output arrays."""
    output_files: int
    """Files with voxels; a few small metadata files are added."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, with the ratio of bytes read to bytes needed."""
        return {**asdict(self), "bytes_read_per_needed": self.bytes_read / self.bytes_needed}


def cost_of(
    plan: Plan,
    volume: VolumeSpec,
    probabilities: bool,
    tta: bool = False,
    steps: Sequence[Triple] = (),
    heads: Sequence[str] | None = None,
) -> Cost:
    """Predict the cost of a plan on a volume.

    Parameters
    ----------
    plan
        The plan.
    volume
        The volume.
    probabilities
        Whether the run stores probabilities.
    tta
        Whether the run uses test-time augmentation.
    steps
        Step (z, y, x) of each coarser pyramid level of the output.
    heads
        Names of the heads that the run stores; None for all.

    Returns
    -------
    Cost
        Work, memory and storage.
    """
    model, region = plan.model, plan.region
    tiles = 1
    for axis in range(3):
        lattice, step = model.lattice[axis], model.step(plan.tile)[axis]
        on_axis = 0
        for start in range(region.start[axis], region.stop[axis], plan.unit[axis]):
            stop = min(start + plan.unit[axis], region.stop[axis])
            on_axis += -(-(stop - start // lattice * lattice) // step)
        tiles *= on_axis
    images = images_of(chosen_heads(model.heads, heads), probabilities)
    arrays = sum(max(1, image.channels) * np.dtype(image.dtype).itemsize for image in images)  # bytes of a voxel
    levels = [Blocks(Box.of_shape(shape), plan.unit) for shape in level_shapes(region.shape, steps)]
    return Cost(
        blocks=len(plan),
        tiles=tiles,
        flops=tiles * model.flops(plan.tile) * (len(SYMMETRIES) if tta else 1),
        bytes_needed=region.voxels * volume.itemsize,
        bytes_read=reading_of(volume, region, model, plan.unit, plan.tile).voxels * volume.itemsize * volume.together,
        bytes_per_worker=_worker_bytes(plan, volume, arrays + max(CANVASES_PER_BLOCK, len(images))),
        bytes_per_predictor=_predictor_bytes(plan),
        output_bytes=sum(level.region.voxels for level in levels) * arrays,
        output_files=sum(map(len, levels)) * len(images),
    )


def _worker_bytes(plan: Plan, volume: VolumeSpec, canvases: int) -> int:
    """Return the peak memory of a worker: runtime, predictor, chunk cache, and blocks as read, while mirrored, and stitched."""
    seen = plan.read_box(plan.block(0)).voxels  # the first block is not clipped, and mirroring does not change how much is read
    block = MIRROR_COPIES * seen * volume.itemsize + math.prod(plan.unit) * canvases
    others = (volume.together - 1) * volume.chunk_bytes  # channels of the chunk that are decompressed but not wanted
    return RUNTIME_BYTES + _predictor_bytes(plan) + cache_bytes(volume) + BLOCKS_IN_FLIGHT * (block + others)


def cache_bytes(volume: VolumeSpec) -> int:
    """Return the largest size of a worker's cache of decompressed chunks, in bytes.

    Parameters
    ----------
    volume
        Description of the volume.

    Returns
    -------
    int
        Bytes.
    """
    return min(CACHE_BYTES, volume.nbytes) if volume.chunk_bytes <= CACHE_BYTES else 0


def _predictor_bytes(plan: Plan) -> int:
    return FLOAT32_BYTES * plan.model.parameters + plan.batch * plan.model.activation_bytes(plan.tile)
