"""A detector of your own, without PyTorch: dark ridges by NumPy alone, run over a Zarr volume block by block.

python examples/own_predictor.py FOLDER

All that emseg needs of it is the protocol `emseg.ports.Predictor`: what it is like, and what it makes of tiles. That the result
is the same as of one pass over the whole volume is checked at the end.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from emseg.block import Bench
from emseg.canary import canary_of
from emseg.grid.layout import plan_volume
from emseg.grid.stitch import classify
from emseg.metrics.membrane import count
from emseg.normalise import survey
from emseg.recipe import Recipe
from emseg.serial import segment_blocks
from emseg.specs.contract import Contract
from emseg.specs.numerics import Numerics
from emseg.store.lease import Token, take_lease
from emseg.store.output import Form, create_output, open_output
from emseg.store.volume import open_volume
from emseg.truth import membrane_truth
from emseg_workflows import ingest, preview

SAMPLE = Path(__file__).parent / "fib25-sample"
FINE, COARSE, RADIUS = 1.0, 4.0, 12
"""Deviations of two Gaussians, and where both are cut off, in pixels."""
THRESHOLD = 0.35
"""How much darker than its surroundings a membrane is, in deviations of the volume's intensities."""


class DarkRidges:
    """Difference of Gaussians in the plane, as a valid convolution: what it gives is shorter than a tile by the radius."""

    spec = Contract(
        classes=("inside", "membrane"),
        planar=True,  # slice by slice
        context=(0, RADIUS, RADIUS),
        lattice=(1, 1, 1),  # nothing is pooled: it commutes with all shifts
        least=(1, 2 * RADIUS + 1, 2 * RADIUS + 1),
        crop=(0, 0, 0),  # nothing is padded
        activation="logits",
        local=True,
        parameters=0,
        flops_per_voxel=2 * 2 * 2 * (2 * RADIUS + 1),  # two Gaussians along two axes, a product and a sum for each weight
        bytes_per_voxel=6 * 4,
    )

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

    volume, predictor = open_volume(place), DarkRidges()
    normalisation, digest = survey(volume, "volume")
    plan = plan_volume(volume.spec, predictor.spec)
    recipe = Recipe(
        volume=volume.spec,
        volume_digest=digest,
        model_digest=sha256(Path(__file__).read_bytes()).hexdigest(),
        normalisation=normalisation,
        plan=plan,
        numerics=Numerics(f"numpy {np.__version__}", "cpu", "float32", 1, canary_of(predictor, plan.tile)),
        probabilities=False,
    )
    if not output.exists():
        attributes = {"recipe": recipe.to_json(), "fingerprint": recipe.fingerprint, "model": {}}
        create_output(output, Form(volume.spec, plan.region, plan.model.classes, plan.unit, plan.chunk, False, attributes))
    made = open_output(output)
    if made.attributes["fingerprint"] != recipe.fingerprint:
        sys.exit(f"{output} was begun with another detector or volume: remove it first")

    with take_lease(made.records, output).held() as lease:  # the right to write
        stored = open_output(output, Token(made.records, lease.run))
        left = [block for block in plan if not stored.is_done(block.write)]  # all, unless it was stopped before
        for outcome in segment_blocks(Bench(recipe, volume, predictor, stored, nullcontext()), left):
            if outcome.cause is not None:
                sys.exit(f"block {outcome.block}: {outcome.cause}")
    print(f"{len(left)} of {len(plan)} blocks computed, each of {plan.unit} voxels (z, y, x) in tiles of {plan.tile}")

    labels, raw = stored.read_labels(plan.region), volume.read(volume.spec.box)
    mirrored = [(context, context) for context in predictor.spec.context]
    whole = np.pad(normalisation.apply(raw, volume.spec.box), mirrored, mode="reflect")
    assert np.array_equal(labels, classify(predictor.predict(whole[None])[0]))
    print("the same as in one pass over the whole volume, to the last voxel")

    print(f"membrane F1 {count(labels, membrane_truth(tifffile.imread(SAMPLE / 'truth.tif'))).f1:.3f}")
    print(f"picture {preview(output, folder / 'ridges.png', volume=place)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/own-predictor"))
