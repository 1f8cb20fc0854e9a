"""Random crops of a volume and its truth, deformed and varied: what the network sees in training.

After Ronneberger, Fischer and Brox (arXiv:1505.04597), sections 2 and 3.1: tiles that reach over the volume's faces
are completed by mirroring, and each tile is deformed by a smooth field of random displacements.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from emseg.box import Box, Triple, triple
from emseg.specs.model import ModelSpec
from emseg.training.spec import AugmentSpec


class Crops:
    """Random pairs of a tile and its truth out of one volume, the same ones for the same generator.

    Parameters
    ----------
    raw
        Normalised grey values, ``(z, y, x) float32``.
    truth
        Class of each voxel, ``(z, y, x) uint8``; 255 is ignored.
    spec
        The network; the axes that it treats alike may be transposed.
    output
        Shape (z, y, x) in voxels that the network shall make of a tile.
    augment
        How strongly crops are varied.
    """

    def __init__(
        self, raw: NDArray[np.float32], truth: NDArray[np.uint8], spec: ModelSpec, output: Triple, augment: AugmentSpec
    ) -> None:
        self.tile = spec.tile_for(output)
        self.context = spec.context
        # Truth is mirrored like the grey values: a deformation may move voxels from beyond a face into the crop.
        pads = [(c, c + max(0, t - 2 * c - length)) for c, t, length in zip(self.context, self.tile, raw.shape, strict=True)]
        self._raw = np.pad(raw, pads, mode="reflect")
        self._truth = np.pad(truth, pads, mode="reflect")
        self._augment = augment
        self._transpositions = transpositions(spec, self.tile)

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """One tile ``(z, y, x) float32`` and the truth of what the network makes of it, ``(z', y', x') uint8``."""
        start = triple(rng.integers(0, length - t, endpoint=True) for length, t in zip(self._raw.shape, self.tile, strict=True))
        where = Box.of_shape(self.tile).shift(start).slices()
        raw, truth = turn(self._raw[where], self._truth[where], self._transpositions, rng)
        if self._augment.displacement:
            raw, truth = deform(raw, truth, self._augment, rng)
        inner = tuple(slice(c, t - c) for c, t in zip(self.context, self.tile, strict=True))
        return vary(raw, self._augment, rng), np.ascontiguousarray(truth[inner])


def transpositions(spec: ModelSpec, tile: Triple) -> list[Triple]:
    """The orders of axes under which the network, and the shape of the tile, stay the same."""

    def kind(axis: int) -> tuple[int, ...]:
        sizes = [size[axis] for size in (*spec.kernels, *spec.pooling)]
        return (*sizes, tile[axis])

    return [triple(order) for order in permutations(range(3)) if all(kind(new) == kind(old) for new, old in enumerate(order))]


def turn(
    raw: NDArray[np.float32], truth: NDArray[np.uint8], orders: list[Triple], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The pair, flipped along a random choice of axes, and its axes put into one of the `orders`."""
    axes = tuple(axis for axis in range(3) if rng.integers(2))
    order = orders[rng.integers(len(orders))]
    return np.flip(raw, axes).transpose(order), np.flip(truth, axes).transpose(order)


def deform(
    raw: NDArray[np.float32], truth: NDArray[np.uint8], augment: AugmentSpec, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The pair, each voxel fetched from where one smooth random field points to; an axis of one voxel stays as it is.

    Grey values are interpolated, truth is taken from the nearest voxel.
    """
    shape = raw.shape
    coarse = [max(2, round(length / augment.spacing) + 1) for length in shape]
    field = rng.normal(0, augment.displacement, (1, 3, *coarse)).astype(np.float32)
    smooth = functional.interpolate(torch.from_numpy(field), size=shape, mode="trilinear", align_corners=True)[0]
    # grid_sample counts from -1 (first voxel) to 1 (last), and wants the axes as x, y, z.
    lines = [torch.linspace(-1, 1, length) if length > 1 else torch.zeros(1) for length in shape]
    places = [
        line + smooth[axis] * (2 / (length - 1) if length > 1 else 0)
        for axis, (line, length) in enumerate(zip(torch.meshgrid(lines, indexing="ij"), shape, strict=True))
    ]
    grid = torch.stack(places[::-1], dim=-1)[None]

    def fetch(array: NDArray[Any], mode: str) -> NDArray[np.float32]:
        source = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
        moved = functional.grid_sample(source, grid, mode, padding_mode="reflection", align_corners=True)
        fetched: NDArray[np.float32] = moved[0, 0].numpy()
        return fetched

    return fetch(raw, "bilinear"), fetch(truth, "nearest").astype(np.uint8)


def vary(raw: NDArray[np.float32], augment: AugmentSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey values ``(z, y, x) float32`` with a random contrast, brightness and noise."""
    gain = np.exp(rng.uniform(-augment.gain, augment.gain))
    offset = rng.uniform(-augment.offset, augment.offset)
    noise = rng.uniform(0, augment.noise) * rng.standard_normal(raw.shape, np.float32)
    return np.ascontiguousarray(raw * gain + offset + noise, np.float32)
