"""Show that the peak memory of workers and driver does not grow with the volume: 1 GiB and 4 GiB, with two workers.

    python tests/benchmarks/bench_memory.py [FOLDER]

From either volume, each worker reads more than the 256 MiB of chunks that it keeps at most. The network has a single level of
width 1, since a real one would take hours on the larger volume. FOLDER, by default a temporary one, needs 6 GiB and is removed
at the end.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr

from emseg import segment
from emseg_core.model.file import save_model
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec

EDGE = 256
"""Length of each axis of a shard of 16 MiB, in voxels."""
SIZES = {"1 GiB": (4, 4, 4), "4 GiB": (4, 8, 8)}
"""Numbers of shards along (z, y, x)."""


def make_volume(path: Path, shards: tuple[int, int, int]) -> None:
    """Make a volume of noise within seconds: all its shards are hard links to one file."""
    array = zarr.create_array(
        path, shape=[n * EDGE for n in shards], chunks=(64,) * 3, shards=(EDGE,) * 3, dtype="uint8", dimension_names="zyx"
    )
    array[:EDGE, :EDGE, :EDGE] = np.random.default_rng(0).integers(0, 256, (EDGE,) * 3, np.uint8)
    first = path / "c" / "0" / "0" / "0"
    for place in np.ndindex(*shards):
        target = path.joinpath("c", *map(str, place))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target != first:
            target.hardlink_to(first)


def measure(volume: Path, model: Path) -> None:
    """Segment, and print the seconds and the peak bytes of worker and driver; runs in a separate process."""
    report = segment(volume, model=model, workers=2)
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(report.exit_code, report.seconds, report.worker_peak_bytes, driver)


def main(folder: Path) -> None:
    """Run the benchmark and print the table."""
    model = folder / "one-level.safetensors"
    save_model(model, UNet(ModelSpec.unet(width=1, depth=0, kernel=(3, 3, 3))), {"name": "one level"})
    peaks = []
    for name, shards in SIZES.items():
        volume = folder / f"{name.replace(' ', '')}.zarr"
        make_volume(volume, shards)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", volume, model], capture_output=True, text=True, check=True
        )
        code, seconds, worker, driver = map(float, done.stdout.split())
        assert code == 0, done.stderr
        print(f"{name:>8}  {seconds:6.0f} s  worker {worker / 2**20:5.0f} MiB  driver {driver / 2**20:5.0f} MiB", flush=True)
        peaks.append((worker, driver))
    (small_worker, small_driver), (large_worker, large_driver) = peaks
    print(f"   ratio            worker {large_worker / small_worker:9.3f}  driver {large_driver / small_driver:9.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="emseg-memory-"))
        place.mkdir(exist_ok=True)
        try:
            main(place)
        finally:
            shutil.rmtree(place)
