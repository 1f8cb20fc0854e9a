"""Test the bundled models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from emseg_core.errors import ModelError
from emseg_core.metrics.membrane import best_threshold, f1
from emseg_core.model.bundled import DEFAULT_MODEL, bundled_models, resolve_model
from emseg_core.model.file import load_model
from emseg_core.training.validate import predict
from emseg_core.truth import membrane_truth

SAMPLE = Path(__file__).parents[3] / "examples" / "fib25-sample"


def test_names_and_paths(tmp_path: Path) -> None:
    models = bundled_models()
    assert DEFAULT_MODEL in models
    assert resolve_model() == resolve_model(None) == resolve_model(DEFAULT_MODEL) == models[DEFAULT_MODEL]
    own = tmp_path / "own.safetensors"
    own.touch()
    assert resolve_model(own) == resolve_model(str(own)) == own


def test_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(ModelError, match=f"'membrane-typo'.*{DEFAULT_MODEL}") as caught:
        resolve_model("membrane-typo")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_each_is_a_model_with_a_complete_card(name: str) -> None:
    model = load_model(bundled_models()[name])
    assert model.card["name"] == name
    for entry in ("data", "attribution", "licence", "split", "scores", "normalisation", "voxel_size", "training"):
        assert model.card.get(entry), entry
    assert max(model.spec.context) <= 28
    model.network()


def test_the_default_beats_grey_values_on_the_sample() -> None:
    raw, ids = (tifffile.imread(SAMPLE / name)[:, 90:170, 90:170] for name in ("raw.tif", "truth.tif"))
    normalised = ((raw - raw.mean()) / raw.std()).astype(np.float32)
    truth = membrane_truth(ids)
    labels = predict(load_model(resolve_model()).network(), normalised, (40, 40, 40)).argmax(axis=0)
    _, by_threshold = best_threshold(-normalised, truth)
    assert f1(labels, truth) > by_threshold + 0.1


def test_licence_is_there() -> None:
    text = (bundled_models()[DEFAULT_MODEL].parent / "LICENSE.txt").read_text()
    assert "Attribution" in text
    assert "NonCommercial" not in text
