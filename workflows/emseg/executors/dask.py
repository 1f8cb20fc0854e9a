"""Run blocks on a Dask cluster: one task per block on a worker of our choice, and no voxel ever in the scheduler.

`Dispatch` decides which worker gets which block. Each attempt is a task of its own that may run on that worker alone, so
Dask neither moves blocks nor suspects them when a worker dies: its ``allowed-failures`` would blame every block that a
dead worker held.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import uuid4

from distributed import Client, Future, KilledWorker, as_completed

from emseg.runs.dispatch import RESUME_HINT, Attempt, Dispatch, Policy
from emseg.runs.events import BlocksInProgress, Noticed, Progressed, StopRequested, WorkerJoined, WorkerLeft
from emseg.runs.stop import Stop, StoppedError
from emseg.slurm.job import SlurmJob
from emseg.tasks.port import Work
from emseg.tasks.segmenting import keep_small_buffers
from emseg.tasks.trial import Choice, Trial, try_out, warm_up
from emseg_core.errors import Fault, InputError
from emseg_core.grid.blocks import Block
from emseg_core.model.device import Device, Gpu, gpu_overload, process_gpu
from emseg_core.outcome import Outcome
from emseg_core.printable import guard_streams
from emseg_core.specs.numerics import Numerics

FIRST_WORKER_SECONDS = 60
"""Time that a cluster has to show its first worker."""
MAX_SECONDS_WITHOUT_WORKERS = 600.0
"""Time without any worker after which a run ends."""
RECONNECT_SECONDS = 120.0
"""Time that a lost scheduler has to come back."""
RESTART_SECONDS = 30.0
"""Time that a worker process has to restart."""
RESERVED_SECONDS = 15.0
"""Time before the end of its job at which a worker must have finished its blocks."""
RELEASE_SECONDS = 10.0
"""Time that workers have to release what a finished run holds."""
TICK_SECONDS = 0.2
"""Interval between checks whether the run is asked to stop."""
POLL_SECONDS = 0.5
"""Interval between checks which workers are there."""

_contexts: dict[str, tuple[Callable[[Block], Outcome], ExitStack]] = {}
"""In a worker process: what each run does to a block, and all that it holds open; its threads take turns at the predictor."""
_ended_runs: set[str] = set()
"""In a worker process: runs that have ended, perhaps while their model was being loaded."""
_contexts_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class PreparedWorker:
    """A worker that has loaded the model and opened its arrays."""

    numerics: Numerics | None
    device: str
    """UUID of its GPU; empty if it has none."""
    seconds_left: float | None
    """Seconds until its SLURM job ends; None if it is in no job, or in one without an end."""


def prepare_worker(run: str, work: Work) -> PreparedWorker:
    """Load the model and open the arrays of a run; the first task on each worker.

    Parameters
    ----------
    run
        Name of the run.
    work
        The work on each block.

    Returns
    -------
    PreparedWorker
        How this worker computes, and for how long it lives.
    """
    keep_small_buffers()
    if parent_process() is not None:  # the user's own process may be a worker, too: leave its streams alone
        guard_streams()
    held = ExitStack()
    process, numerics = held.enter_context(work.opened(threading.Lock()))
    with _contexts_lock:
        if run in _ended_runs:
            held.close()
        else:
            _contexts[run] = process, held
    gpu = process_gpu(work.device)
    allocation = SlurmJob.here()
    return PreparedWorker(numerics, gpu.uuid if gpu else "", allocation.seconds_left() if allocation else None)


def process_block(run: str, block: Block) -> Outcome:
    """Process one block on a worker; the dashboard shows the task under the name of the work.

    Parameters
    ----------
    run
        Name of the run.
    block
        The block.

    Returns
    -------
    Outcome
        How the block ended.
    """
    process, _ = _contexts[run]
    return process(block)


def release_run(run: str) -> None:
    """Release a run's model and arrays.

    Parameters
    ----------
    run
        Name of the run.
    """
    with _contexts_lock:
        _ended_runs.add(run)
        _, held = _contexts.pop(run, (None, ExitStack()))
    held.close()


class WorkerSupply(Protocol):
    """Starts workers, also in place of others; they may have to queue for a long time."""

    replaces_workers: bool
    """Whether a worker that leaves is replaced by one with more time."""

    @property
    def problem(self) -> str:
        """Reason why no more workers can be expected; empty while they can."""

    def stop_growing(self) -> None:
        """Start no more workers."""

    def resize(self, useful: int, idle: set[str]) -> set[str]:
        """Adapt the number of workers to the number that is useful.

        Parameters
        ----------
        useful
            Number of workers that have something to do.
        idle
            Addresses of the workers without a block.

        Returns
        -------
        set of str
            Addresses of idle workers that are no longer needed.
        """


class DaskExecutor:
    """Runs blocks on the workers of a Dask client."""

    def __init__(self, client: Client, stop: Stop, supply: WorkerSupply | None = None) -> None:
        """Wait for the first worker: with a `supply` as long as that takes.

        Raises
        ------
        InputError
            If no worker comes.
        StoppedError
            If the run is stopped meanwhile.
        """
        self._client = client
        self._stop = stop
        self._supply = supply
        self._address: str = client.scheduler_info()["address"]
        self._own = False
        end = monotonic() + FIRST_WORKER_SECONDS
        while not client.nthreads():
            if stop.asked:
                raise StoppedError(stop.number)
            if supply is not None and supply.problem:
                raise InputError(supply.problem)
            if supply is None and monotonic() > end:
                raise InputError(f"the Dask cluster {client} has no worker after {FIRST_WORKER_SECONDS} s: start workers first")
            sleep(TICK_SECONDS)

    @property
    def client(self) -> Client:
        """The client in use; a new one after the scheduler was lost."""
        return self._client

    @property
    def workers(self) -> int:
        """Current number of worker processes."""
        return len(self._client.nthreads())

    @property
    def dashboard(self) -> str | None:
        """Address of the Dask dashboard."""
        address: str | None = self._client.dashboard_link
        return address

    @property
    def memory(self) -> int | None:
        """Bytes of memory that the smallest worker may use; None if workers have no limit."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return min((int(limit) for worker in workers if (limit := worker["memory_limit"])), default=None)

    def gpus(self, device: Device) -> dict[str, Gpu]:
        """Return the GPU of each worker that has one.

        Parameters
        ----------
        device
            Device of the run.

        Returns
        -------
        dict of str to Gpu
            GPUs by address of the worker.
        """
        asked = {
            worker: self._client.submit(process_gpu, device, pure=False, workers=[worker], allow_other_workers=False)
            for worker in self._client.nthreads()
        }
        while not all(asked[worker].done() for worker in asked.keys() & self._client.nthreads().keys()):
            sleep(TICK_SECONDS)  # only while the worker lives: no other may answer for it
        return {worker: gpu for worker, future in asked.items() if future.done() and (gpu := future.result()) is not None}

    def try_out(self, trial: Trial) -> Choice:
        """Find out how predictors compute on one of the workers.

        Parameters
        ----------
        trial
            The trial.

        Returns
        -------
        Choice
            Numerics, speed and accuracy.

        Raises
        ------
        StoppedError
            If the run is stopped meanwhile.
        """
        first, *others = self._client.nthreads()
        asked = self._client.submit(try_out, trial, pure=False, workers=[first], allow_other_workers=True)
        meanwhile = [self._client.submit(warm_up, trial, pure=False, workers=[other]) for other in others]
        while not asked.done():
            if self._stop.asked:
                raise StoppedError(self._stop.number)
            sleep(POLL_SECONDS / 10)
        self._client.cancel(meanwhile)
        choice: Choice = asked.result()
        return choice

    def run(self, work: Work, sequences: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """Run blocks until each has ended, the run is stopped, or the cluster is lost for good.

        Parameters
        ----------
        work
            The work to do on each block.
        sequences
            Sequences of blocks that read the same chunks; each holds at least one block.
        policy
            Limits for slow and failing blocks.
        stop
            Asks for the end of the run.

        Yields
        ------
        Progressed
            The event.

        Raises
        ------
        InputError
            If no worker can take part from the beginning.
        """
        dispatch = Dispatch(sequences, policy)
        session = Session(self._client, work, dispatch, self._supply)
        try:
            while not dispatch.finished and not stop.over:
                if stop.asked and not dispatch.stopped:
                    dispatch.stop()
                    yield StopRequested(len(dispatch.in_progress), stop.seconds_left, stop.number)
                    if self._supply is not None:
                        self._supply.stop_growing()
                try:
                    yield from session.step()
                except OSError as error:
                    yield Noticed(
                        f"the Dask scheduler was lost ({_one_line(error)}): waiting up to {RECONNECT_SECONDS:.0f} s for it"
                    )
                    session.abandon()
                    if not self._reconnect(stop):
                        yield Noticed(f"the Dask scheduler did not come back: {RESUME_HINT}")
                        return
                    session = Session(self._client, work, dispatch, self._supply)
                if session.without_workers:
                    why = self._supply.problem if self._supply is not None else "no worker is left, and no new one has joined"
                    yield Noticed(f"{why}: {RESUME_HINT}")
                    return
            if dispatch.outage:
                yield Noticed(f"{dispatch.outage}: {RESUME_HINT}")
        finally:
            session.close()
            if self._own:
                with suppress(Exception, asyncio.CancelledError):  # everything is done by then
                    self._client.close()

    def _reconnect(self, stop: Stop) -> bool:
        """Connect to the old scheduler's address as soon as something answers there; return whether that succeeded."""
        address, security, end = self._address, self._client.security, monotonic() + RECONNECT_SECONDS
        while monotonic() < end and not stop.asked:
            try:
                client = Client(address, timeout="5s", security=security, set_as_default=False)
            except (OSError, TimeoutError):
                sleep(1)
                continue
            if self._own:
                with suppress(Exception, asyncio.CancelledError):  # its scheduler is gone
                    self._client.close()
            self._client, self._own = client, True
            return True
        return False


class Session:
    """The tasks of one run on one scheduler, for as long as that lives."""

    def __init__(self, client: Client, work: Work, dispatch: Dispatch, supply: WorkerSupply | None = None) -> None:
        self._client = client
        self._supply = supply
        self._work = work
        self._dispatch = dispatch
        self._run = f"emseg-{uuid4().hex[:12]}"
        self._ended = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._attempts: dict[str, Attempt] = {}
        self._futures: dict[str, Future[Any]] = {}
        self._preparing: dict[str, str] = {}
        self._prepared_by: dict[str, float] = {}
        self._rejected: dict[str, str] = {}
        self._devices: dict[str, str] = {}
        self._polled = -POLL_SECONDS
        self._seen = monotonic()
        self._any_joined = False

    @property
    def without_workers(self) -> bool:
        """Whether there are no workers and none can be expected."""
        if self._supply is not None:
            return bool(self._supply.problem) and not self._client.nthreads()
        return monotonic() > self._seen + MAX_SECONDS_WITHOUT_WORKERS

    def step(self) -> Iterator[Progressed]:
        """Advance the run by about one `TICK_SECONDS`.

        Yields
        ------
        Progressed
            The event.

        Raises
        ------
        OSError
            If the scheduler is lost.
        InputError
            If no worker can take part from the beginning.
        """
        if self._client.status != "running":
            raise OSError(f"the client is {self._client.status}")
        if monotonic() > self._polled + POLL_SECONDS:
            yield from self._poll()
            self._polled = monotonic()
        for attempt in self._dispatch.assign(monotonic()):
            key = f"{self._work.name}-{self._run}-{attempt.block.index}-{attempt.number}"
            self._attempts[key] = attempt
            self._submit(key, attempt.worker, process_block, self._run, attempt.block)
        for future, result in self._wait():
            yield from self._receive(future, result)
        yield self._blocks_in_progress()

    def abandon(self) -> None:
        """Return all blocks in progress to the queue, without counting the loss against them."""
        for worker in self._dispatch.workers:
            self._dispatch.leave(worker, monotonic(), blame=False)
        self._attempts.clear()
        self._preparing.clear()

    def close(self) -> None:
        """Cancel the remaining tasks, and release the run on all workers."""
        self._ended.clear()
        with suppress(Exception, asyncio.CancelledError):  # a lost cluster has nothing to release
            if self._client.status == "running":
                for future in self._futures.values():
                    future.cancel()
                # `Client.run` would wait forever for a worker that hangs
                self._client.sync(
                    self._client._run, release_run, self._run, on_error="ignore", callback_timeout=RELEASE_SECONDS
                )
        self._futures.clear()

    def _submit(self, key: str, worker: str, *task: Any) -> None:
        """Submit a task that may run on one worker only."""
        future = self._client.submit(*task, key=key, pure=False, workers=[worker], allow_other_workers=False)
        self._futures[key] = future
        self._ended.add(future)

    def _poll(self) -> Iterator[Progressed]:
        """Handle workers that joined, left or hang."""
        threads: dict[str, int] = self._client.nthreads()
        self._rejected = {worker: cause for worker, cause in self._rejected.items() if worker in threads}
        if set(threads) - set(self._rejected):
            self._seen = monotonic()
        for worker in (self._dispatch.workers | set(self._preparing.values())) - set(threads):
            yield from self._worker_lost(worker, "it died, was stopped, or cannot be reached")
        for worker in set(threads) - self._dispatch.workers - set(self._preparing.values()) - set(self._rejected):
            key = f"prepare-{self._run}-{uuid4().hex[:8]}"
            self._preparing[key] = worker
            self._prepared_by[worker] = monotonic() + self._dispatch.policy.block_timeout
            self._submit(key, worker, prepare_worker, self._run, self._work)
        for worker in [w for w in self._preparing.values() if monotonic() > self._prepared_by[w]]:
            self._forget(worker)
            yield WorkerLeft(worker, "it did not become ready")
            self._restart(worker)
        for worker in self._dispatch.overdue(monotonic()):
            events = self._dispatch.hung(worker, monotonic())
            self._forget(worker)
            yield WorkerLeft(worker, "a block ran too long on it")
            yield from events
            self._restart(worker)
        if self._supply is not None and not self._dispatch.stopped:
            if self._supply.replaces_workers:  # workers with more time take their places
                yield from self._retire(self._dispatch.expiring(monotonic()), "its job is about to end")
            if not self._dispatch.policy.keep_idle_workers and (useful := self._dispatch.useful) is not None:
                yield from self._retire(self._supply.resize(useful, self._dispatch.idle), "it is no longer needed")

    def _retire(self, workers: set[str], cause: str) -> Iterator[Progressed]:
        """Close idle workers."""
        for worker in workers:
            self._dispatch.leave(worker, monotonic(), blame=False)
            self._forget(worker)
            self._rejected[worker] = cause
            yield WorkerLeft(worker, cause)
            self._client.retire_workers([worker], close_workers=True, remove=True)

    def _blocks_in_progress(self) -> BlocksInProgress:
        """Describe the blocks that are running."""
        running = [(attempt.since, attempt) for attempt in self._dispatch.in_progress if attempt.since is not None]
        since, oldest = min(running, key=lambda pair: pair[0], default=(monotonic(), None))
        blocks = tuple(attempt.block.index for _, attempt in running)
        return BlocksInProgress(blocks, oldest.worker if oldest else "", monotonic() - since)

    def _worker_lost(self, worker: str, cause: str) -> Iterator[Progressed]:
        """Handle the loss of a worker."""
        events = self._dispatch.leave(worker, monotonic())
        self._forget(worker)
        yield WorkerLeft(worker, cause)
        yield from events

    def _forget(self, worker: str) -> None:
        """Drop the tasks of a worker that no longer exists."""
        keys = [key for key, attempt in self._attempts.items() if attempt.worker == worker]
        keys += [key for key, preparing in self._preparing.items() if preparing == worker]
        for key in keys:
            self._attempts.pop(key, None)
            self._preparing.pop(key, None)
            self._futures.pop(key).cancel()

    def _restart(self, worker: str) -> None:
        """Restart a worker process; one that cannot be restarted gets no more blocks."""
        self._rejected[worker] = "it hangs"
        with suppress(ValueError, TimeoutError):  # without a nanny
            self._client.restart_workers([worker], timeout=RESTART_SECONDS, raise_for_error=False)
            self._rejected.pop(worker)

    def _wait(self) -> list[tuple[Future[Any], Any]]:
        """Return the tasks that have ended, after at most `TICK_SECONDS`."""
        with self._ended.thread_condition:
            if self._ended.queue.empty():
                self._ended.thread_condition.wait(TICK_SECONDS)
        return list(self._ended.next_batch(block=False))

    def _receive(self, future: Future[Any], result: Any) -> Iterator[Progressed]:
        """Handle a task that has ended."""
        key = str(future.key)
        self._futures.pop(key, None)
        if key in self._preparing:
            yield from self._prepared(self._preparing.pop(key), future, result)
        elif key in self._attempts:
            attempt = self._attempts.pop(key)
            outcome = result if future.status == "finished" else _lost(attempt.block, future)
            event, broken = self._dispatch.ended(attempt, outcome, monotonic())
            yield event
            if broken and attempt.worker in self._dispatch.workers:
                self._dispatch.leave(attempt.worker, monotonic(), blame=False)
                self._forget(attempt.worker)
                yield WorkerLeft(attempt.worker, "its device failed")
                self._restart(attempt.worker)

    def _prepared(self, worker: str, future: Future[Any], result: Any) -> Iterator[Progressed]:
        """Admit a worker that is ready, or reject one that cannot take part."""
        if future.status == "finished":
            numerics, device, left = result.numerics, result.device, result.seconds_left
            threads = self._client.nthreads()
            beside = {other: uuid for other, uuid in self._devices.items() if other in threads and uuid}
            if device and (crowded := gpu_overload({**beside, worker: device}, self._work.workers_per_gpu)):
                self._rejected[worker] = crowded
                yield WorkerLeft(worker, crowded)
                return
            self._any_joined = True
            self._devices[worker] = device
            now = monotonic()
            self._dispatch.join(worker, threads.get(worker, 1), now, None if left is None else now + left - RESERVED_SECONDS)
            yield WorkerJoined(worker, numerics, device)
            if (seconds := self._dispatch.block_seconds_if_too_long(worker, now)) is not None:
                yield Noticed(
                    f"{worker} has {left:.0f} s until its job ends, but a recent block took {seconds:.0f} s: give jobs more "
                    "time with --time"
                )
            return
        error = result if isinstance(result, Exception) else future.exception() if future.status == "error" else None
        if error is None or isinstance(error, KilledWorker):
            return  # the worker died, or the scheduler forgot the task: the next poll shows which
        self._rejected[worker] = _one_line(error)
        yield WorkerLeft(worker, self._rejected[worker])
        if not self._any_joined and not self._preparing:
            raise InputError(self._rejected[worker])


def _lost(block: Block, future: Future[Any]) -> Outcome:
    """Return the outcome of a block whose task ended without one."""
    error = future.exception() if future.status == "error" else CancelledError("the scheduler no longer knows the task")
    fault: Fault = "device" if isinstance(error, KilledWorker) else "store"
    return Outcome(block.index, "failed", block.write.voxels, cause=f"{type(error).__name__}: {_one_line(error)}", fault=fault)


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())
