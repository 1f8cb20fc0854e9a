"""Draw random crops of volumes and their truth, and augment them.

As in Ronneberger, Fischer and Brox (arXiv:1505.04597), sections 2 and 3.1, tiles that extend beyond the faces of the volume
are completed by mirroring, and each tile is deformed by a smooth field of random displacements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from emseg_core.box import Box, Triple, triple
from emseg_core.specs.model import ModelSpec
from emseg_core.training.deformation import displacements
from emseg_core.training.spec import AugmentSpec
from emseg_core.training.truth_reader import TrainingVolume
from emseg_core.truth import IGNORE

MAX_CROP_TRIES = 20
"""Maximum number of crops drawn, where truth is sparse, to find one with a labelled voxel."""
SHADE_POINTS = 4
"""Number of points along each axis of the plane between which shading is interpolated."""


class Crop(NamedTuple):
    """A tile, and the truth for the output of the network."""

    tile: NDArray[np.float32]
    """Grey values, ``(z, y, x) float32``."""
    truth: NDArray[np.uint8]
    """Class of each voxel, ``(z', y', x') uint8``, or truth of each channel, ``(channel, z', y', x')``; 255 is ignored."""
    segments: NDArray[np.int32]
    """Segment of each voxel, ``(z', y', x') int32``; 0 is no segment."""


@dataclass(frozen=True, slots=True)
class CropSampler:
    """Sampler of random crops from volumes; equal generators give equal crops."""

    sources: Sequence[TrainingVolume]
    """The volumes."""
    spec: ModelSpec
    """The network; axes that it treats alike may be transposed."""
    output: Triple
    """Minimum shape (z, y, x) in voxels of the network's output for a tile."""
    augment: AugmentSpec
    """Strengths of the augmentations."""

    @property
    def tile(self) -> Triple:
        """Shape (z, y, x) of a tile, in voxels."""
        return self.spec.tile_for(self.output)

    def draw(self, rng: np.random.Generator) -> Crop:
        """Draw a crop, if possible one with a labelled voxel.

        Parameters
        ----------
        rng
            Source of all random choices.

        Returns
        -------
        Crop
            The first crop with a labelled voxel, or the last of `MAX_CROP_TRIES`.
        """
        for _ in range(MAX_CROP_TRIES):
            crop = self._draw(rng)
            if (crop.truth != IGNORE).any():
                break
        return crop

    def _draw(self, rng: np.random.Generator) -> Crop:
        """Draw one crop."""
        source, tile = self._source(rng), self.tile
        start = self._start(source.raw.spec.shape, rng)
        places = warped_coordinates(tile, self.augment, rng, planar=self.spec.planar)
        if places is None:
            raw, numbers = source.read(Box.of_shape(tile).shift(start))
        else:
            reach = Box(triple(int(np.floor(p.min())) for p in places), triple(int(np.ceil(p.max())) + 1 for p in places))
            raw, numbers = sample_at(*source.read(reach.shift(start)), places, reach.start)
        raw, numbers = flip_and_transpose(raw, numbers, transpositions(self.spec, tile), rng)
        inner = tuple(slice(c, t - c) for c, t in zip(self.spec.context, tile, strict=True))
        if self.spec.classes:
            truth, segments = source.kind.classes(numbers)[inner], source.kind.segments(numbers)[inner]
        else:  # an edge that leaves the output is ignored: beyond a face of the volume, voxels are mirrored
            truth, segments = source.kind.classes(numbers[inner]), source.kind.segments(numbers[inner])
        return Crop(vary_intensity(raw, self.augment, rng), np.ascontiguousarray(truth), np.ascontiguousarray(segments))

    def _source(self, rng: np.random.Generator) -> TrainingVolume:
        """Choose a volume by its weight."""
        if len(self.sources) == 1:
            return self.sources[0]
        weights = np.array([source.weight for source in self.sources])
        return self.sources[rng.choice(len(self.sources), p=weights / weights.sum())]

    def _start(self, shape: Triple, rng: np.random.Generator) -> Triple:
        """Choose the start of a tile whose output lies within a volume of this shape, or covers it where that is shorter."""
        room = [n - (t - 2 * c) for n, t, c in zip(shape, self.tile, self.spec.context, strict=True)]
        drawn = rng.integers(0, [max(0, more) for more in room], endpoint=True)
        return triple(int(first) - c for first, c in zip(drawn, self.spec.context, strict=True))


def transpositions(spec: ModelSpec, tile: Triple) -> list[Triple]:
    """List the orders of axes under which the network and the shape of the tile stay the same.

    Parameters
    ----------
    spec
        Description of the network.
    tile
        Shape (z, y, x) of the tile, in voxels.

    Returns
    -------
    list of Triple
        Permutations of (0, 1, 2), including that one itself.
    """

    def kind(axis: int) -> tuple[int, ...]:
        sizes = [size[axis] for size in (*spec.kernels, *spec.pooling)]
        return (*sizes, tile[axis])

    return [triple(order) for order in permutations(range(3)) if all(kind(new) == kind(old) for new, old in enumerate(order))]


def flip_and_transpose(
    raw: NDArray[np.float32], truth: NDArray[Any], orders: list[Triple], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Flip a tile and its truth along random axes, and transpose them.

    Parameters
    ----------
    raw, truth
        Grey values and truth, both ``(z, y, x)``.
    orders
        Orders of axes to choose from.
    rng
        Source of the random choices.

    Returns
    -------
    raw, truth : NDArray
        Views of both arrays.
    """
    axes = tuple(axis for axis in range(3) if rng.integers(2))
    order = orders[rng.integers(len(orders))]
    return np.flip(raw, axes).transpose(order), np.flip(truth, axes).transpose(order)


def warped_coordinates(
    tile: Triple, augment: AugmentSpec, rng: np.random.Generator, *, planar: bool
) -> list[NDArray[np.float32]] | None:
    """Compute from where each voxel of a deformed tile is sampled.

    The tile is rotated and scaled in the plane about its centre, and displaced. An axis of one voxel is not displaced, nor is z
    if `planar`, since each plane is then separate.

    Parameters
    ----------
    tile
        Shape (z, y, x) of the tile, in voxels.
    augment
        Strengths of the augmentations.
    rng
        Source of the random choices.
    planar
        Whether planes are independent of one another.

    Returns
    -------
    list of NDArray or None
        Coordinates along z, y and x, each ``(z, y, x) float32``, in voxels from the start of the tile; None if the tile is not
        deformed.
    """
    if not (augment.rotate or augment.scale or augment.displacement):
        return None
    angle = rng.uniform(0, 2 * math.pi) if augment.rotate else 0.0
    size = math.exp(rng.uniform(-augment.scale, augment.scale))
    z, y, x = (np.arange(length, dtype=np.float32) - (length - 1) / 2 for length in tile)
    along, across = np.float32(size * math.cos(angle)), np.float32(size * math.sin(angle))
    plane_y, plane_x = y[:, None] * along - x * across, y[:, None] * across + x * along
    places = [np.broadcast_to(values, tile).astype(np.float32) for values in (z[:, None, None], plane_y, plane_x)]
    for axis, (length, field) in enumerate(zip(tile, _field(tile, augment, rng), strict=True)):
        places[axis] += np.float32((length - 1) / 2)
        if length > 1 and not (planar and axis == 0):
            places[axis] += field
    return places


def _field(tile: Triple, augment: AugmentSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw smooth displacements ``(3, z, y, x) float32`` in voxels: bicubic in a plane, as in the paper, else trilinear."""
    coarse = [max(2, round(length / augment.spacing) + 1) for length in tile]
    if tile[0] == 1:
        plane = displacements(tile[1:], rng, augment.displacement, (coarse[1], coarse[2]))
        return np.concatenate([np.zeros((1, *tile[1:]), np.float32), plane])[:, None]
    drawn = torch.from_numpy(rng.normal(0, augment.displacement, (1, 3, *coarse)).astype(np.float32))
    field: NDArray[np.float32] = functional.interpolate(drawn, size=tile, mode="trilinear", align_corners=True)[0].numpy()
    return field


def sample_at(
    raw: NDArray[np.float32], truth: NDArray[np.int32], places: Sequence[NDArray[np.float32]], start: Triple
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Sample grey values and truth at coordinates.

    Grey values are interpolated, bicubically in a single plane and else trilinearly; truth is that of the nearest voxel.

    Parameters
    ----------
    raw, truth
        Grey values and numbers of the truth, both ``(z, y, x)``.
    places
        Coordinates along z, y and x, each ``(z', y', x')``, in voxels.
    start
        Coordinates (z, y, x) of the first voxel of both arrays.

    Returns
    -------
    raw : NDArray
        ``(z', y', x') float32``.
    truth : NDArray
        ``(z', y', x') int32``.
    """
    flat = raw.shape[0] == 1
    axes = slice(1, 3) if flat else slice(0, 3)
    # grid_sample counts from -1 (first voxel) to 1 (last), with the axes in the order x, y, z.
    counted = [
        torch.from_numpy((place - first) * (2 / (length - 1)) - 1 if length > 1 else np.zeros_like(place))
        for place, first, length in zip(places, start, raw.shape, strict=True)
    ][axes]
    grid = torch.stack(counted[::-1], dim=-1)
    grid = grid if flat else grid[None]

    def sampled(values: NDArray[Any], mode: str) -> NDArray[np.float32]:
        source = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None]
        found = functional.grid_sample(source if flat else source[None], grid, mode, padding_mode="border", align_corners=True)
        numbers: NDArray[np.float32] = found[0].numpy()
        return numbers if flat else numbers[0]

    return sampled(raw, "bicubic" if flat else "bilinear"), sampled(truth, "nearest").astype(np.int32)


def vary_intensity(raw: NDArray[np.float32], augment: AugmentSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blur grey values at random, and change their contrast, brightness, shading and noise.

    Parameters
    ----------
    raw
        Normalised grey values, ``(z, y, x) float32``.
    augment
        Strengths of the augmentations.
    rng
        Source of the random choices.

    Returns
    -------
    NDArray
        Grey values, ``(z, y, x) float32``.
    """
    if augment.blur and rng.integers(2):
        raw = ndimage.gaussian_filter(raw, (0, *2 * [rng.uniform(0, augment.blur)]), mode="mirror")
    gain = np.exp(rng.uniform(-augment.gain, augment.gain))
    offset = rng.uniform(-augment.offset, augment.offset)
    raw = raw * np.float32(gain) + np.float32(offset)
    if augment.shade:
        gains, offsets = displacements((raw.shape[1], raw.shape[2]), rng, augment.shade, (SHADE_POINTS, SHADE_POINTS))
        raw = raw * np.exp(gains) + offsets
    noise = rng.uniform(0, augment.noise) * rng.standard_normal(raw.shape, np.float32)
    return np.ascontiguousarray(raw + noise, np.float32)
