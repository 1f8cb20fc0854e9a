"""What safety costs on a run without faults: CPU seconds of lease, ledger, record and checks, as a share of the run's.

    python tests/benchmarks/bench_overhead.py [FOLDER]

One process does all the work, so nothing escapes the count: the bundled network on the bundled sample, put beside itself
64 times, some minutes of arithmetic. FOLDER is a temporary one by default; it is removed at the end.
"""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from emseg.store import files, lease, ledger, staging
from emseg_workflows import bench
from emseg_workflows.flows import outputs, record, segment, settle

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
COPIES = 64

spent: defaultdict[str, float] = defaultdict(float)
"""CPU seconds of the calling threads by the part that they are spent for."""


def count(part: str, owner: Any, *names: str) -> None:
    """Add up the CPU seconds inside these functions under the name of a part."""
    for name in names:
        setattr(owner, name, counted(part, getattr(owner, name)))


def counted(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which adds up its CPU seconds."""

    @functools.wraps(function)
    def run(*arguments: Any, **more: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*arguments, **more)
        finally:
            spent[part] += time.thread_time() - start

    return run


def main(folder: Path) -> None:
    """Print the table."""
    sample = tifffile.imread(SAMPLE)
    values = np.concatenate([sample[:: 1 if copy % 2 else -1] for copy in range(COPIES)])
    array = zarr.create_array(folder / "volume.zarr", shape=values.shape, chunks=(64,) * 3, dtype=values.dtype)
    array[...] = values
    count("lease", lease.Lease, "_put", "_stop")
    count("lease", lease.Token, "check")
    count("lease", outputs, "lease_output")
    count("ledger", ledger.Output, "done_units", "_check")
    count("ledger", files, "make_folders")
    count("ledger", staging, "sync_folder")
    count("ledger", outputs, "settle_output")
    count("record", record.RunRecord, "__init__", "tell", "end")
    count("checks: canary", bench, "_numerics")
    count("checks: precision", bench, "accuracy_of")
    count("checks: recipe", segment, "check_same", "check_chunks", "check_memory", "check_space")
    count("checks: recipe", settle, "digest_of")
    before = time.process_time()
    report = segment.segment(folder / "volume.zarr", workers=0)
    total = time.process_time() - before
    assert report.exit_code == 0
    print(f"{report.blocks} blocks in {report.seconds:.0f} s, {total:.1f} CPU seconds")
    for part, seconds in sorted(spent.items()):
        print(f"{part:<28}{seconds:8.3f} s {100 * seconds / total:7.3f} %")
    print(f"{'together':<28}{sum(spent.values()):8.3f} s {100 * sum(spent.values()) / total:7.3f} %")


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="emseg-overhead-"))
    place.mkdir(exist_ok=True)
    try:
        main(place)
    finally:
        shutil.rmtree(place)
