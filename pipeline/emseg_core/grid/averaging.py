"""Mean predictions, of the members of an ensemble or of the symmetries of the image plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from emseg_core.grid.stitch import softmax
from emseg_core.specs.heads import Head, parts_of


def shares_of(output: NDArray[np.float32], heads: Sequence[Head]) -> NDArray[np.float32]:
    """Return what of a prediction can be averaged.

    Parameters
    ----------
    output
        Channels of all heads, ``(n, channels, z, y, x) float32``.
    heads
        Heads of the network.

    Returns
    -------
    ndarray
        The same with the probabilities of classes that exclude one another instead of their logits, of the same shape. Where
        a logit is NaN or infinite, the probabilities of all classes are NaN.
    """
    parts = []
    for head, channels in parts_of(heads):
        values = output[:, channels]
        if head.kind == "classes":  # softmax would hide -inf as a probability of 0
            logits = np.where(np.isfinite(values), values, np.float32(np.nan))
            values = softmax(logits.swapaxes(0, 1)).swapaxes(0, 1)
        parts.append(values)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def mean_prediction(predictions: Iterable[NDArray[np.float32]], heads: Sequence[Head]) -> NDArray[np.float32]:
    """Average predictions: they are summed in ``float32`` in the given order, and the sum is divided by their number.

    The logarithms of mean probabilities of classes serve as logits, since `softmax` restores the means. A mean of 0 is replaced
    by the smallest normal number, whose logarithm is finite. A number that is no probability, in a head of probabilities, is
    not averaged but kept, so that it is found later.

    Parameters
    ----------
    predictions
        What `shares_of` returns, each ``(n, channels, z, y, x) float32``; at least one.
    heads
        Heads of the network.

    Returns
    -------
    ndarray
        The mean prediction, ``(n, channels, z, y, x) float32``.
    """
    total: NDArray[np.float32] | None = None
    wrong: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []
    count = 0
    bounded = [channels for head, channels in parts_of(heads) if head.kind in ("independent", "affinities")]
    for shares in predictions:
        if any(float(shares[:, part].min()) < 0 or float(shares[:, part].max()) > 1 for part in bounded):
            where = np.zeros(shares.shape, bool)
            for part in bounded:
                where[:, part] = (shares[:, part] < 0) | (shares[:, part] > 1)
            wrong.append((where, shares[where]))
        total = shares if total is None else np.add(total, shares)
        count += 1
    if total is None:
        raise ValueError("there are no predictions to average")
    mean = total / np.float32(count)
    for where, values in wrong:
        mean[where] = values
    for head, part in parts_of(heads):
        if head.kind == "classes":
            mean[:, part] = np.log(np.maximum(mean[:, part], np.finfo(np.float32).tiny))
    return mean
