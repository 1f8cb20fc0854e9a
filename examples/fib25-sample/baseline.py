"""Score a baseline that uses grey values alone, blurred and thresholded: the score that a network has to beat.

    EMSEG_DATA=FOLDER python examples/fib25-sample/baseline.py

Blur and threshold are chosen on the slices on which the bundled model was tuned; the score is that on this sample.
FOLDER holds flyem-fib25/train-raw.tif and train-labels.tif, as for workflows/fib25.toml.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg_core.metrics.membrane import best_threshold, count
from emseg_core.truth import membrane_truth

SIGMAS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Standard deviations of the Gaussian blur, in voxels."""


def darkness(raw: NDArray[np.uint8], sigma: float) -> NDArray[np.float32]:
    """Compute the darkness of each voxel after a Gaussian blur, ``(z, y, x) float32``, in standard deviations of the volume."""
    blurred = (raw - raw.mean()) / raw.std()
    if sigma:
        reach = int(4 * sigma + 0.5)
        kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        for axis in range(3):
            pads = [(reach, reach) if other == axis else (0, 0) for other in range(3)]
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(blurred, pads, mode="reflect"), 2 * reach + 1, axis)
            blurred = windows @ (kernel / kernel.sum())
    dark: NDArray[np.float32] = -blurred.astype(np.float32)
    return dark


def main() -> None:
    """Choose blur and threshold, and print the score."""
    here, data = Path(__file__).parent, Path(os.environ["EMSEG_DATA"]) / "flyem-fib25"
    raw, ids = (tifffile.imread(data / f"train-{name}.tif")[130:145] for name in ("raw", "labels"))
    truth = membrane_truth(ids)
    tried = [(*best_threshold(darkness(raw, sigma), truth), sigma) for sigma in SIGMAS]
    threshold, tuned, sigma = max(tried, key=lambda entry: entry[1])
    print(f"z 130..144: best F1 {tuned:.3f} with a blur of {sigma} voxels and a threshold of {-threshold:.2f} deviations")
    sample, sample_ids = (tifffile.imread(here / f"{name}.tif") for name in ("raw", "truth"))
    score = count(darkness(sample, sigma) > threshold, membrane_truth(sample_ids))
    print(f"z 150..189: F1 {score.f1:.3f} (precision {score.precision:.3f}, recall {score.recall:.3f})")


if __name__ == "__main__":
    main()
