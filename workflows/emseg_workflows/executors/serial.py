"""Running blocks in this process, one after another: the reference that Dask must equal."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from emseg.grid.plan import Block
from emseg.outcome import Outcome
from emseg.serial import segment_blocks
from emseg.specs.numerics import Numerics
from emseg_workflows.bench import Job, local_numerics, open_bench


class SerialExecutor:
    """Runs blocks in this process."""

    workers = 0
    dashboard = None

    def numerics(self, threads: int) -> Numerics:
        """The numerics of a predictor with this many threads where the blocks will run."""
        return local_numerics(threads)

    def run(self, job: Job, blocks: Iterable[Block]) -> Generator[Outcome]:
        """The outcome of each block, in order."""
        with open_bench(job) as bench:
            yield from segment_blocks(bench, blocks)
