"""Running blocks on a Dask cluster: one task per block on a worker of our choice, and never a voxel in the scheduler.

`Dispatch` decides which worker gets which block. Each try of a block is a task of its own that may run on that worker
alone, so Dask neither moves blocks about nor counts them suspect when a worker dies: its ``allowed-failures`` would
blame every block that a dead worker held.
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

from emseg.errors import Fault, InputError
from emseg.grid.blocks import Block
from emseg.model.device import Device, Gpu, crowding, own_gpu
from emseg.outcome import Outcome
from emseg.printable import guard_streams
from emseg.specs.numerics import Numerics
from emseg_workflows.bench import Choice, Trial, Work, keep_small_buffers, try_out
from emseg_workflows.dispatch import Attempt, Dispatch, Policy
from emseg_workflows.events import InHand, Noticed, Progressed, WorkerJoined, WorkerLeft
from emseg_workflows.slurm_job import SlurmJob
from emseg_workflows.stop import Stop, StoppedError

WAIT_FOR_WORKERS = 60
"""Seconds that a cluster has to show its first worker."""
PATIENCE = 600.0
"""Seconds without any worker after which a run ends."""
RECONNECT = 120.0
"""Seconds that a lost scheduler has to come back."""
RESTART = 30.0
"""Seconds that a worker process has to start anew."""
FAREWELL = 15.0
"""Seconds before the end of its job at which a worker must have nothing in hand."""
RELEASE = 10.0
"""Seconds that workers have to let go of a run that has ended."""
TICK = 0.2
"""Seconds between two looks at the wish to stop."""
POLL = 0.5
"""Seconds between two looks at who is there."""

_benches: dict[str, tuple[Callable[[Block], Outcome], ExitStack]] = {}
"""In a worker process: what each run does to a block, with all that it holds open; its threads take turns at the predictor."""
_over: set[str] = set()
"""In a worker process: runs that have ended, perhaps while their bench was being opened."""
_changing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker whose bench stands."""

    numerics: Numerics | None
    device: str
    """UUID of its GPU, if it has one."""
    seconds_left: float | None
    """Until its SLURM job ends; None if it is in none, or that has no end."""


def prepare(run: str, work: Work) -> Ready:
    """How this worker computes for a run, once its bench stands; the first task on each worker."""
    keep_small_buffers()
    if parent_process() is not None:  # not in a process of the user's, which may be a worker as well
        guard_streams()
    held = ExitStack()
    act, numerics = held.enter_context(work.opened(threading.Lock()))
    with _changing:
        if run in _over:
            held.close()
        else:
            _benches[run] = act, held
    gpu = own_gpu(work.device)
    allocation = SlurmJob.here()
    return Ready(numerics, gpu.uuid if gpu else "", allocation.seconds_left() if allocation else None)


def act(run: str, block: Block) -> Outcome:
    """The task of one block, on a worker; the dashboard shows it under the name of the work."""
    do, _ = _benches[run]
    return do(block)


def release(run: str) -> None:
    """Let go of a run's network and open arrays."""
    with _changing:
        _over.add(run)
        _, held = _benches.pop(run, (None, ExitStack()))
    held.close()


class Supply(Protocol):
    """Where workers come from when others have gone; they may have to queue for a long time."""

    lasting: bool
    """Whether a worker that leaves is replaced by one with more time."""

    @property
    def problem(self) -> str:
        """Why no more are to be hoped for; empty while they are."""
        ...

    def stop_growing(self) -> None:
        """No more workers are wanted."""
        ...

    def resize(self, useful: int, idle: set[str]) -> set[str]:
        """The number of workers is fitted to how many are of use; which of the idle ones are no longer wanted."""
        ...


class DaskExecutor:
    """Runs blocks on the workers of a Dask client."""

    def __init__(self, client: Client, stop: Stop, supply: Supply | None = None) -> None:
        """Waits for the first worker; with a `supply` as long as that takes.

        Raises
        ------
        InputError
            If none comes.
        StoppedError
            If the run is stopped meanwhile.
        """
        self._client = client
        self._stop = stop
        self._supply = supply
        self._address: str = client.scheduler_info()["address"]
        self._own = False
        end = monotonic() + WAIT_FOR_WORKERS
        while not client.nthreads():
            if stop.asked:
                raise StoppedError(stop.number)
            if supply is not None and supply.problem:
                raise InputError(supply.problem)
            if supply is None and monotonic() > end:
                raise InputError(f"the Dask cluster {client} shows no worker within {WAIT_FOR_WORKERS} s: start some first")
            sleep(TICK)

    @property
    def client(self) -> Client:
        """The client in use; another one after the scheduler was lost."""
        return self._client

    @property
    def workers(self) -> int:
        """Worker processes at this moment."""
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
        """The GPU of each worker that has one."""
        asked = {
            worker: self._client.submit(own_gpu, device, pure=False, workers=[worker], allow_other_workers=False)
            for worker in self._client.nthreads()
        }
        while not all(asked[worker].done() for worker in asked.keys() & self._client.nthreads().keys()):
            sleep(TICK)  # no longer than the worker lives: nobody else may answer for it
        return {worker: gpu for worker, future in asked.items() if future.done() and (gpu := future.result()) is not None}

    def try_out(self, trial: Trial) -> Choice:
        """How predictors compute on one of the workers."""
        asked = self._client.submit(try_out, trial, pure=False)
        while not asked.done():
            if self._stop.asked:
                raise StoppedError(self._stop.number)
            sleep(POLL / 10)
        choice: Choice = asked.result()
        return choice

    def run(self, work: Work, strands: Iterator[Sequence[Block]], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """What happens until each block has ended, or the run is stopped, or the cluster has gone for good."""
        dispatch = Dispatch(strands, policy)
        session = Session(self._client, work, dispatch, self._supply)
        try:
            while not dispatch.finished and not stop.over:
                if stop.asked and not dispatch.stopped:
                    dispatch.stop()
                    if self._supply is not None:
                        self._supply.stop_growing()
                try:
                    yield from session.step()
                except OSError as error:
                    yield Noticed(f"the Dask scheduler was lost ({_one_line(error)}): waiting up to {RECONNECT:.0f} s for it")
                    session.abandon()
                    if not self._reconnect(stop):
                        yield Noticed("the Dask scheduler did not come back: what is written stays, run again to go on")
                        return
                    session = Session(self._client, work, dispatch, self._supply)
                if session.deserted:
                    why = self._supply.problem if self._supply is not None else "no worker is left, and none came"
                    yield Noticed(f"{why}: what is written stays, run again to go on")
                    return
            if dispatch.outage:
                yield Noticed(f"{dispatch.outage}: what is written stays, run again to go on")
        finally:
            session.close()
            if self._own:
                with suppress(Exception, asyncio.CancelledError):  # all is done by then
                    self._client.close()

    def _reconnect(self, stop: Stop) -> bool:
        """A new client of the old scheduler's address, as soon as something answers there."""
        address, security, end = self._address, self._client.security, monotonic() + RECONNECT
        while monotonic() < end and not stop.asked:
            try:
                client = Client(address, timeout="5s", security=security, set_as_default=False)
            except (OSError, TimeoutError):
                sleep(1)
                continue
            if self._own:
                with suppress(Exception, asyncio.CancelledError):  # its scheduler has gone
                    self._client.close()
            self._client, self._own = client, True
            return True
        return False


class Session:
    """The tasks of one run on one scheduler, as long as that lives."""

    def __init__(self, client: Client, work: Work, dispatch: Dispatch, supply: Supply | None = None) -> None:
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
        self._refused: dict[str, str] = {}
        self._devices: dict[str, str] = {}
        self._polled = -POLL
        self._seen = monotonic()
        self._begun = False

    @property
    def deserted(self) -> bool:
        """Whether there is no worker, and no hope for one."""
        if self._supply is not None:
            return bool(self._supply.problem) and not self._client.nthreads()
        return monotonic() > self._seen + PATIENCE

    def step(self) -> Iterator[Progressed]:
        """What happened in about one `TICK`.

        Raises
        ------
        OSError
            If the scheduler has gone.
        InputError
            If not one worker can take part from the beginning.
        """
        if self._client.status != "running":
            raise OSError(f"the client is {self._client.status}")
        if monotonic() > self._polled + POLL:
            yield from self._poll()
            self._polled = monotonic()
        for attempt in self._dispatch.assign(monotonic()):
            key = f"{self._work.name}-{self._run}-{attempt.block.index}-{attempt.number}"
            self._attempts[key] = attempt
            self._submit(key, attempt.worker, act, self._run, attempt.block)
        for future, result in self._wait():
            yield from self._receive(future, result)
        yield self._in_hand()

    def abandon(self) -> None:
        """Give all blocks in hand back, blaming nobody."""
        for worker in self._dispatch.workers:
            self._dispatch.leave(worker, monotonic(), blame=False)
        self._attempts.clear()
        self._preparing.clear()

    def close(self) -> None:
        """Cancel what is not wanted any more, and release the benches."""
        self._ended.clear()
        with suppress(Exception, asyncio.CancelledError):  # a cluster that has gone has nothing left to release
            if self._client.status == "running":
                for future in self._futures.values():
                    future.cancel()
                # `Client.run` would wait for ever for a worker that hangs
                self._client.sync(self._client._run, release, self._run, on_error="ignore", callback_timeout=RELEASE)
        self._futures.clear()

    def _submit(self, key: str, worker: str, *task: Any) -> None:
        future = self._client.submit(*task, key=key, pure=False, workers=[worker], allow_other_workers=False)
        self._futures[key] = future
        self._ended.add(future)

    def _poll(self) -> Iterator[Progressed]:
        """Notice workers that came, went, or hang."""
        threads: dict[str, int] = self._client.nthreads()
        self._refused = {worker: cause for worker, cause in self._refused.items() if worker in threads}
        if set(threads) - set(self._refused):
            self._seen = monotonic()
        for worker in (self._dispatch.workers | set(self._preparing.values())) - set(threads):
            yield from self._gone(worker, "it died, was stopped, or cannot be reached")
        for worker in set(threads) - self._dispatch.workers - set(self._preparing.values()) - set(self._refused):
            key = f"prepare-{self._run}-{uuid4().hex[:8]}"
            self._preparing[key] = worker
            self._prepared_by[worker] = monotonic() + self._dispatch.policy.block_timeout
            self._submit(key, worker, prepare, self._run, self._work)
        for worker in [w for w in self._preparing.values() if monotonic() > self._prepared_by[w]]:
            self._forget(worker)
            yield WorkerLeft(worker, "it does not get ready")
            self._restart(worker)
        for worker in self._dispatch.overdue(monotonic()):
            events = self._dispatch.hung(worker, monotonic())
            self._forget(worker)
            yield WorkerLeft(worker, "a block ran too long on it")
            yield from events
            self._restart(worker)
        if self._supply is not None and not self._dispatch.stopped:
            if self._supply.lasting:  # others with more time take their places
                yield from self._retire(self._dispatch.spent(monotonic()), "its time is up")
            if not self._dispatch.policy.more_to_come and (useful := self._dispatch.useful) is not None:
                yield from self._retire(self._supply.resize(useful, self._dispatch.idle), "there is nothing left for it to do")

    def _retire(self, workers: set[str], cause: str) -> Iterator[Progressed]:
        """Let idle workers go."""
        for worker in workers:
            self._dispatch.leave(worker, monotonic(), blame=False)
            self._forget(worker)
            self._refused[worker] = cause
            yield WorkerLeft(worker, cause)
            self._client.retire_workers([worker], close_workers=True, remove=True)

    def _in_hand(self) -> InHand:
        running = [(attempt.since, attempt) for attempt in self._dispatch.in_hand if attempt.since is not None]
        since, oldest = min(running, key=lambda pair: pair[0], default=(monotonic(), None))
        blocks = tuple(attempt.block.index for _, attempt in running)
        return InHand(blocks, oldest.worker if oldest else "", monotonic() - since)

    def _gone(self, worker: str, cause: str) -> Iterator[Progressed]:
        events = self._dispatch.leave(worker, monotonic())
        self._forget(worker)
        yield WorkerLeft(worker, cause)
        yield from events

    def _forget(self, worker: str) -> None:
        """Drop the tasks of a worker that is no more."""
        keys = [key for key, attempt in self._attempts.items() if attempt.worker == worker]
        keys += [key for key, preparing in self._preparing.items() if preparing == worker]
        for key in keys:
            self._attempts.pop(key, None)
            self._preparing.pop(key, None)
            self._futures.pop(key).cancel()

    def _restart(self, worker: str) -> None:
        """Start a worker process anew; one that nobody can start anew gets no more blocks."""
        self._refused[worker] = "it hangs"
        with suppress(ValueError, TimeoutError):  # without a nanny
            self._client.restart_workers([worker], timeout=RESTART, raise_for_error=False)
            self._refused.pop(worker)

    def _wait(self) -> list[tuple[Future[Any], Any]]:
        """Tasks that have ended, after at most a `TICK`."""
        with self._ended.thread_condition:
            if self._ended.queue.empty():
                self._ended.thread_condition.wait(TICK)
        return list(self._ended.next_batch(block=False))

    def _receive(self, future: Future[Any], result: Any) -> Iterator[Progressed]:
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
        """A worker is ready, or cannot take part."""
        if future.status == "finished":
            numerics, device, left = result.numerics, result.device, result.seconds_left
            threads = self._client.nthreads()
            beside = {other: uuid for other, uuid in self._devices.items() if other in threads and uuid}
            if device and (crowded := crowding({**beside, worker: device}, self._work.workers_per_gpu)):
                self._refused[worker] = crowded
                yield WorkerLeft(worker, crowded)
                return
            self._begun = True
            self._devices[worker] = device
            now = monotonic()
            self._dispatch.join(worker, threads.get(worker, 1), now, None if left is None else now + left - FAREWELL)
            yield WorkerJoined(worker, numerics, device)
            if (seconds := self._dispatch.hurried(worker, now)) is not None:
                yield Noticed(
                    f"{worker} has {left:.0f} s until its job ends, but a block of late took {seconds:.0f} s: give jobs more "
                    "time with --time"
                )
            return
        error = result if isinstance(result, Exception) else future.exception() if future.status == "error" else None
        if error is None or isinstance(error, KilledWorker):
            return  # the worker has died or the scheduler forgot the task; the next poll tells
        self._refused[worker] = _one_line(error)
        yield WorkerLeft(worker, self._refused[worker])
        if not self._begun and not self._preparing:
            raise InputError(self._refused[worker])


def _lost(block: Block, future: Future[Any]) -> Outcome:
    """The outcome of a block whose task ended without one."""
    error = future.exception() if future.status == "error" else CancelledError("the scheduler does not know the task any more")
    fault: Fault = "device" if isinstance(error, KilledWorker) else "store"
    return Outcome(block.index, "failed", block.write.voxels, cause=f"{type(error).__name__}: {_one_line(error)}", fault=fault)


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split())
