"""A run on a Dask cluster that is there already, beside whatever else it does.

python examples/existing_dask_cluster.py FOLDER

Here it is one on this machine. Of yours, in Kubernetes, on SLURM or started by `dask scheduler`, you have a client or the
address of its scheduler: `client=Client(address)` is all that changes, or on the command line `--scheduler ADDRESS`. emseg
must be installed where the workers are, and they must see volume and output under the same paths.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from distributed import Client, LocalCluster

from emseg_workflows import ingest, segment
from emseg_workflows.events import BlockEnded, Event

SAMPLE = Path(__file__).parent / "fib25-sample" / "raw.tif"


def main(folder: Path, client: Client) -> None:
    """Segment the sample on the workers of a cluster, and leave it as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, output = folder / "sample.zarr", folder / "sample.emseg.zarr"
    ingest(SAMPLE, volume, voxel_size=(10, 10, 10), overwrite=True)
    blocks: Counter[str] = Counter()

    def watch(event: Event) -> None:
        """Called with each event of the run."""
        if isinstance(event, BlockEnded):
            blocks[event.outcome.worker] += 1

    report = segment(volume, output, client=client, overwrite=True, on_event=watch)  # `label` takes a client as well
    for worker, count in blocks.items():
        print(f"{count} blocks by {worker}")
    if report.exit_code:
        sys.exit(report.exit_code)
    print(f"{report.done} of {report.blocks} blocks in {output}")


if __name__ == "__main__":  # worker processes import this file
    at = {"security": True, "dashboard_address": "127.0.0.1:0"}  # TLS: else all users of this machine might run code in it
    with LocalCluster(n_workers=2, threads_per_worker=1, **at) as cluster, Client(cluster) as ours:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo/on-a-cluster"), ours)
        print(f"the cluster still works: {ours.submit(sum, (20, 22)).result()}")
