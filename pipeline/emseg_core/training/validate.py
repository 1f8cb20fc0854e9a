"""Predict whole volumes in memory, score them, and calibrate the network; for large volumes use `emseg run`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit

from emseg_core.box import Box, Triple, triple
from emseg_core.metrics.components import components
from emseg_core.metrics.isbi import border_scores
from emseg_core.metrics.membrane import Counts, best_threshold, f1
from emseg_core.metrics.pixel import confusion, counts_of
from emseg_core.model.unet import UNet
from emseg_core.specs.heads import parts_of
from emseg_core.specs.model import ModelSpec
from emseg_core.training.spec import Aim
from emseg_core.training.truth_reader import ValidationVolume
from emseg_core.truth import IGNORE, MEMBRANE, between

THRESHOLDS = np.arange(0.04, 0.97, 0.04)
"""Membrane probabilities tried as thresholds for segments."""
PLATEAU_THRESHOLDS = 5
"""Number of neighbouring thresholds over which scores are averaged, since those of a few slices jump where a single membrane
breaks."""


def predict(network: UNet, raw: NDArray[np.float32], output: Triple) -> NDArray[np.float32]:
    """Compute the logits of a whole volume, mirrored at its faces.

    Tiles lie on the network's lattice and may extend beyond the volume, so the result does not depend on their size.

    Parameters
    ----------
    network
        The network, on the device to use; its mode, training or evaluation, is restored afterwards.
    raw
        Normalised grey values, ``(z, y, x) float32``.
    output
        Approximate shape (z, y, x) in voxels of the network's output for a tile.

    Returns
    -------
    NDArray
        Logits of all heads, ``(logits, z, y, x) float32``.
    """
    spec, volume = network.spec, Box.of_shape(triple(raw.shape))
    tile = spec.tile_for(triple(max(o, s) for o, s in zip(output, spec.lattice, strict=True)))
    step = spec.step(tile)
    pads = [(c, c + t) for c, t in zip(spec.context, tile, strict=True)]
    padded = np.pad(raw, pads, mode="reflect")
    logits = np.empty((spec.logits, *raw.shape), np.float32)
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        starts = [range(0, length, s) for length, s in zip(raw.shape, step, strict=True)]
        for corner in product(*starts):
            source = padded[Box.of_shape(tile).shift(triple(corner)).slices()]
            made = network(torch.from_numpy(source)[None, None].to(device))[0].cpu().numpy()
            target = Box.of_shape(step).shift(triple(corner)).intersect(volume)
            z, y, x = target.shape
            logits[:, *target.slices()] = made[:, :z, :y, :x]
    network.train(was_training)
    return logits


def score_labels(labels: Sequence[NDArray[np.integer]], truths: Sequence[NDArray[np.uint8]], aim: Aim) -> float:
    """Score labels against the truth.

    Parameters
    ----------
    labels, truths
        Class of each voxel of each volume, ``(z, y, x)``; 255 in the truth is ignored.
    aim
        For ``f1``, the mean F1 of all classes that occur in the truth, except the first. For ``segments``, the mean of V_Rand
        and V_Info over slices; class 1 is the membrane, and slices that are all membrane or ignored are left out.

    Returns
    -------
    float
        The score, from 0 to 1.
    """
    if aim == "segments":
        return _segment_score([found == MEMBRANE for found in labels], truths)
    found, true = (np.concatenate([each.ravel() for each in arrays]) for arrays in (labels, truths))
    present = [label for label in np.unique(true).tolist() if label not in (0, IGNORE)]
    return float(np.mean([f1(found, true, membrane=label) for label in present])) if present else 0.0


class ChannelScore(NamedTuple):
    """Scores of a channel that does not exclude others."""

    name: str
    """Name of the channel."""
    counts: Counts
    """Voxels of the class, or edges between different objects, which are found, missed or found where there are none."""
    accuracy: float
    """Fraction of voxels or edges that are right."""


def channel_scores(
    spec: ModelSpec, logits: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]
) -> list[ChannelScore]:
    """Score each channel of a network without exclusive classes: independent classes at their thresholds, affinities at 0.5.

    Parameters
    ----------
    spec
        The network.
    logits
        Logits of each volume, ``(channel, z, y, x)``.
    truths
        Truth of each volume, ``(channel, z, y, x)``; 255 is ignored.

    Returns
    -------
    list of ChannelScore
        Scores of the channels in their order.
    """
    scores = []
    for head, part in parts_of(spec.heads):
        for channel, (name, limit) in enumerate(zip(head.channels, head.limits, strict=True), part.start):
            table = np.zeros((2, 2), np.int64)
            for found, truth in zip(logits, truths, strict=True):
                predicted = (found[channel] >= logit(limit)).astype(np.uint8)
                table += confusion(predicted, truth[channel], 2)
            sought = int(head.kind == "independent" or head.repulsive)  # of edges, those between different objects are rarer
            scores.append(ChannelScore(name, counts_of(table, sought), float(np.trace(table) / max(1, table.sum()))))
    return scores


def channel_score(spec: ModelSpec, logits: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """Compute the mean F1 of all channels of a network without exclusive classes; see `channel_scores`.

    Parameters
    ----------
    spec
        The network.
    logits
        Logits of each volume, ``(channel, z, y, x)``.
    truths
        Truth of each volume, ``(channel, z, y, x)``; 255 is ignored.

    Returns
    -------
    float
        The score, from 0 to 1.
    """
    return float(np.mean([score.counts.f1 for score in channel_scores(spec, logits, truths)]))


def calibrate(network: UNet, tune: Sequence[ValidationVolume], output: Triple, aim: Aim) -> float:
    """Shift the biases of the last layer so that the most likely class gives the best score.

    Shifting a bias is equivalent to moving a threshold, or to reweighting the classes (their prior odds), but leaves nothing to
    set when the network is used. Class by class, the best threshold against all others is tried, and kept if the overall score
    improves; otherwise a class that the network cannot distinguish might displace the others. For segments, only the bias of
    the membrane is shifted, to the middle of a range with good scores.

    Parameters
    ----------
    network
        The network, changed in place.
    tune
        Volumes to optimise the score on.
    output
        Approximate shape (z, y, x) in voxels of the network's output for a tile.
    aim
        The score.

    Returns
    -------
    float
        The score on these volumes afterwards.

    Raises
    ------
    TypeError
        If the last layer of the network has no bias.
    """
    logits = [predict(network, sample.raw, output) for sample in tune]
    truths = [sample.truth for sample in tune]
    bias = network.head.bias
    if bias is None:
        raise TypeError("the last layer has no bias to shift")

    def score() -> float:
        return score_labels([found.argmax(axis=0) for found in logits], truths, aim)

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
    """Return the smallest margin at which to assign this class for its best F1; 0 if the class is not in the truth."""
    true = np.concatenate([truth.ravel() for truth in truths])
    if label not in true:
        return 0.0
    of_label = np.where(true == IGNORE, true, true == label).astype(np.uint8)  # ignored voxels stay ignored
    return best_threshold(np.concatenate([margin.ravel() for margin in margins]), of_label)[0]


def _best_border(margins: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """Return the logit above which a voxel is membrane: the middle of the thresholds that separate segments best.

    It is 0 unless others separate them better than those around 0 do.
    """
    logits = np.log(THRESHOLDS / (1 - THRESHOLDS))
    scores = np.array([_segment_score([margin > logit for margin in margins], truths) for logit in logits])
    smooth = np.convolve(scores, np.ones(PLATEAU_THRESHOLDS) / PLATEAU_THRESHOLDS, mode="valid")
    best = int(np.argmax(smooth))
    usual = np.interp(0.5, THRESHOLDS[PLATEAU_THRESHOLDS // 2 : -(PLATEAU_THRESHOLDS // 2)], smooth)
    return float(logits[best + PLATEAU_THRESHOLDS // 2]) if smooth[best] > usual else 0.0


def _segment_score(borders: Sequence[NDArray[np.bool_]], truths: Sequence[NDArray[np.uint8]]) -> float:
    """Compute the mean of V_Rand and V_Info over the slices of volumes ``(z, y, x)`` that contain a segment.

    The ISBI 2012 challenge ranks by these two scores. V_Rand alone is dominated by the largest cells: with only three slices, a
    threshold may be best by chance because one more wall of such a cell holds. V_Info hardly jumps there.
    """
    slices = [
        (score.rand + score.info) / 2
        for volume, truth in zip(borders, truths, strict=True)
        for border, inside in zip(volume, between(truth), strict=True)
        if inside.any()
        for score in [border_scores(border, components(inside))]
    ]
    return float(np.mean(slices)) if slices else 0.0
