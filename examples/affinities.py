"""Segment cells by affinities: train a network, store its affinities in one run, and join the voxels that they link.

python examples/affinities.py FOLDER
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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from emseg import ingest, segment, verify
from emseg.flows.train import train
from emseg_core.metrics.partition import overlap, scores
from emseg_core.model.file import load_model
from emseg_core.store.outputs.lifecycle import open_output

CONFIG = Path(__file__).parents[1] / "workflows" / "affinities.toml"
SHAPE = (24, 96, 96)
UNSEEN = slice(20, None)
"""Slices that the configuration neither trains on nor validates with."""

CELLS, BACKGROUND = 40, 1
LARGE = 100
LINKED = 0.5
"""Affinity from which two voxels are joined; the stored values 0 to 254 mean 0 to 1."""


def draw() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Draw bright cells between dark membranes, with ids from 2 on; membranes are background."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, SHAPE, (CELLS, 3))
    distances = np.stack([np.linalg.norm(np.indices(SHAPE).T - centre, axis=-1).T for centre in centres])
    ids = distances.argmin(axis=0) + BACKGROUND + 1
    ids[ndimage.maximum_filter(ids, 3) != ndimage.minimum_filter(ids, 3)] = BACKGROUND
    raw = ndimage.gaussian_filter(np.where(ids == BACKGROUND, 80.0, 150.0), 0.6) + rng.normal(0, 12, SHAPE)
    return raw.clip(0, 255).astype(np.uint8), ids.astype(np.uint16)


def joined(affinities: NDArray[np.uint8], offsets: list[list[int]]) -> NDArray[np.int64]:
    """Number the connected components of the linked voxels; a voxel that nothing is linked to stays 0."""
    numbers = np.arange(affinities[0].size).reshape(affinities[0].shape)
    ends = []
    for channel, offset in zip(affinities, offsets, strict=True):
        source = tuple(slice(max(0, -shift), min(0, -shift) or None) for shift in offset)  # affinities are stored there
        target = tuple(slice(max(0, shift), min(0, shift) or None) for shift in offset)
        linked = channel[source] >= LINKED * 254
        ends.append((numbers[source][linked], numbers[target][linked]))
    first, second = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(numbers.size, numbers.size))
    found = connected_components(graph, directed=False)[1]
    segments = np.where(np.bincount(found)[found] > 1, found + 1, 0)
    return segments.reshape(numbers.shape).astype(np.int64)


def main(folder: Path) -> None:
    """Draw and train, run the network over the whole volume, and compare what it stored with the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()
    raw, truth = draw()
    tifffile.imwrite(folder / "raw.tif", raw)
    tifffile.imwrite(folder / "ids.tif", truth)
    model = folder / "affinities.safetensors"
    model.unlink(missing_ok=True)
    os.environ["EMSEG_DATA"] = str(folder)  # where the configuration's data are
    with chdir(folder):  # where the model is written
        train(CONFIG)
    print(load_model(model).card["scores"])

    volume, output = folder / "raw.zarr", folder / "affinities.emseg.zarr"
    ingest(folder / "raw.tif", volume, voxel_size=(8, 8, 8), overwrite=True)
    report = segment(volume, output, model=model, workers=0, overwrite=True)  # in this process; None for all cores
    if report.exit_code:
        sys.exit(report.exit_code)

    result = open_output(output)
    stored = result.read("affinities", result.region)  # (offset, z, y, x) uint8
    offsets = [list(offset) for offset in load_model(model).spec.heads[0].offsets]
    segments = joined(stored, offsets)
    cells = np.where(truth == BACKGROUND, 0, truth)
    found = scores(overlap(segments[UNSEEN], cells[UNSEEN]))
    large = np.count_nonzero(np.bincount(segments.ravel())[1:] >= LARGE)
    print(f"{large} segments of {LARGE} voxels or more, {len(np.unique(cells)) - 1} cells in truth")
    print(f"adapted Rand error {found.adapted_rand_error:.3f} on slices that it was not trained on")
    verdict = verify(output, boxes=2)
    print(verdict)
    sys.exit(verdict.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/affinities"))
