"""What training makes small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from emseg.truth import IGNORE


def weighted_cross_entropy(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled voxels, each counted with the weight of its class; a scalar, float32.

    Zero, with zero gradients, if no voxel is labelled.

    Parameters
    ----------
    logits
        ``(n, classes, z, y, x)``.
    truth
        Class of each voxel, ``(n, z, y, x) uint8``; 255 is ignored.
    weights
        ``(classes,) float32``.
    """
    labels = truth.long()
    total = functional.cross_entropy(logits.float(), labels, weights, ignore_index=IGNORE, reduction="sum")
    counted = weights[labels[labels != IGNORE]].sum()
    return total / torch.clamp(counted, min=torch.finfo(torch.float32).tiny)
