"""Use your own detector without PyTorch: find dark ridges with NumPy alone, in a Zarr volume and with two workers.

python examples/own_predictor.py FOLDER

emseg only needs a class that each worker can import; its receptive field is measured. At the end, the script checks that the
result is the same as from one pass over the whole volume.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

import emseg
from emseg import ingest, preview, segment, verify
from emseg_core.grid.stitch import classify
from emseg_core.metrics.membrane import count
from emseg_core.normalise import survey
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume
from emseg_core.truth import membrane_truth

SAMPLE = Path(__file__).parent / "fib25-sample"
FINE, COARSE, RADIUS = 1.0, 4.0, 12
"""Standard deviations of two Gaussians, and the radius at which both are cut off, in pixels."""
THRESHOLD = 0.35
"""How much darker than its surroundings a membrane is, in standard deviations of the volume's intensities."""
NAME = "own_predictor:DarkRidges"
"""Import path for the workers: the module, which is this file, and the class."""


class DarkRidges:
    """Difference of Gaussians in the plane, as a valid convolution: its output is shorter than a tile by twice the radius."""

    version = "1"  # to be changed whenever the logits change
    classes = ("inside", "membrane")
    planar = True  # slice by slice
    flops_per_voxel = 2 * 2 * 2 * (2 * RADIUS + 1)  # two Gaussians along two axes, a product and a sum for each weight

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the logits ``(n, 2, z, y', x')`` of normalised tiles ``(n, z, y, x)``."""
        darker = blurred(tiles, COARSE) - blurred(tiles, FINE) - np.float32(THRESHOLD)
        return np.stack([-darker, darker], axis=1)


def blurred(tiles: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Blur along y and x with a Gaussian, and keep the voxels for which all of it lies within the tile.

    Each voxel is the same sum in the same order, independent of its position in a tile; a running sum would round differently.
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
    """Segment the sample, compare with one pass over the whole volume, score the labels, and draw them."""
    folder.mkdir(parents=True, exist_ok=True)
    place, output = folder / "sample.zarr", folder / "ridges.emseg.zarr"
    ingest(SAMPLE / "raw.tif", place, voxel_size=(10, 10, 10), overwrite=True)

    plan = emseg.plan(place, predictor=NAME).plan
    context = plan.model.context
    print(f"context {context} voxels (z, y, x) on each side: {len(plan)} blocks, in tiles of {plan.tile}")
    report = segment(place, output, predictor=NAME, workers=2)  # blocks of an earlier run are not computed again
    print(f"{report.done} of {report.blocks} blocks computed, {report.skipped} done by an earlier run")
    print(verify(output, predictor=NAME))

    volume = open_volume(place)
    normalisation, _ = survey(volume, "volume")
    values = normalisation.apply(volume.read(plan.region), plan.region)
    whole = np.pad(values, [(c, c) for c in context], mode="reflect")
    labels = open_output(output).read_labels(plan.region)
    assert np.array_equal(labels, classify(DarkRidges().predict(whole[None])[0]))
    print("every voxel has the same label as in one pass over the whole volume")

    print(f"membrane F1 {count(labels, membrane_truth(tifffile.imread(SAMPLE / 'truth.tif'))).f1:.3f}")
    print(f"picture {preview(output, folder / 'ridges.png', volume=place)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/own-predictor"))
