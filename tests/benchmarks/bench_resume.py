"""Measure what a resumed run does before its first block: open an output with a million written units, and list them.

    python tests/benchmarks/bench_resume.py [EDGE] [FOLDER]

The output has EDGE (by default 100) write units along each axis, each in a separate file of 16 voxels. FOLDER, by default a
temporary one, needs 4 KiB per file and is removed at the end.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from emseg_core.box import Box
from emseg_core.specs.heads import classes_head
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.outputs.layout import OutputLayout
from emseg_core.store.outputs.lifecycle import create_output, open_output

UNIT = (1, 4, 4)


def make(path: Path, edge: int) -> None:
    """Make an output with all units written: the first one regularly, the others as copies of its file."""
    region = Box((0, 0, 0), (edge, 4 * edge, 4 * edge))
    create_output(
        path, OutputLayout(VolumeSpec(region.shape, "uint8", UNIT), region, (classes_head(("a", "b")),), UNIT, UNIT, False, {})
    )
    output = open_output(path)
    first = Box((0, 0, 0), UNIT)
    output.write(first, [np.zeros(UNIT, np.uint8)])
    root = path / "labels" / "classes" / "0" / "c"
    document = (root / "0" / "0" / "0").read_bytes()
    for z, y in np.ndindex(edge, edge):
        folder = root / str(z) / str(y)
        folder.mkdir(parents=True, exist_ok=True)
        for x in range(edge):
            (folder / str(x)).write_bytes(document)


def measure(path: Path) -> None:
    """Print the number of units found, the seconds to open and to list, and the peak memory in KiB before and after."""
    before, start = peak(), time.perf_counter()
    output = open_output(path)
    opened = time.perf_counter()
    done = output.done_units(tidy=True)
    print(done.sum(), opened - start, time.perf_counter() - opened, before, peak())


def peak() -> int:
    """Return the peak memory of this process so far, in KiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main(folder: Path, edge: int) -> None:
    """Make the output, and measure twice: the second time its folders are certainly in the page cache."""
    path = folder / "labels.zarr"
    start = time.perf_counter()
    make(path, edge)
    print(f"made {edge**3} units in {time.perf_counter() - start:.0f} s", flush=True)
    for _ in range(2):
        done = subprocess.run([sys.executable, __file__, "--measure", path], capture_output=True, text=True, check=True)
        found, opening, listing, before, after = map(float, done.stdout.split())
        assert found == edge**3, f"{found:.0f} of {edge**3} units were found"
        print(
            f"open {opening:.2f} s  list {listing:.2f} s  "
            f"peak {after / 1024:.0f} MiB, {(after - before) / 1024:.1f} MiB more than before",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]))
    else:
        place = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="emseg-resume-"))
        place.mkdir(exist_ok=True)
        try:
            main(place, int(sys.argv[1]) if len(sys.argv) > 1 else 100)
        finally:
            shutil.rmtree(place)
