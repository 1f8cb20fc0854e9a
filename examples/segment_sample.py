"""Segment the sample volume: from a TIFF stack to scored labels and a picture, as in `make demo`.

python examples/segment_sample.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import tifffile

from emseg import ingest, preview, segment
from emseg.cli.console import RunConsole
from emseg_core.metrics.membrane import count
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.truth import membrane_truth

SAMPLE = Path(__file__).parent / "fib25-sample"


def main(folder: Path) -> None:
    """Ingest the sample, segment it with two workers, score the labels, and draw them."""
    folder.mkdir(exist_ok=True)
    volume, output = folder / "sample.zarr", folder / "sample.emseg.zarr"
    ingest(SAMPLE / "raw.tif", volume, voxel_size=(10, 10, 10), overwrite=True)
    with RunConsole() as console:
        report = segment(volume, output, workers=2, overwrite=True, on_event=console)
    if report.exit_code:
        sys.exit(report.exit_code)

    stored, truth = open_output(output), membrane_truth(tifffile.imread(SAMPLE / "truth.tif"))
    score = count(stored.read_labels(stored.region), truth)
    picture = preview(output, folder / "sample.png")
    print(f"membrane F1 {score.f1:.3f} (precision {score.precision:.3f}, recall {score.recall:.3f}) over voxels")
    print(f"picture {picture}")


if __name__ == "__main__":  # worker processes import this file
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
