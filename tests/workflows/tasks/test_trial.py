"""Test that a run computes with the predictor that its own trial has opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import CUBIC, bytes_of, save_random_model, save_volume, texture

from emseg.flows.segment import segment
from emseg.tasks import trial
from emseg_core.model import backend
from emseg_core.model.file import ModelFile, load_model


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the digests of the models that predictors are opened for."""
    digests = []

    def counted(model: ModelFile, *arguments: Any) -> object:
        digests.append(model.digest)
        return original(model, *arguments)

    original = backend.open_predictor
    monkeypatch.setattr(backend, "open_predictor", counted)
    return digests


def test_a_network_is_compiled_once(tmp_path: Path, opened: list[str]) -> None:
    volume, model = save_volume(tmp_path / "v.zarr", texture((6, 40, 40))), save_random_model(tmp_path / "m.st", CUBIC)
    assert segment(volume, tmp_path / "o.zarr", model=model, workers=0).exit_code == 0
    assert len(opened) == 1
    assert not trial._tried


def test_what_a_trial_of_another_model_has_left_is_not_taken(tmp_path: Path, opened: list[str]) -> None:
    """A run that was refused between its trial and its first block leaves one behind."""
    volume = save_volume(tmp_path / "v.zarr", texture((6, 40, 40)))
    first, second = (save_random_model(tmp_path / f"{seed}.st", CUBIC, seed) for seed in (1, 2))
    assert segment(volume, tmp_path / "right.zarr", model=second, workers=0).exit_code == 0
    library, other = backend.default_backend("cpu"), load_model(first)
    trial._tried[other.digest, library, "float32", 1, "cpu"] = backend.open_predictor(other, library, "float32", 1, "cpu")
    assert segment(volume, tmp_path / "again.zarr", model=second, workers=0).exit_code == 0
    assert opened == [load_model(second).digest, other.digest, load_model(second).digest]
    assert bytes_of(tmp_path / "again.zarr") == bytes_of(tmp_path / "right.zarr")
    assert not trial._tried
