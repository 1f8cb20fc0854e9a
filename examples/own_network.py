"""Use your own network: write it in PyTorch, train it on a few slices, export it, and run it over a volume without seams.

python examples/own_network.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

from emseg import ingest, segment, verify
from emseg_core.metrics.membrane import count
from emseg_core.model.model_place import describe
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.truth import IGNORE, membrane_truth

SAMPLE = Path(__file__).parent / "fib25-sample"
TRAINED = slice(0, 20)
"""Slices for training; the others are for the score."""
STEPS, CROPS, EDGE = 50, 4, 80
SETTINGS = """\
activation = "logits"
classes = ["inside", "membrane"]
normalise = "volume"
"""


class OwnNetwork(nn.Module):
    """Padded convolutions at two scales with batch normalisation: images ``(n, 1, y, x)`` in, two logits per pixel out."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fine = nn.Sequential(*convolved(1, width), *convolved(width, width))
        self.coarse = nn.Sequential(nn.MaxPool2d(2), *convolved(width, 2 * width), nn.ConvTranspose2d(2 * width, width, 2, 2))
        self.last = nn.Sequential(*convolved(2 * width, width), nn.Conv2d(width, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits ``(n, 2, y, x)`` of images ``(n, 1, y, x)``."""
        fine = self.fine(image)
        logits: Tensor = self.last(torch.cat([fine, self.coarse(fine)], dim=1))
        return logits


def convolved(before: int, after: int) -> list[nn.Module]:
    """Make a padded convolution, batch normalisation and ReLU."""
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]


def train(network: nn.Module, raw: Tensor, truth: Tensor) -> None:
    """Train for a few seconds, in place of hours, on normalised images and their classes, both ``(z, y, x)``."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]), ignore_index=IGNORE)  # membrane is rarer than inside
    depth, height, width = raw.shape
    for _ in range(STEPS):
        corners = rng.integers((0, 0, 0), (depth, height - EDGE, width - EDGE), (CROPS, 3)).tolist()
        images, classes = (
            torch.stack([values[z, y : y + EDGE, x : x + EDGE] for z, y, x in corners]) for values in (raw, truth)
        )
        optimiser.zero_grad()
        loss(network(images[:, None]), classes).backward()
        optimiser.step()


def main(folder: Path) -> None:
    """Train and export the network, print what emseg measured of it, run it, and check the result."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, model, output = (folder / name for name in ("sample.zarr", "own.pt2", "own.emseg.zarr"))
    ingest(SAMPLE / "raw.tif", volume, voxel_size=(10, 10, 10), overwrite=True)

    torch.manual_seed(0)
    network = OwnNetwork()
    raw, truth = tifffile.imread(SAMPLE / "raw.tif").astype(np.float32), membrane_truth(tifffile.imread(SAMPLE / "truth.tif"))
    raw = (raw - raw.mean()) / raw.std()  # as `normalise = "volume"` does in a run
    train(network, torch.from_numpy(raw[TRAINED]), torch.from_numpy(truth[TRAINED].astype(np.int64)))

    network.eval()  # otherwise batch normalisation would use the statistics of each tile, and labels would depend on tiles
    lengths = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}  # images of any y and x
    torch.export.save(torch.export.export(network, (torch.zeros(1, 1, 64, 64),), dynamic_shapes=(lengths,)), model)
    model.with_name(f"{model.name}.toml").write_text(SETTINGS)  # what emseg cannot measure

    found, _ = describe(model)
    print(f"context {found.context} and lattice {found.lattice} voxels (z, y, x), classes {', '.join(found.classes)}")
    for topic, remark in found.remarks():
        print(f"{topic}: {remark}")

    report = segment(volume, output, model=model, workers=0, overwrite=True)  # in this process; None for all cores
    if report.exit_code:
        sys.exit(report.exit_code)
    stored, unseen = open_output(output), slice(TRAINED.stop, None)
    score = count(stored.read_labels(stored.region)[unseen], truth[unseen])
    print(f"membrane F1 {score.f1:.3f} on slices that it was not trained on")
    verdict = verify(output, boxes=2)
    print(verdict)
    sys.exit(verdict.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/own-network"))
