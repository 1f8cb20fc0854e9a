"""Run on an existing Dask cluster, which may do other work at the same time.

python examples/existing_dask_cluster.py FOLDER

The cluster of this example runs on this machine. For your own one, in Kubernetes, on SLURM or started by `dask scheduler`, pass
`client=Client(address)` with the address of its scheduler, or `--scheduler ADDRESS` on the command line. emseg must be
installed on the workers, and they must see the volume and the output under the same paths.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from distributed import Client, LocalCluster

from emseg import ingest, segment
from emseg.runs.events import BlockEnded, Event

SAMPLE = Path(__file__).parent / "fib25-sample" / "raw.tif"


def main(folder: Path, client: Client) -> None:
    """Segment the sample on the workers of a cluster, which keeps running."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, output = folder / "sample.zarr", folder / "sample.emseg.zarr"
    ingest(SAMPLE, volume, voxel_size=(10, 10, 10), overwrite=True)
    blocks: Counter[str] = Counter()

    def watch(event: Event) -> None:
        """Count the blocks of each worker; called with every event of the run."""
        if isinstance(event, BlockEnded):
            blocks[event.outcome.worker] += 1

    report = segment(volume, output, client=client, overwrite=True, on_event=watch)  # `label` takes a client as well
    for worker, count in blocks.items():
        print(f"{count} blocks by {worker}")
    if report.exit_code:
        sys.exit(report.exit_code)
    print(f"{report.done} of {report.blocks} blocks in {output}")


if __name__ == "__main__":  # worker processes import this file
    at = {
        "security": True,
        "dashboard_address": "127.0.0.1:0",
    }  # TLS: without it, any user of this machine could run code in the cluster
    with LocalCluster(n_workers=2, threads_per_worker=1, **at) as cluster, Client(cluster) as ours:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/on-a-cluster"), ours)
        print(f"the cluster still works: {ours.submit(sum, (20, 22)).result()}")
