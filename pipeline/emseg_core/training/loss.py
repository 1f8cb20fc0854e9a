"""Compute losses as weighted sums over voxels together with the sums of the weights, so that parts of a batch add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from emseg_core.box import Triple
from emseg_core.specs.model import ModelSpec
from emseg_core.truth import IGNORE, ends_of_edges


class WeightedSum(NamedTuple):
    """A weighted sum of losses."""

    total: Tensor
    """The sum, a scalar float32."""
    counted: Tensor
    """The sum of the weights, a scalar float32."""

    @property
    def mean(self) -> Tensor:
        """Weighted mean; zero, with zero gradients, if all weights are zero."""
        return self.total / torch.clamp(self.counted, min=torch.finfo(torch.float32).tiny)


def weighted_cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor, border: Tensor | None = None) -> WeightedSum:
    """Compute the cross-entropy of labelled voxels, weighted by class and by proximity to a border.

    The weight map of Ronneberger, Fischer and Brox (arXiv:1505.04597), equation 2, is ``weights[truth] + border``.

    Parameters
    ----------
    logits
        Logits, ``(n, classes, z, y, x)``.
    truth
        Class of each voxel, ``(n, z, y, x) uint8``; 255 is ignored.
    weights
        Weight of each class, ``(classes,) float32``.
    border
        Addition to the weight of each voxel, ``(n, z, y, x) float32``; None adds nothing.

    Returns
    -------
    WeightedSum
        Sum over the labelled voxels.
    """
    labels, known = truth.long(), truth != IGNORE
    each = functional.cross_entropy(_exact(logits), labels, ignore_index=IGNORE, reduction="none")
    weight = weights[torch.where(known, labels, 0)] * known
    if border is not None:
        weight = weight + border * known
    return WeightedSum((each * weight).sum(), weight.sum())


def binary_cross_entropy(logits: Tensor, truth: Tensor) -> WeightedSum:
    """Compute the binary cross-entropy of channels that do not exclude one another.

    Parameters
    ----------
    logits
        Logits, ``(n, channels, z, y, x)``.
    truth
        1 or 0 for each voxel and channel, ``(n, channels, z, y, x) uint8``; 255 is ignored.

    Returns
    -------
    WeightedSum
        Sum over what is not ignored.
    """
    known = truth != IGNORE
    found = _exact(logits)
    each = functional.binary_cross_entropy_with_logits(found, (truth == 1).to(found.dtype), reduction="none")
    return WeightedSum((each * known).sum(), known.sum().float())


def affinity_loss(logits: Tensor, truth: Tensor, segments: Tensor, offsets: Sequence[Triple]) -> WeightedSum:
    """Compute the binary cross-entropy of affinities: whether two voxels at an offset lie in the same segment.

    Long-range affinities make a network learn shapes: Lee et al., arXiv:1706.00120.

    Parameters
    ----------
    logits
        Logits of being in the same segment, ``(n, offsets, z, y, x)``, at the position of the far voxel of each pair.
    truth
        Class of each voxel, ``(n, z, y, x) uint8``; 255 is ignored.
    segments
        Segment of each voxel, ``(n, z, y, x)``; 0 is no segment.
    offsets
        Offsets (z, y, x) in voxels from the near voxel to the far one, not negative. One longer than the tile has no pairs.

    Returns
    -------
    WeightedSum
        Sum over the pairs of labelled voxels.
    """
    losses, pairs = [], []
    for channel, offset in enumerate(offsets):
        near, far = ends_of_edges(offset, truth.shape[1:])
        ours, theirs = segments[:, *far], segments[:, *near]
        together = (ours == theirs) & (ours != 0)
        known = (truth[:, *far] != IGNORE) & (truth[:, *near] != IGNORE)
        found = _exact(logits[:, channel][:, *far])
        each = functional.binary_cross_entropy_with_logits(found, together.to(found.dtype), reduction="none")
        losses.append((each * known).sum())
        pairs.append(known.sum())
    return WeightedSum(torch.stack(losses).sum(), torch.stack(pairs).sum().float())


def _exact(logits: Tensor) -> Tensor:
    """Convert to float32 or better, since sums run over many voxels."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def affinity_offsets(spec: ModelSpec, reach: Sequence[int]) -> list[Triple]:
    """List the offsets of affinities: each distance along each axis, without z for a planar network.

    Parameters
    ----------
    spec
        The network.
    reach
        Distances, in voxels.

    Returns
    -------
    list of Triple
        Offsets (z, y, x) in voxels.

    Examples
    --------
    >>> affinity_offsets(ModelSpec.unet(), [3])
    [(0, 3, 0), (0, 0, 3)]
    """
    axes: list[Triple] = [(0, 1, 0), (0, 0, 1)] if spec.planar else [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    return [(distance * z, distance * y, distance * x) for distance in reach for z, y, x in axes]
