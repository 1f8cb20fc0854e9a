"""Random crops of volumes and their truth, deformed and varied: what the network sees in training.

After Ronneberger, Fischer and Brox (arXiv:1505.04597), sections 2 and 3.1: tiles that reach over the volume's faces
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

from emseg.box import Box, Triple, triple
from emseg.specs.model import ModelSpec
from emseg.training.deformation import displacements
from emseg.training.source import Source
from emseg.training.spec import AugmentSpec
from emseg.truth import IGNORE

TRIES = 20
"""Crops that are drawn, where truth is sparse, until one has a labelled voxel."""
SHADES = 4
"""Points along each axis of the plane between which shade varies smoothly."""


class Crop(NamedTuple):
    """A tile, and the truth of what the network makes of it."""

    tile: NDArray[np.float32]
    """Grey values, ``(z, y, x) float32``."""
    truth: NDArray[np.uint8]
    """Class of each voxel, ``(z', y', x') uint8``; 255 is ignored."""
    segments: NDArray[np.int32]
    """Number of the segment that each voxel lies in, ``(z', y', x') int32``; 0 in none."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Random crops out of volumes, the same ones for the same generator."""

    sources: Sequence[Source]
    """The volumes."""
    spec: ModelSpec
    """The network; axes that it treats alike may be transposed."""
    output: Triple
    """Shape (z, y, x) in voxels that the network shall make of a tile, at least."""
    augment: AugmentSpec
    """How strongly crops are varied."""

    @property
    def tile(self) -> Triple:
        """Shape (z, y, x) in voxels of a tile."""
        return self.spec.tile_for(self.output)

    def draw(self, rng: np.random.Generator) -> Crop:
        """One crop; one with a labelled voxel, if there is one among the first few."""
        for _ in range(TRIES):
            crop = self._draw(rng)
            if (crop.truth != IGNORE).any():
                break
        return crop

    def _draw(self, rng: np.random.Generator) -> Crop:
        source, tile = self._source(rng), self.tile
        start = self._start(source.raw.spec.shape, rng)
        places = warped_places(tile, self.augment, rng, planar=self.spec.planar)
        if places is None:
            raw, numbers = source.read(Box.of_shape(tile).shift(start))
        else:
            reach = Box(triple(int(np.floor(p.min())) for p in places), triple(int(np.ceil(p.max())) + 1 for p in places))
            raw, numbers = fetch(*source.read(reach.shift(start)), places, reach.start)
        raw, numbers = turn(raw, numbers, transpositions(self.spec, tile), rng)
        inner = tuple(slice(c, t - c) for c, t in zip(self.spec.context, tile, strict=True))
        truth, segments = source.kind.classes(numbers)[inner], source.kind.segments(numbers)[inner]
        return Crop(vary(raw, self.augment, rng), np.ascontiguousarray(truth), np.ascontiguousarray(segments))

    def _source(self, rng: np.random.Generator) -> Source:
        if len(self.sources) == 1:
            return self.sources[0]
        weights = np.array([source.weight for source in self.sources])
        return self.sources[rng.choice(len(self.sources), p=weights / weights.sum())]

    def _start(self, shape: Triple, rng: np.random.Generator) -> Triple:
        """Where a tile begins whose output lies in a volume of this shape, or holds it where that is shorter."""
        room = [n - (t - 2 * c) for n, t, c in zip(shape, self.tile, self.spec.context, strict=True)]
        drawn = rng.integers(0, [max(0, more) for more in room], endpoint=True)
        return triple(int(first) - c for first, c in zip(drawn, self.spec.context, strict=True))


def transpositions(spec: ModelSpec, tile: Triple) -> list[Triple]:
    """The orders of axes under which the network, and the shape of the tile, stay the same."""

    def kind(axis: int) -> tuple[int, ...]:
        sizes = [size[axis] for size in (*spec.kernels, *spec.pooling)]
        return (*sizes, tile[axis])

    return [triple(order) for order in permutations(range(3)) if all(kind(new) == kind(old) for new, old in enumerate(order))]


def turn(
    raw: NDArray[np.float32], truth: NDArray[Any], orders: list[Triple], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The pair, flipped along a random choice of axes, and its axes put into one of the `orders`."""
    axes = tuple(axis for axis in range(3) if rng.integers(2))
    order = orders[rng.integers(len(orders))]
    return np.flip(raw, axes).transpose(order), np.flip(truth, axes).transpose(order)


def warped_places(
    tile: Triple, augment: AugmentSpec, rng: np.random.Generator, *, planar: bool
) -> list[NDArray[np.float32]] | None:
    """Where each voxel of a tile is fetched from, ``(z, y, x) float32`` for each axis, in voxels from the tile's start.

    Turned and scaled in the plane about the tile's centre, and displaced; an axis of one voxel stays as it is, and so does
    z where planes are `planar`, each for itself. None if nothing moves.
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
    """Smooth displacements ``(3, z, y, x) float32`` in voxels: bicubic over a plane, as in the paper, else trilinear."""
    coarse = [max(2, round(length / augment.spacing) + 1) for length in tile]
    if tile[0] == 1:
        plane = displacements(tile[1:], rng, augment.displacement, (coarse[1], coarse[2]))
        return np.concatenate([np.zeros((1, *tile[1:]), np.float32), plane])[:, None]
    drawn = torch.from_numpy(rng.normal(0, augment.displacement, (1, 3, *coarse)).astype(np.float32))
    field: NDArray[np.float32] = functional.interpolate(drawn, size=tile, mode="trilinear", align_corners=True)[0].numpy()
    return field


def fetch(
    raw: NDArray[np.float32], truth: NDArray[np.int32], places: Sequence[NDArray[np.float32]], start: Triple
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """What lies at these places of a pair ``(z, y, x)`` that begins at `start`.

    Grey values are interpolated, truth is taken from the nearest voxel.
    """
    flat = raw.shape[0] == 1  # a plane is interpolated bicubically
    axes = slice(1, 3) if flat else slice(0, 3)
    # grid_sample counts from -1 (first voxel) to 1 (last), and wants the axes as x, y, z.
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


def vary(raw: NDArray[np.float32], augment: AugmentSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey values ``(z, y, x) float32``, blurred, and with a random contrast, brightness, shade and noise."""
    if augment.blur and rng.integers(2):
        raw = ndimage.gaussian_filter(raw, (0, *2 * [rng.uniform(0, augment.blur)]), mode="mirror")
    gain = np.exp(rng.uniform(-augment.gain, augment.gain))
    offset = rng.uniform(-augment.offset, augment.offset)
    raw = raw * np.float32(gain) + np.float32(offset)
    if augment.shade:
        gains, offsets = displacements((raw.shape[1], raw.shape[2]), rng, augment.shade, (SHADES, SHADES))
        raw = raw * np.exp(gains) + offsets
    noise = rng.uniform(0, augment.noise) * rng.standard_normal(raw.shape, np.float32)
    return np.ascontiguousarray(raw + noise, np.float32)
