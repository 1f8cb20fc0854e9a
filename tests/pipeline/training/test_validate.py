"""Prediction of a whole volume equals one pass over the mirrored volume; the bias is the best one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emseg.box import Triple
from emseg.metrics.membrane import f1
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from emseg.training.validate import calibrate, predict

SPEC = ModelSpec.unet(width=2, depth=2, kernel=(3, 3, 3), pooling=(2, 2, 2))
PLANAR = ModelSpec.unet(width=2, depth=2)


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
    torch.manual_seed(0)
    network = UNet(PLANAR).eval()
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(2, 24, 24)).astype(np.float32)
    margin = np.diff(predict(network, raw, (1, 16, 16)), axis=0)[0]
    truth = (margin + rng.normal(size=margin.shape) > np.quantile(margin, 0.8)).astype(np.uint8)
    best = calibrate(network, raw, truth, (1, 16, 16))
    assert f1(predict(network, raw, (1, 16, 16)).argmax(axis=0), truth) == pytest.approx(best, abs=1e-3)
    assert best == pytest.approx(max(f1(margin > t, truth) for t in margin.ravel() - 1e-6), abs=1e-3)
