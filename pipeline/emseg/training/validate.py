"""What the network says about a whole volume, for validation; `emseg run` is the way for anything large."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.metrics.components import components
from emseg.metrics.isbi import border_scores
from emseg.metrics.membrane import best_threshold, f1
from emseg.model.unet import UNet
from emseg.training.source import Sample
from emseg.training.spec import Aim
from emseg.truth import IGNORE, MEMBRANE, between

THRESHOLDS = np.arange(0.04, 0.97, 0.04)
"""Probabilities of membrane that are tried as thresholds for segments."""
PLATEAU = 5
"""So many neighbouring thresholds are judged together: scores of a few slices jump where a single membrane breaks."""


def predict(network: UNet, raw: NDArray[np.float32], output: Triple) -> NDArray[np.float32]:
    """Logits ``(classes, z, y, x) float32`` of each voxel; the volume is mirrored at its faces.

    Tiles lie on the network's lattice and overhang the volume, so the result does not depend on their size.

    Parameters
    ----------
    network
        The network, on the device that shall compute; its mode, training or evaluation, is put back afterwards.
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
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        for corner in product(*(range(0, length, s) for length, s in zip(raw.shape, step, strict=True))):
            source = padded[Box.of_shape(tile).shift(triple(corner)).slices()]
            made = network(torch.from_numpy(source)[None, None].to(device))[0].cpu().numpy()
            target = Box.of_shape(step).shift(triple(corner)).intersect(volume)
            z, y, x = target.shape
            logits[:, *target.slices()] = made[:, :z, :y, :x]
    network.train(was_training)
    return logits


def score_of(labels: Sequence[NDArray[np.integer]], truths: Sequence[NDArray[np.uint8]], aim: Aim) -> float:
    """How good labels are, from 0 to 1: the mean F1 of the classes but the first, or V_Rand and V_Info of all slices.

    Parameters
    ----------
    labels, truths
        Class of each voxel of each volume, ``(z, y, x)``; 255 in the truth is ignored. For F1, a class counts that the truth
        has; for segments, class 1 is the membrane, and slices where all is membrane or ignored have no part in it.
    """
    if aim == "segments":
        return _parted([found == MEMBRANE for found in labels], truths)
    found, true = (np.concatenate([each.ravel() for each in arrays]) for arrays in (labels, truths))
    present = [label for label in np.unique(true).tolist() if label not in (0, IGNORE)]
    return float(np.mean([f1(found, true, membrane=label) for label in present])) if present else 0.0


def calibrate(network: UNet, tune: Sequence[Sample], output: Triple, aim: Aim) -> float:
    """The score on some volumes, after shifting biases so that the largest logit reaches a better one, if it can.

    Shifting a bias of the last layer is the same as moving a threshold, or as weighting the classes anew (their prior
    odds), but leaves nothing to set when the network is used. Class by class the best threshold against all others is
    tried, and kept if the score of all classes rises: a class that the network does not tell from others might else
    take their place. For segments the membrane's bias alone is shifted, to where scores are good on both sides.
    """
    logits = [predict(network, sample.raw, output) for sample in tune]
    truths = [sample.truth for sample in tune]
    bias = network.head.bias
    if bias is None:
        raise TypeError("the last layer has no bias to shift")

    def score() -> float:
        return score_of([found.argmax(axis=0) for found in logits], truths, aim)

    def margins_of(label: int) -> list[NDArray[np.float32]]:
        return [found[label] - np.delete(found, label, axis=0).max(axis=0) for found in logits]

    if aim == "segments":
        threshold = _best_border(margins_of(MEMBRANE), truths)
        for found in logits:
            found[MEMBRANE] -= threshold
        with torch.no_grad():
            bias[MEMBRANE] -= threshold
        return score()
    best = score()
    for label in range(1, len(bias)):
        threshold = _best_for(label, margins_of(label), truths)
        before = [found[label].copy() for found in logits]
        for found in logits:
            found[label] -= threshold
        if (reached := score()) > best:
            best = reached
            with torch.no_grad():
                bias[label] -= threshold
        else:
            for found, values in zip(logits, before, strict=True):
                found[label] = values
    return best


def _best_for(label: int, margins: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """The margin from which on calling a voxel this class gives its best F1; 0 if the truth has none of it."""
    if not any((truth == label).any() for truth in truths):
        return 0.0
    of_label = np.concatenate([_one_against_all(truth, label).ravel() for truth in truths])
    return best_threshold(np.concatenate([margin.ravel() for margin in margins]), of_label)[0]


def _one_against_all(truth: NDArray[np.uint8], label: int) -> NDArray[np.uint8]:
    """1 where the truth is this class, 0 where another; what is ignored stays so."""
    return np.where(truth == IGNORE, truth, truth == label).astype(np.uint8)


def _best_border(margins: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """The logit from which on a voxel is membrane, in the middle of the thresholds that part segments best.

    0 if no others part them better than those around it do.
    """
    logits = np.log(THRESHOLDS / (1 - THRESHOLDS))
    scores = np.array([_parted([margin > logit for margin in margins], truths) for logit in logits])
    smooth = np.convolve(scores, np.ones(PLATEAU) / PLATEAU, mode="valid")
    best = int(np.argmax(smooth))
    usual = np.interp(0.5, THRESHOLDS[PLATEAU // 2 : -(PLATEAU // 2)], smooth)
    return float(logits[best + PLATEAU // 2]) if smooth[best] > usual else 0.0


def _parted(borders: Sequence[NDArray[np.bool_]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """Mean of V_Rand and V_Info of the slices of volumes ``(z, y, x)`` in which membranes part something.

    Both are what the ISBI 2012 challenge ranks by. V_Rand alone is ruled by the largest cells: of three slices, a threshold at
    which one more of their walls holds may be best by chance; V_Info hardly jumps there.
    """
    slices = [
        (score.rand + score.info) / 2
        for volume, truth in zip(borders, truths, strict=True)
        for border, inside in zip(volume, between(truth), strict=True)
        if inside.any()
        for score in [border_scores(border, components(inside))]
    ]
    return float(np.mean(slices)) if slices else 0.0
