"""Test that predicting a whole volume equals one pass over the mirrored volume, and that the best bias is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emseg_core.box import Triple
from emseg_core.metrics.membrane import f1
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from emseg_core.training.truth_reader import ValidationVolume
from emseg_core.training.validate import calibrate, predict, score_labels

SPEC = ModelSpec.unet(width=2, depth=2, kernel=(3, 3, 3), pooling=(2, 2, 2))
PLANAR = ModelSpec.unet(width=2, depth=2)


def drawn() -> UNet:
    """Return a network with random weights."""
    torch.manual_seed(0)
    return UNet(PLANAR).eval()


@pytest.mark.parametrize("spec", [SPEC, PLANAR])
@pytest.mark.parametrize("output", [(1, 1, 1), (5, 12, 20)])
@pytest.mark.parametrize("shape", [(9, 13, 6), (1, 30, 17)])
def test_tiled_is_untiled(spec: ModelSpec, output: Triple, shape: Triple) -> None:
    torch.manual_seed(0)
    network = UNet(spec).eval()
    raw = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    whole = spec.tile_for(shape)
    pads = [(c, n - c - length) for c, n, length in zip(spec.context, whole, shape, strict=True)]
    with torch.inference_mode():
        once = network(torch.from_numpy(np.pad(raw, pads, mode="reflect"))[None, None])[0].numpy()
    expected = once[:, : shape[0], : shape[1], : shape[2]]
    assert np.allclose(predict(network, raw, output), expected, atol=1e-4)


def test_the_mode_is_put_back() -> None:
    network = UNet(PLANAR).train()
    predict(network, np.zeros((1, 8, 8), np.float32), (1, 8, 8))
    assert network.training
    predict(network.eval(), np.zeros((1, 8, 8), np.float32), (1, 8, 8))
    assert not network.training


def test_calibrated_argmax_has_the_best_f1() -> None:
    network = drawn()
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, 24, 24)).astype(np.float32)
    margin = np.diff(predict(network, raw, (1, 16, 16)), axis=0)[0]
    truth = (margin + rng.normal(size=margin.shape) > np.quantile(margin, 0.8)).astype(np.uint8)
    halves = [ValidationVolume(raw[:1], truth[:1]), ValidationVolume(raw[1:], truth[1:])]
    best = calibrate(network, halves, (1, 16, 16), "f1")
    assert f1(predict(network, raw, (1, 16, 16)).argmax(axis=0), truth) == pytest.approx(best, abs=1e-3)
    assert best == pytest.approx(max(f1(margin > t, truth) for t in margin.ravel() - 1e-6), abs=1e-3)


def test_calibrated_for_segments() -> None:
    """The grey values show the wall between two cells, but the membrane class is improbable there."""
    spec = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1))
    network = UNet(spec).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0)
        for convolution in (*network.down[0].children(), network.head):
            convolution.weight[-1] = 1  # the membrane's logit is the grey value
    raw, truth = np.zeros((1, 9, 9), np.float32), np.zeros((1, 9, 9), np.uint8)
    raw[:, :, 4], truth[:, :, 4] = 1, 1
    network.head.bias.data[1] = -2
    sample = ValidationVolume(raw, truth)
    assert not predict(network, raw, (1, 9, 9)).argmax(axis=0).any()
    assert calibrate(network, [sample], (1, 9, 9), "segments") == 1
    assert np.array_equal(predict(network, raw, (1, 9, 9)).argmax(axis=0), truth)


def test_a_class_that_is_not_told_apart_takes_no_other_s_place() -> None:
    """Its best threshold against the others would label everything with it."""
    spec = ModelSpec.unet(width=1, depth=0, kernel=(1, 1, 1), classes=("inside", "membrane", "synapse"))
    network = UNet(spec).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0)
        for convolution in network.down[0].children():
            convolution.get_parameter("weight").fill_(1)
        network.head.weight[1] = 1  # the membrane's logit is the grey value
        network.head.bias[:] = torch.tensor([0.5, 0.0, -9.0])
    raw, truth = np.zeros((1, 9, 9), np.float32), np.zeros((1, 9, 9), np.uint8)
    raw[:, :, 4], truth[:, :, 4] = 1, 1
    truth[0, 0, 0] = 2
    before = score_labels([predict(network, raw, (1, 9, 9)).argmax(axis=0)], [truth], "f1")
    assert before == 0.5
    assert calibrate(network, [ValidationVolume(raw, truth)], (1, 9, 9), "f1") >= before
    assert (predict(network, raw, (1, 9, 9)).argmax(axis=0) == 1).sum() == 9


def test_classes_that_the_truth_has_not_do_not_count() -> None:
    truth = np.array([[[0, 0, 2, 2]]], np.uint8)
    assert score_labels([truth], [truth], "f1") == 1
    assert score_labels([truth], [np.zeros_like(truth)], "f1") == 0


def test_scores_are_means() -> None:
    truth = np.array([[[0, 0, 1, 1, 2, 2, 255]]], np.uint8)
    found = np.array([[[0, 0, 1, 0, 2, 2, 1]]], np.uint8)
    assert score_labels([found], [truth], "f1") == pytest.approx((2 / 3 + 1) / 2)
    parts = score_labels([found[..., :4], found[..., 4:]], [truth[..., :4], truth[..., 4:]], "f1")
    assert parts == pytest.approx((2 / 3 + 1) / 2)


def test_segments_of_each_slice() -> None:
    """One slice has its wall found, one has it missed, and one has nothing to find."""
    truth = np.zeros((3, 5, 5), np.uint8)
    truth[:2, :, 2] = 1
    truth[2] = 255
    found = truth.copy()
    found[1] = 0
    merged = 2 * (2 * 0.25) / (1 + 2 * 0.25)  # V_Rand of two merged cells of equal size; their V_Info is 0
    assert score_labels([found], [truth], "segments") == pytest.approx((1 + (merged + 0) / 2) / 2)
