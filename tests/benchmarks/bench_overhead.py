"""Measure the cost of fault tolerance in a run without faults: CPU seconds for lease, output, record and checks.

    python tests/benchmarks/bench_overhead.py [FOLDER]

A single process does all the work, so that nothing is missed: the bundled network on 64 copies of the bundled sample, which
takes some minutes. FOLDER, by default a temporary one, is removed at the end.
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

from emseg.flows import segment
from emseg.flows.records import run_log
from emseg.flows.running import claim, draft
from emseg.tasks import segmenting, trial
from emseg_core.store.files import atomic_write, files, lease
from emseg_core.store.outputs import output

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
COPIES = 64

spent: defaultdict[str, float] = defaultdict(float)
"""CPU seconds of the calling threads, by purpose."""


def count(part: str, owner: Any, *names: str) -> None:
    """Add up the CPU seconds spent in these functions under the name of a purpose."""
    for name in names:
        setattr(owner, name, counted(part, getattr(owner, name)))


def counted(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its CPU seconds are counted."""

    @functools.wraps(function)
    def run(*arguments: Any, **more: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*arguments, **more)
        finally:
            spent[part] += time.thread_time() - start

    return run


def main(folder: Path) -> None:
    """Run the benchmark and print the table."""
    sample = tifffile.imread(SAMPLE)
    values = np.concatenate([sample[:: 1 if copy % 2 else -1] for copy in range(COPIES)])
    array = zarr.create_array(folder / "volume.zarr", shape=values.shape, chunks=(64,) * 3, dtype=values.dtype)
    array[...] = values
    count("lease", lease.Lease, "_put", "_stop")
    count("lease", lease.Token, "check")
    count("lease", claim, "lease_output")
    count("ledger", output.Output, "done_units", "_check")
    count("ledger", files, "make_folders")
    count("ledger", atomic_write, "sync_folder")
    count("ledger", claim, "tidy_output")
    count("record", run_log.RunRecord, "__init__", "add", "end")
    count("checks: canary", segmenting, "numerics_of")
    count("checks: precision", trial, "accuracy_of")
    count("checks: recipe", segment, "check_same", "check_chunks", "check_memory", "check_space")
    count("checks: recipe", draft, "digest_of")
    before = time.process_time()
    report = segment.segment(folder / "volume.zarr", workers=0)
    total = time.process_time() - before
    assert report.exit_code == 0
    print(f"{report.blocks} blocks in {report.seconds:.0f} s, {total:.1f} CPU seconds")
    for part, seconds in sorted(spent.items()):
        print(f"{part:<28}{seconds:8.3f} s {100 * seconds / total:7.3f} %")
    print(f"{'total':<28}{sum(spent.values()):8.3f} s {100 * sum(spent.values()) / total:7.3f} %")


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="emseg-overhead-"))
    place.mkdir(exist_ok=True)
    try:
        main(place)
    finally:
        shutil.rmtree(place)
