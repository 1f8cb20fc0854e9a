"""Measure the speed-up of ingesting a stack with workers over a single process.

    python tests/benchmarks/bench_ingest.py [ROUNDS] [FOLDER]

The input has 1024 slices of 1024 x 1024 voxels, the same EM as in `bench_io.py`, as a folder of PNG files and as one of zipped
TIFF files. Each round runs `emseg ingest` with `--workers` 0 and 2 in turn. Each run is a separate process, timed from its
start to its end, including the start of Dask. The script fails if the volumes of one folder differ in a byte.

ROUNDS is 3 by default. FOLDER, by default a temporary one, needs 4 GB and is removed at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter

import tifffile
from bench_io import voxels
from PIL import Image

WORKERS = (0, 2)


def main(rounds: int, folder: Path) -> None:
    """Run the benchmark and print a table."""
    sources = {"PNG": folder / "png", "zipped TIFF": folder / "tiff"}
    for source in sources.values():
        source.mkdir()
    values = voxels()
    for number in range(4 * len(values)):
        pixels = values[number % len(values)]
        Image.fromarray(pixels).save(sources["PNG"] / f"{number:04}.png")
        tifffile.imwrite(sources["zipped TIFF"] / f"{number:04}.tif", pixels, compression="zlib", photometric="minisblack")
    seconds, digests = defaultdict(list), defaultdict(set)
    for _ in range(rounds):
        for name, source in sources.items():
            for workers in WORKERS:
                seconds[name, workers].append(ingested(source, folder / "v.zarr", workers))
                digests[name].add(digest(folder / "v.zarr"))
                shutil.rmtree(folder / "v.zarr")
    if any(len(found) > 1 for found in digests.values()):
        sys.exit("the volumes differ by the number of workers")
    print(f"{'':<14}" + "".join(f"{f'{workers} workers':>20}" for workers in WORKERS) + "   s, median (of all)")
    for name in sources:
        print(f"{name:<14}" + "".join(f"{summary(seconds[name, workers]):>20}" for workers in WORKERS))


def ingested(source: Path, volume: Path, workers: int) -> float:
    """Ingest a stack and return the seconds it took."""
    start = perf_counter()
    words = [sys.executable, "-m", "emseg", "ingest", str(source), str(volume), "--workers", str(workers)]
    subprocess.run(words, check=True, capture_output=True)
    return perf_counter() - start


def digest(folder: Path) -> str:
    """Return the SHA-256 of all files in a folder and their names."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{file.relative_to(folder)} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def summary(seconds: list[float]) -> str:
    """Format the median, the minimum and the maximum."""
    return f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as place:
        main(number, Path(place))
