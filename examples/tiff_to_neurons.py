"""Segment neurons from a TIFF stack: membranes, an id for each neuron, their volumes, labels as TIFF, and a report.

python examples/tiff_to_neurons.py STACK.tif FOLDER --voxel-size 50 4 4

Without arguments it segments the bundled sample into the folder demo/neurons/. If it is interrupted, run the same command again
to resume.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import emseg
from emseg import export, ingest, label, segment
from emseg.cli.console import RunConsole

SAMPLE = Path(__file__).parent / "fib25-sample" / "raw.tif"
SAMPLE_VOXEL = (10.0, 10.0, 10.0)
LARGEST = 5


def main(stack: Path, folder: Path, voxel_size: tuple[float, float, float] | None, workers: int | None) -> None:
    """Run all steps in `folder`; `voxel_size` is (z, y, x) in nanometres, by default that of the TIFF."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, output = folder / f"{stack.stem}.zarr", folder / f"{stack.stem}.emseg.zarr"
    if not volume.exists():
        ingest(stack, volume, voxel_size=voxel_size)

    with RunConsole() as console:  # shows progress
        run = segment(volume, output, probabilities=True, workers=workers, on_event=console)
        if run.exit_code:  # the console has shown which blocks failed, and why
            sys.exit(run.exit_code)
        neurons = label(output, workers=workers, on_event=console)
    if neurons.exit_code:
        sys.exit(neurons.exit_code)

    print(f"{neurons.segments} segments, of which the {LARGEST} largest are:")
    for row in largest(neurons.table):
        centre = ", ".join(f"{float(row[f'centroid_{axis}']):.0f}" for axis in "zyx")
        cut = ", touches an edge of the volume" if row["touches_edge"] == "1" else ""
        print(f"  number {row['id']}: {size(row)}, centre at voxel ({centre}){cut}")
    print(f"table        {neurons.table}")
    print(f"labels       {export(output, folder / f'{stack.stem}-neurons.ome.tif', instances='instances', overwrite=True)}")
    print(f"report       {emseg.report(output)}")


def largest(table: Path) -> list[dict[str, str]]:
    """Return the rows of the table with the most voxels, the largest first."""
    with table.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["voxels"]), reverse=True)[:LARGEST]


def size(row: dict[str, str]) -> str:
    """Format the size of a segment, in voxels if the voxel size is unknown."""
    return f"{row['volume_um3']} cubic micrometres" if "volume_um3" in row else f"{row['voxels']} voxels"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", type=Path, nargs="?", default=SAMPLE, metavar="STACK.tif")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo/neurons"), metavar="FOLDER")
    parser.add_argument("--voxel-size", type=float, nargs=3, metavar=("Z", "Y", "X"), help="voxel size in nanometres")
    parser.add_argument("--workers", type=int, help="number of worker processes (default: one per core)")
    return parser.parse_args()


if __name__ == "__main__":  # worker processes import this file
    asked = arguments()
    main(asked.stack, asked.folder, asked.voxel_size or (SAMPLE_VOXEL if asked.stack == SAMPLE else None), asked.workers)
