"""Running blocks on a Dask cluster: one task per block, a bounded window of them, and never a voxel in the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from itertools import islice
from typing import cast
from uuid import uuid4

from distributed import Client, Future, Worker, WorkerPlugin, as_completed, get_worker

from emseg.block import Bench, segment_block
from emseg.errors import InputError
from emseg.grid.plan import Block
from emseg.outcome import Outcome
from emseg.specs.numerics import Numerics
from emseg_workflows.bench import Job, local_numerics, open_bench

WAIT_FOR_WORKERS = 60
"""Seconds that a cluster has to show its first worker."""
AHEAD = 2
"""Blocks that the scheduler knows for each thread of a worker: one in hand and one to come."""


class BenchPlugin(WorkerPlugin):
    """Holds one bench for each worker process: set up by its first block, released when the run ends."""

    idempotent = True

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self._job = job

    def setup(self, worker: Worker) -> None:  # noqa: ARG002  Dask's signature
        """Prepare for blocks; Dask calls this on each worker, also on one that joins later."""
        self._opening = threading.Lock()
        self._held = ExitStack()
        self._bench: Bench | None = None

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002  Dask's signature
        """Release the network and the open arrays."""
        self._bench = None
        self._held.close()

    def bench(self) -> Bench:
        """The bench of this process; its threads share it and take turns at the predictor."""
        with self._opening:
            if self._bench is None:
                self._bench = self._held.enter_context(open_bench(self._job, threading.Lock()))
            return self._bench


def segment(run: str, block: Block) -> Outcome:
    """The task of one block, on a worker; the function's name is what the dashboard shows."""
    plugin = cast("BenchPlugin", get_worker().plugins[run])
    return segment_block(plugin.bench(), block)


class DaskExecutor:
    """Runs blocks on the workers of a Dask client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        try:
            client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
        except TimeoutError as error:
            raise InputError(
                f"the Dask cluster {client} shows no worker within {WAIT_FOR_WORKERS} s: start some first"
            ) from error

    @property
    def workers(self) -> int:
        """Worker processes at this moment."""
        return len(self._client.nthreads())

    @property
    def dashboard(self) -> str | None:
        """Address of the Dask dashboard."""
        address: str | None = self._client.dashboard_link
        return address

    def numerics(self, threads: int) -> Numerics:
        """The numerics of a predictor with this many threads where the blocks will run."""
        numerics: Numerics = self._client.submit(local_numerics, threads, pure=False).result()
        return numerics

    def run(self, job: Job, blocks: Iterable[Block]) -> Generator[Outcome]:
        """The outcome of each block, in the order in which they end.

        Each future is let go of as soon as its outcome is here: a result that is still held when its worker leaves
        would be computed again.
        """
        run = f"emseg-{uuid4().hex[:12]}"
        self._client.register_plugin(BenchPlugin(run, job))
        waiting = iter(blocks)
        running: dict[str, Block] = {}
        ended = as_completed(loop=self._client.loop, with_results=True, raise_errors=False)  # not of the newest client
        try:
            self._fill(run, waiting, running, ended)
            for future, result in ended:
                block = running.pop(future.key)
                outcome = result if future.status == "finished" else _lost(block, future)
                del future, result
                yield outcome
                self._fill(run, waiting, running, ended)
        except OSError as error:  # the scheduler has gone; what was in hand may have been written or not
            cause = " ".join(f"the Dask scheduler was lost ({error}): run again to go on".split())
            for block in running.values():
                yield Outcome(block.index, "failed", block.write.voxels, cause=cause)
        finally:
            ended.clear()
            with suppress(OSError):  # a cluster that has gone has nothing left to release
                if self._client.status == "running":
                    self._client.unregister_worker_plugin(run)

    def _fill(self, run: str, waiting: Iterator[Block], running: dict[str, Block], ended: as_completed) -> None:
        """Hand out blocks until each worker thread has `AHEAD` of them; one at least, as workers may be on their way."""
        window = max(1, AHEAD * sum(self._client.nthreads().values()))
        for block in islice(waiting, max(0, window - len(running))):
            key = f"segment-{run}-{block.index}"
            running[key] = block
            ended.add(self._client.submit(segment, run, block, key=key, pure=False))


def _lost(block: Block, future: Future[Outcome]) -> Outcome:
    """The outcome of a block whose task ended without one: its bench could not be set up, or its workers died."""
    error = future.exception() if future.status == "error" else CancelledError("the scheduler does not know the task any more")
    return Outcome(block.index, "failed", block.write.voxels, cause=" ".join(f"{type(error).__name__}: {error}".split()))
