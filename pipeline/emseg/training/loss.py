"""What training makes small: sums over voxels, and how much these count, so that parts of a batch add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from emseg.box import Triple
from emseg.specs.model import ModelSpec
from emseg.truth import IGNORE


class Sum(NamedTuple):
    """A weighted sum of losses."""

    total: Tensor
    """The sum, a scalar float32."""
    counted: Tensor
    """The sum of the weights, a scalar float32."""

    @property
    def mean(self) -> Tensor:
        """The weighted mean; zero, with zero gradients, where nothing counts."""
        return self.total / torch.clamp(self.counted, min=torch.finfo(torch.float32).tiny)


def weighted_cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor, border: Tensor | None = None) -> Sum:
    """Cross-entropy of the labelled voxels, each counted with the weight of its class, and more close to a border.

    The weight map of Ronneberger, Fischer and Brox (arXiv:1505.04597), equation 2, is ``weights[truth] + border``.

    Parameters
    ----------
    logits
        ``(n, classes, z, y, x)``.
    truth
        Class of each voxel, ``(n, z, y, x) uint8``; 255 is ignored.
    weights
        ``(classes,) float32``.
    border
        What is added to the weight of each voxel, ``(n, z, y, x) float32``.
    """
    labels, known = truth.long(), truth != IGNORE
    each = functional.cross_entropy(_exact(logits), labels, ignore_index=IGNORE, reduction="none")
    weight = weights[torch.where(known, labels, 0)] * known
    if border is not None:
        weight = weight + border * known
    return Sum((each * weight).sum(), weight.sum())


def affinity_loss(logits: Tensor, truth: Tensor, segments: Tensor, offsets: Sequence[Triple]) -> Sum:
    """Binary cross-entropy of whether two voxels at an offset lie in one segment, over the pairs of labelled voxels.

    Affinities at a long reach make a network look at shapes: Lee et al., arXiv:1706.00120.

    Parameters
    ----------
    logits
        That they do, ``(n, offsets, z, y, x)``; at the place of the pair's further voxel.
    truth
        Class of each voxel, ``(n, z, y, x) uint8``; 255 is ignored.
    segments
        Number of the segment that each voxel lies in, ``(n, z, y, x)``; 0 in none.
    offsets
        From the nearer voxel (z, y, x) to the further one, not negative. One longer than the tile has no pairs.
    """
    losses, pairs = [], []
    for channel, offset in enumerate(offsets):
        far = tuple(slice(shift, None) for shift in offset)
        near = tuple(slice(0, max(0, length - shift)) for shift, length in zip(offset, truth.shape[1:], strict=True))
        ours, theirs = segments[:, *far], segments[:, *near]
        together = (ours == theirs) & (ours != 0)
        known = (truth[:, *far] != IGNORE) & (truth[:, *near] != IGNORE)
        found = _exact(logits[:, channel][:, *far])
        each = functional.binary_cross_entropy_with_logits(found, together.to(found.dtype), reduction="none")
        losses.append((each * known).sum())
        pairs.append(known.sum())
    return Sum(torch.stack(losses).sum(), torch.stack(pairs).sum().float())


def _exact(logits: Tensor) -> Tensor:
    """In float32 at least: sums over many voxels."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def affinity_offsets(spec: ModelSpec, reach: Sequence[int]) -> list[Triple]:
    """Each distance along each axis that the network sees; planes of a planar network have nothing to say of one another.

    Examples
    --------
    >>> affinity_offsets(ModelSpec.unet(), [3])
    [(0, 3, 0), (0, 0, 3)]
    """
    axes: list[Triple] = [(0, 1, 0), (0, 0, 1)] if spec.planar else [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    return [(distance * z, distance * y, distance * x) for distance in reach for z, y, x in axes]
