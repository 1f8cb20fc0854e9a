"""Test-time augmentation: mean predictions over the symmetries of the image plane.

Ronneberger, Fischer and Brox (arXiv:1505.04597), section 4, also average over rotated versions of the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from emseg_core.box import Triple, triple
from emseg_core.errors import PlanError
from emseg_core.grid.averaging import mean_prediction, shares_of
from emseg_core.ports import Predictor
from emseg_core.specs.augmented import AugmentedSpec, without_margin
from emseg_core.specs.heads import Head, parts_of
from emseg_core.specs.network import NetworkSpec

SYMMETRIES = tuple(itertools.product((0, 2, 1, 3), (False, True)))
"""Number of quarter turns in the plane (y, x), and whether x is mirrored then: all eight symmetries.

Those that exchange y and x come last.
"""
PLANE = (-2, -1)
"""Axes y and x of tiles and logits."""


class SymmetricPredictor:
    """Predictor of the mean prediction of another predictor over all `SYMMETRIES`.

    Tiled predictions still equal untiled ones. Tiles start on the lattice, and their lengths are congruent modulo the lattice
    (`NetworkSpec.next_valid`), so pooling windows counted from the far end also cover the same voxels of the volume for every
    tile.

    Affinities change their channel: with the tile, an offset turns into another one of the head. Where it turns into the
    opposite of another one, the affinity is that of the voxel at the other end of the edge.

    Parameters
    ----------
    predictor
        The network.
    heads
        The heads that are stored; None for all. Of others, only the prediction for the tile as it is counts.

    Raises
    ------
    PlanError
        If the network does not treat y and x alike, or such a mean of a head has no meaning.
    """

    def __init__(self, predictor: Predictor, heads: Sequence[Head] | None = None) -> None:
        self._stored = predictor.spec.heads if heads is None else tuple(heads)
        self.spec: NetworkSpec = augmented(predictor.spec, self._stored)
        self._predictor = predictor
        self._margin = self.spec.margin if isinstance(self.spec, AugmentedSpec) else (0, 0, 0)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a batch of tiles; means are those of `emseg_core.grid.averaging.mean_prediction`.

        Parameters
        ----------
        tiles
            Normalised tiles, ``(n, z, y, x) float32``, or ``(n, members, z, y, x)`` for an ensemble.

        Returns
        -------
        ndarray
            Channels of all heads, ``(n, channels, z', y', x') float32``. Where the network predicts NaN or infinity, all
            classes are NaN.
        """
        first: list[NDArray[np.float32]] = []
        mean = mean_prediction((self._shares(tiles, *symmetry, first) for symmetry in SYMMETRIES), self._stored_in_order)
        if len(self._stored) == len(self.spec.heads):
            return mean
        whole, stored = first[0], {head.name: part for head, part in parts_of(self._stored_in_order)}
        return np.concatenate(
            [mean[:, stored[head.name]] if head.name in stored else whole[:, part] for head, part in parts_of(self.spec.heads)],
            axis=1,
        )

    @property
    def _stored_in_order(self) -> tuple[Head, ...]:
        """The stored heads, in the order of their channels in a prediction."""
        names = {head.name for head in self._stored}
        return tuple(head for head in self.spec.heads if head.name in names)

    def _shares(
        self, tiles: NDArray[np.float32], turns: int, mirrored: bool, first: list[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Predict turned and mirrored tiles; return what can be averaged of the stored heads in the original places."""
        turned = np.rot90(tiles, turns, PLANE)
        turned = turned[..., ::-1] if mirrored else turned
        output = self._predictor.predict(turned.copy())  # torch does not accept negative strides
        if not first:  # of the tile as it is
            first.append(self._within(output, (0, 0, 0)))
        shares = shares_of(output, self.spec.heads)
        back = np.rot90(shares[..., ::-1] if mirrored else shares, -turns, PLANE)
        of_head = {head.name: part for head, part in parts_of(self.spec.heads)}
        parts = []
        for head in self._stored_in_order:
            values = back[:, of_head[head.name]]
            if head.kind != "affinities":
                parts.append(self._within(values, (0, 0, 0)))
                continue
            images = images_of_offsets(head, turns, mirrored)
            parts += [self._within(values[:, channel : channel + 1], shift) for channel, shift in images]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _within(self, values: NDArray[np.float32], shift: Triple) -> NDArray[np.float32]:
        """Return the values of voxels shifted from those that are wanted."""
        lengths = values.shape[-3:]
        z, y, x = (slice(m + s, n - m + s) for m, s, n in zip(self._margin, shift, lengths, strict=True))
        return values[..., z, y, x]


def turned_offset(offset: Triple, turns: int, mirrored: bool) -> Triple:
    """Return the offset between two voxels after a tile is turned and mirrored.

    Parameters
    ----------
    offset
        Offset (z, y, x) in voxels.
    turns
        Number of quarter turns, as of `numpy.rot90` in the plane (y, x).
    mirrored
        Whether x is mirrored then.

    Returns
    -------
    Triple
        Offset (z, y, x) in voxels.

    Examples
    --------
    >>> turned_offset((0, 0, 1), 1, False), turned_offset((0, 1, 0), 1, True)
    ((0, -1, 0), (0, 0, -1))
    """
    z, y, x = offset
    for _ in range(turns):
        y, x = -x, y
    return z, y, -x if mirrored else x


def images_of_offsets(head: Head, turns: int, mirrored: bool) -> list[tuple[int, Triple]]:
    """Find which channel of turned and mirrored tiles holds each affinity.

    Parameters
    ----------
    head
        A head of affinities.
    turns, mirrored
        As for `turned_offset`.

    Returns
    -------
    list of tuple
        For each affinity, the channel, and the shift (z, y, x) in voxels of the tile as it is to the voxel that holds it.

    Raises
    ------
    PlanError
        If there is no such channel.
    """
    found: list[tuple[int, Triple]] = []
    for offset in head.offsets:
        image = turned_offset(offset, turns, mirrored)
        opposite = triple(-length for length in image)
        if image in head.offsets:
            found.append((head.offsets.index(image), (0, 0, 0)))
        elif opposite in head.offsets:  # the same edge from its other end, where it is stored
            other = offset if head.anchor == "source" else triple(-length for length in offset)
            found.append((head.offsets.index(opposite), other))
        else:
            here, there = (" ".join(map(str, which)) for which in (offset, image))
            raise PlanError(
                f"--tta turns tiles, and the offset {here} (z y x) of the head {head.name!r} into {there}, which is none of "
                "its offsets: leave out --tta, or store other heads with --heads"
            )
    return found


def augmented(spec: NetworkSpec, heads: Sequence[Head]) -> NetworkSpec:
    """Return a network as test-time augmentation needs it.

    Parameters
    ----------
    spec
        The network.
    heads
        The heads that are stored.

    Returns
    -------
    NetworkSpec
        The network; with a margin if affinities of neighbouring voxels are needed.

    Raises
    ------
    PlanError
        If a kernel or a pooling factor differs between y and x, or the mean of a head has no meaning.
    """
    spec = without_margin(spec)
    check_symmetric(spec, heads)
    shifts = [(0, 0, 0), *(shift for _, shift in _images(heads))]
    margin = triple(max(abs(shift[axis]) for shift in shifts) for axis in range(3))
    return AugmentedSpec(spec, margin) if any(margin) else spec


def check_symmetric(spec: NetworkSpec, heads: Sequence[Head] | None = None) -> None:
    """Check that a network treats y and x alike, and that heads can be averaged over turned tiles.

    Parameters
    ----------
    spec
        The network.
    heads
        The heads that are stored; None for all.

    Raises
    ------
    PlanError
        If a kernel or a pooling factor differs between y and x, a head holds values, which may have directions, or the offsets
        of affinities do not turn into one another.
    """
    stored = spec.heads if heads is None else heads
    if others := [head.name for head in stored if head.kind == "values"]:
        raise PlanError(
            f"--tta turns tiles, but the network has the head {others[0]!r} of values, which may be vectors that turn with "
            "them: leave out --tta, or store other heads with --heads"
        )
    for what, (_, y, x) in spec.planes():
        if y != x:
            raise PlanError(
                f"--tta turns tiles by 90 degrees, but the network's {what} is {y} in y and {x} in x: "
                "leave out --tta, or use a network that treats y and x alike"
            )
    list(_images(stored))


def _images(heads: Sequence[Head]) -> Iterator[tuple[int, Triple]]:
    """Yield channel and shift of each affinity for each symmetry."""
    for head in heads:
        if head.kind == "affinities":
            for symmetry in SYMMETRIES:
                yield from images_of_offsets(head, *symmetry)
