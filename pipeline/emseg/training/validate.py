"""What the network says about a whole volume, for validation; `emseg run` is the way for anything large."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.metrics.membrane import best_threshold
from emseg.model.unet import UNet
from emseg.truth import MEMBRANE


def predict(network: UNet, raw: NDArray[np.float32], output: Triple) -> NDArray[np.float32]:
    """Logits ``(classes, z, y, x) float32`` of each voxel; the volume is mirrored at its faces.

    Tiles lie on the network's lattice and overhang the volume, so the result does not depend on their size.

    Parameters
    ----------
    network
        The network; its mode, training or evaluation, is put back afterwards.
    raw
        Normalised grey values, ``(z, y, x) float32``.
    output
        Shape (z, y, x) in voxels that the network makes of a tile, about.
    """
    spec, volume = network.spec, Box.of_shape(triple(raw.shape))
    tile = spec.tile_for(triple(max(o, s) for o, s in zip(output, spec.lattice, strict=True)))
    step = spec.step(tile)
    pads = [(c, c + t) for c, t in zip(spec.context, tile, strict=True)]
    padded = np.pad(raw, pads, mode="reflect")
    logits = np.empty((len(spec.classes), *raw.shape), np.float32)
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for corner in product(*(range(0, length, s) for length, s in zip(raw.shape, step, strict=True))):
            source = padded[Box.of_shape(tile).shift(triple(corner)).slices()]
            made = network(torch.from_numpy(source)[None, None])[0].numpy()
            target = Box.of_shape(step).shift(triple(corner)).intersect(volume)
            z, y, x = target.shape
            logits[:, *target.slices()] = made[:, :z, :y, :x]
    network.train(was_training)
    return logits


def calibrate(network: UNet, raw: NDArray[np.float32], truth: NDArray[np.uint8], output: Triple) -> float:
    """The best F1 on a volume, after shifting the membrane's bias so that the largest logit reaches it.

    Shifting a bias of the last layer is the same as moving a threshold, or as weighting the classes anew (their prior
    odds), but leaves nothing to set when the network is used.
    """
    logits = predict(network, raw, output)
    threshold, best = best_threshold(logits[MEMBRANE] - np.delete(logits, MEMBRANE, axis=0).max(axis=0), truth)
    bias = network.head.bias
    if bias is None:
        raise TypeError("the last layer has no bias to shift")
    with torch.no_grad():
        bias[MEMBRANE] -= threshold
    return best
