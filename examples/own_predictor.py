"""A detector of your own, without PyTorch: dark ridges by NumPy alone, run over a Zarr volume by two workers.

python examples/own_predictor.py FOLDER

All that emseg needs of it is a class that each worker can import. How far its voxels see is found by experiment. That the
result is the same as of one pass over the whole volume is checked at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg.grid.stitch import classify
from emseg.metrics.membrane import count
from emseg.normalise import survey
from emseg.store.output import open_output
from emseg.store.volume import open_volume
from emseg.truth import membrane_truth
from emseg_workflows import ingest, plan_run, preview, segment, verify

SAMPLE = Path(__file__).parent / "fib25-sample"
FINE, COARSE, RADIUS = 1.0, 4.0, 12
"""Deviations of two Gaussians, and where both are cut off, in pixels."""
THRESHOLD = 0.35
"""How much darker than its surroundings a membrane is, in deviations of the volume's intensities."""
NAME = "own_predictor:DarkRidges"
"""The module, which is this file, and the class: what workers import."""


class DarkRidges:
    """Difference of Gaussians in the plane, as a valid convolution: what it gives is shorter than a tile by the radius."""

    version = "1"  # another one where it gives other logits
    classes = ("inside", "membrane")
    planar = True  # slice by slice
    flops_per_voxel = 2 * 2 * 2 * (2 * RADIUS + 1)  # two Gaussians along two axes, a product and a sum for each weight

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, 2, z, y', x')`` of normalised tiles ``(n, z, y, x)``."""
        darker = blurred(tiles, COARSE) - blurred(tiles, FINE) - np.float32(THRESHOLD)
        return np.stack([-darker, darker], axis=1)


def blurred(tiles: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """A Gaussian along y and x, where all of it lies within the tile.

    Each voxel is the same sum in the same order, wherever it lies in a tile: a running sum would round differently.
    """
    weights = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (-2, -1):
        shape, length = list(tiles.shape), tiles.shape[axis] - 2 * RADIUS
        shape[axis] = length
        total = np.zeros(shape, np.float32)
        for shift, weight in enumerate(weights.astype(np.float32)):
            total += weight * np.take(tiles, range(shift, shift + length), axis)
        tiles = total
    return tiles


def main(folder: Path) -> None:
    """Segment the sample with it, compare with one pass over the whole, score it, draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    place, output = folder / "sample.zarr", folder / "ridges.emseg.zarr"
    ingest(SAMPLE / "raw.tif", place, voxel_size=(10, 10, 10), overwrite=True)

    plan = plan_run(place, predictor=NAME).plan
    context = plan.model.context
    print(f"its voxels see {context} voxels (z, y, x) beyond each side: {len(plan)} blocks, in tiles of {plan.tile}")
    report = segment(place, output, predictor=NAME, workers=2)  # what is done already is not done again
    print(f"{report.done} of {report.blocks} blocks computed, {report.skipped} were there already")
    print(verify(output, predictor=NAME))

    volume = open_volume(place)
    normalisation, _ = survey(volume, "volume")
    values = normalisation.apply(volume.read(plan.region), plan.region)
    whole = np.pad(values, [(c, c) for c in context], mode="reflect")
    labels = open_output(output).read_labels(plan.region)
    assert np.array_equal(labels, classify(DarkRidges().predict(whole[None])[0]))
    print("the same as in one pass over the whole volume, to the last voxel")

    print(f"membrane F1 {count(labels, membrane_truth(tifffile.imread(SAMPLE / 'truth.tif'))).f1:.3f}")
    print(f"picture {preview(output, folder / 'ridges.png', volume=place)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/own-predictor"))
