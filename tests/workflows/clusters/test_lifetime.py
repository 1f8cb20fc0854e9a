"""Test that errors while a cluster closes never change the result of a run, and that a failed start gives one line."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, Security, SpecCluster
from distributed.comm.core import CommClosedError
from distributed.process import AsyncProcess

from emseg import export, ingest, label, segment
from emseg.clusters import cuda, lifeline, slurm
from emseg.clusters.lifeline import UNGUARDED_EXIT_CODE
from emseg.clusters.lifetime import WorkerStartError, closing_safely, start_cluster
from emseg.clusters.local import LOOPBACK, Elastic, GuardedCluster, local_cluster, running_cluster
from emseg.clusters.slurm import job_cluster, step_cluster
from emseg.executors.dask import Session
from emseg.runs.dispatch import Dispatch, Policy
from emseg.slurm.site import Site
from emseg_core.errors import InputError, UnguardedError

NONE = Elastic(least=0, first=0)
"""A cluster without a worker, which starts and ends quickly."""


class FailsToClose:
    """A cluster that raises when it is closed."""

    left = ("process 7",)

    def __init__(self, error: BaseException) -> None:
        self.error, self.abandoned = error, False

    def close(self, timeout: float) -> None:
        raise self.error

    def abandon(self) -> None:
        self.abandoned = True


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        OSError(5, "Input/output error"),
        CommClosedError("in <TCP>: Stream is closed"),
        RuntimeError("Event loop is closed"),
        AssertionError(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_closing_raises_is_told(error: BaseException) -> None:
    told: list[str] = []
    fails = FailsToClose(error)
    with closing_safely(fails, told.append):
        pass
    assert fails.abandoned
    assert len(told) == 2
    assert (str(error) or type(error).__name__) in told[0]
    assert told[1] == "did not end in time, and is left to the system: process 7"
    with pytest.raises(LookupError, match="the body"), closing_safely(FailsToClose(error), told.append):
        raise LookupError("the body")


def test_a_second_signal_is_heeded_while_a_cluster_closes() -> None:
    with pytest.raises(KeyboardInterrupt), closing_safely(FailsToClose(KeyboardInterrupt()), print):
        pass


def opened(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]) -> Any:
    """Open a cluster of each kind, without workers."""
    if kind == "cuda":
        monkeypatch.setattr(cuda, "_choose", lambda gpus: [0])
        monkeypatch.setattr(cuda, "_Cluster", lambda *_: GuardedCluster({}, LOOPBACK, Security(), folder))
        return cuda.cuda_cluster(None, 1, 1, tell)
    if kind == "srun":
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        return step_cluster(0, 1, Site(), Security(), folder, tell)
    if kind == "slurm":
        return job_cluster(0, 1, Site(memory="1G"), Security(), folder, notify=tell)
    return local_cluster(1, 1, elastic=NONE, notify=tell)


@pytest.mark.parametrize("kind", ["local", "cuda", "srun", "slurm"])
def test_no_cluster_raises_at_its_end(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """First the client and then the cluster fails to close in time. The cluster is closed all the same."""
    told: list[str] = []
    close: Callable[[SpecCluster], Awaitable[None]] = SpecCluster._close
    close_client = Client._close
    closed: list[SpecCluster] = []

    async def late(self: SpecCluster) -> None:
        closed.append(self)
        if len(closed) == 1:
            raise TimeoutError
        await close(self)

    async def late_client(self: Client, fast: bool = False) -> None:
        await close_client(self, fast=fast)
        raise TimeoutError("too late")

    with opened(kind, tmp_path, monkeypatch, told.append) as client:
        monkeypatch.setattr(SpecCluster, "_close", late)
        monkeypatch.setattr(Client, "_close", late_client)
    assert told == [
        "the Dask client did not close properly (too late): it is left to the system",
        "the Dask cluster did not close properly (TimeoutError): it is left to the system",
    ]
    assert len(closed) == 2
    assert client.cluster.scheduler.status.name == "closed"
    client.status = "closed"


def test_a_running_cluster_may_go_before_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with local_cluster(1, 1, elastic=NONE) as client, monkeypatch.context() as patched:
        security = client.security
        tls = Path(security.tls_ca_file), Path(security.tls_client_cert), Path(security.tls_client_key)
        with running_cluster(client.scheduler_info()["address"], tls, notify=told.append) as other:
            close = Client._close

            async def lost(self: Client, fast: bool = False) -> None:
                await close(self, fast=fast)
                raise CommClosedError("lost")

            patched.setattr(Client, "_close", lost)
        assert told == ["the Dask client did not close properly (lost): it is left to the system"]
        other.status = "closed"


def test_a_worker_that_is_not_gone_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine causes this."""
    told: list[str] = []

    async def late(self: AsyncProcess, timeout: float | None = None) -> None:
        raise TimeoutError

    with local_cluster(1, 1, notify=told.append) as client:
        (pid,) = client.run(os.getpid).values()
        process = psutil.Process(pid)
        monkeypatch.setattr(AsyncProcess, "join", late)
    assert told == [f"did not end in time, and is left to the system: process {pid}"]
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()


def test_a_step_and_a_job_that_are_not_gone_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def end() -> None:
        step = slurm._Step("tcp://127.0.0.1:1", "emseg-0", ["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.1; done"], [])
        step._process = await asyncio.create_subprocess_exec(*step._command, stdout=subprocess.PIPE)
        assert step._process.stdout is not None
        await step._process.stdout.readline()
        await step.close()
        assert step.left == "step emseg-0"
        assert await step._process.wait() == -signal.SIGKILL

    async def no_scancel(number: str, command: str) -> None:
        raise FileNotFoundError("scancel")

    monkeypatch.setattr(slurm, "STEP_GRACE_SECONDS", 0.1)
    asyncio.run(end())
    job = slurm._Job.__new__(slurm._Job)
    job.name, job.job_id, job._close_job = "emseg-0", "12", no_scancel  # type: ignore[method-assign]
    asyncio.run(job.close())
    assert job.left == "job 12"


def test_a_session_whose_scheduler_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_cluster(1, 1, elastic=NONE) as client:
        session = Session(client, None, Dispatch(iter(()), Policy()))  # type: ignore[arg-type]
        for error in (RuntimeError("no loop"), asyncio.CancelledError()):
            raised: list[BaseException] = []

            def fail(*_: object, error: BaseException = error, raised: list[BaseException] = raised, **__: object) -> None:
                raised.append(error)
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(client, "sync", fail)
                session.close()
            assert raised == [error]


def test_workers_outlive_the_thread_that_started_them() -> None:
    """A notebook may start a run in any thread."""
    with ExitStack() as held:
        clients: list[Client] = []
        thread = threading.Thread(target=lambda: clients.append(held.enter_context(local_cluster(1, 1))))
        thread.start()
        thread.join()
        (client,) = clients
        (pid,) = client.run(os.getpid).values()
        (names,) = client.run(lambda: [thread.name for thread in threading.enumerate()]).values()
        assert names.count(lifeline.THREAD) == 1
        assert client.submit(os.getpid).result() == pid


def failing(cause: Exception) -> Callable[[], SpecCluster]:
    def start() -> SpecCluster:
        raise RuntimeError("Nanny failed to start.") from cause

    return start


def test_why_a_cluster_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="exit code 1: read what it has printed"):
        start_cluster(failing(WorkerStartError(1)))
    with pytest.raises(InputError, match="ended by SIGKILL: find out what ended it"):
        start_cluster(failing(WorkerStartError(-signal.SIGKILL)))
    with pytest.raises(InputError, match="was not ready within 600 s"):
        start_cluster(failing(TimeoutError()))
    with pytest.raises(RuntimeError, match="Nanny failed to start"):
        start_cluster(failing(LookupError()))
    assert capsys.readouterr().err == ""


def test_the_guard_is_shown_once_with_the_exit_code_of_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnguardedError) as refusal:
        start_cluster(failing(WorkerStartError(UNGUARDED_EXIT_CODE)))
    assert capsys.readouterr().err == f"error: {refusal.value}\n"
    assert isinstance(refusal.value, InputError)
    script = "from emseg_core.errors import UnguardedError; raise UnguardedError('not caught')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert (done.returncode, done.stderr) == (2, b"")


@pytest.mark.parametrize("begin", [segment, label, ingest, export], ids=lambda begin: begin.__name__)
def test_nothing_begins_in_a_worker_that_is_only_being_started(
    begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes: list[int] = []

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    monkeypatch.setattr(lifeline, "_tied", lambda: True)
    monkeypatch.setattr(os, "_exit", end)
    arguments = (tmp_path / "nowhere", tmp_path / "nothing")[: 1 if begin is label else 2]
    with pytest.raises(Ended):
        begin(*arguments)
    assert codes == [UNGUARDED_EXIT_CODE]
    with pytest.raises(InputError):
        begin(*arguments, workers=0)
    assert not list(tmp_path.iterdir())
