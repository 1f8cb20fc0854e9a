"""Test the documented trainings and scores on the real sections that they are about."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from readmes import ROOT, block, blocks, run

from emseg import evaluate, ingest, segment

DATA = Path(os.environ.get("EMSEG_DATA", "."))
RESULTS = "workflows/docs/results.md"

pytestmark = [
    pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder"),
    pytest.mark.timeout(1200),  # a slow, busy machine takes long
]


def trained(command: str, folder: Path) -> Path:
    """Train a shipped configuration, shortened to two steps of a tiny network."""
    given, emseg, train, path = command.split()
    assert (given, emseg, train) == ("EMSEG_DATA=/path/to/data", "emseg", "train")
    text = (ROOT / path).read_text()
    config = tomllib.loads(text)
    for table, key, value in (("model", "width", 2), ("fit", "steps", 2), ("fit", "warmup", 1), ("fit", "validate_every", 2)):
        text = text.replace(f"{key} = {config[table][key]}", f"{key} = {value}", 1)
    (folder / "cut.toml").write_text(text)
    run("emseg", "train", "cut.toml", folder=folder)
    return folder / str(config["output"])


def test_training_starts(tmp_path: Path) -> None:
    assert trained(block("workflows/docs/tutorials/train-on-five-slices.md", "EMSEG_DATA="), tmp_path).exists()


@pytest.mark.parametrize("name", ["isbi2012", "drosophila-vnc"])
def test_scores_are_measured_as_told(name: str, tmp_path: Path) -> None:
    (command,) = [text for _, text in blocks(RESULTS) if text.split()[-1] == f"workflows/{name}.toml"]
    model = trained(command, tmp_path)
    (commands,) = [text for _, text in blocks(RESULTS) if f"--model {model.name}" in text]
    done = run("bash", "-euc", commands, folder=tmp_path)
    assert "membrane" in done.stdout
    assert "V_Rand" in done.stdout


@pytest.mark.skipif(not (DATA / "isbi2012").exists(), reason="EMSEG_DATA names no folder with isbi2012")
def test_real_sections(tmp_path: Path) -> None:
    """The bundled network was trained on other tissue, so a threshold chosen here is better than 0.5."""
    labels = {"membrane": (0,), "inside": (255,)}
    truth = DATA / "isbi2012" / "train-labels.tif"
    ingest(DATA / "isbi2012" / "train-volume.tif", tmp_path / "isbi.zarr", voxel_size=(50, 4, 4))
    segment(tmp_path / "isbi.zarr", tmp_path / "out.zarr", workers=0, roi="20:22,:,:", normalise="slice", probabilities=True)
    found = evaluate(tmp_path / "out.zarr", truth, labels=labels).to_json()
    best = found["best"]["0.02"]["rand"]
    assert 0.3 < found["classes"]["membrane"]["f1"] < 0.8
    assert 0.5 < best["score"] < 1
    assert best["score"] > found["segments"]["rand"]
    perfect = evaluate(truth, truth, labels=labels, slices=(20, 22)).to_json()
    assert (perfect["segments"]["rand"], perfect["segments"]["info"], perfect["warping_error"]) == pytest.approx((1, 1, 0))
