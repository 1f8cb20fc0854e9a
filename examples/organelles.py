"""Segment classes that overlap: train a network with independent classes of organelles, and store a label image of each.

python examples/organelles.py FOLDER
"""

from __future__ import annotations

import os
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from emseg import ingest, segment, verify
from emseg.flows.train import train
from emseg_core.metrics.pixel import confusion, counts_of
from emseg_core.model.file import load_model
from emseg_core.store.outputs.lifecycle import open_output

CONFIG = Path(__file__).parents[1] / "workflows" / "organelles.toml"
SHAPE = (24, 96, 96)
UNSEEN = slice(20, None)
"""Slices that the configuration neither trains on nor validates with."""

VALUES = {"mito": (1,), "er": (2,), "organelle": (1, 2)}
"""Values of each class in the truth, as in the configuration: an organelle is a mitochondrion or endoplasmic reticulum."""


def draw() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw dark mitochondria and bright endoplasmic reticulum."""
    rng = np.random.default_rng(0)
    noise = [ndimage.gaussian_filter(rng.normal(size=SHAPE), width) for width in (4, 3)]
    mito, er = (values > np.quantile(values, share) for values, share in zip(noise, (0.7, 0.7), strict=True))
    truth = np.select([mito, er], [1, 2], 0)
    raw = np.array([140.0, 80, 200])[truth] + rng.normal(0, 10, SHAPE)
    return raw.clip(0, 255).astype(np.uint8), truth.astype(np.uint8)


def main(folder: Path) -> None:
    """Draw and train, run the network over the whole volume, and compare what it stored with the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()
    raw, truth = draw()
    tifffile.imwrite(folder / "raw.tif", raw)
    tifffile.imwrite(folder / "labels.tif", truth)
    model = folder / "organelles.safetensors"
    model.unlink(missing_ok=True)
    os.environ["EMSEG_DATA"] = str(folder)  # where the configuration's data are
    with chdir(folder):  # where the model is written
        train(CONFIG)
    print(load_model(model).card["scores"])

    volume, output = folder / "raw.zarr", folder / "organelles.emseg.zarr"
    ingest(folder / "raw.tif", volume, voxel_size=(8, 8, 8), overwrite=True)
    report = segment(volume, output, model=model, workers=0, overwrite=True)  # in this process; None for all cores
    if report.exit_code:
        sys.exit(report.exit_code)

    result = open_output(output)
    for name, values in VALUES.items():
        labels = result.read(name, result.region)
        score = counts_of(confusion(labels[UNSEEN], np.isin(truth, values).astype(np.uint8)[UNSEEN], 2), 1)
        print(f"{name} F1 {score.f1:.3f} on slices that it was not trained on")
    verdict = verify(output, boxes=2)
    print(verdict)
    sys.exit(verdict.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/organelles"))
