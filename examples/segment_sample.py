"""From a TIFF stack to scored labels and a picture, on the sample volume: what `make demo` runs.

python examples/segment_sample.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import tifffile

from emseg.metrics.membrane import count
from emseg.store.output import open_output
from emseg.truth import membrane_truth
from emseg_workflows import ingest, preview, segment
from emseg_workflows.console import RunConsole

SAMPLE = Path(__file__).parent / "fib25-sample"


def main(folder: Path) -> None:
    """Ingest the sample, segment it with two workers, score it, draw it."""
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
    print(f"membrane F1 {score.f1:.3f} (precision {score.precision:.3f}, recall {score.recall:.3f}), voxel for voxel")
    print(f"picture {picture}")


if __name__ == "__main__":  # worker processes import this file
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
