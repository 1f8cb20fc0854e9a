"""A training in several processes: starting them on this machine, and which of them says why it ended.

Under ``torchrun``, or here, each process has its place in ``RANK`` and ``LOCAL_RANK``, and their number in ``WORLD_SIZE``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import torch

from emseg.errors import EmsegError, InputError
from emseg.model.device import Device
from emseg.printable import printable
from emseg.training.ranks import RENDEZVOUS
from emseg_workflows.clusters.private_folder import private_folder
from emseg_workflows.stop import GRACE, StoppedError

LOOPBACK = "127.0.0.1"
TURN = 10.0
"""Seconds by which a process speaks later than one that knows better what went wrong."""
LIFELINE = "EMSEG_LIFELINE"
"""Variable with the file that ends when the process that started this one does."""
LOOK = 0.1
"""Seconds between two looks at the processes."""


def leads() -> bool:
    """Whether this process is the first of those that share a training, or alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK") == "0"


@contextmanager
def failing_in_turn() -> Iterator[None]:
    """A ``with`` for what processes do together, so that one line says why they failed.

    What all refuse the first one says, and a refusal comes before what follows from it, such as a lost connection: the others
    wait, and are ended meanwhile, in silence.
    """
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    waiting = False
    try:
        try:
            yield
        except Exception as error:
            waiting = True
            if together:
                sleep(TURN * (not leads()) + 2 * TURN * (not isinstance(error, EmsegError)))
            raise
    except (KeyboardInterrupt, StoppedError) as stopped:
        if leads() and not waiting:
            raise
        sys.exit(128 + (stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT))


def start_processes(words: Sequence[str], count: int, device: Device) -> int:
    """The exit code of ``emseg`` with these words in so many processes; all of them end when one fails.

    They meet on loopback, and find one another by a file of this user alone: nobody else has a way in.

    Raises
    ------
    InputError
        If this process is one of several already, or there are fewer GPUs.
    """
    if "RANK" in os.environ:
        raise InputError("this process is one of several already: leave out --processes under torchrun")
    named = _named_gpus()
    if device == "cuda" and (gpus := torch.cuda.device_count() if named is None else len(named)) < count:
        raise InputError(f"{count} processes need a GPU each, but there are {gpus}: use as many --processes as GPUs")
    with private_folder() as folder:
        return _run([sys.executable, "-m", "emseg_workflows", *words], count, folder / "rendezvous")


def _run(command: Sequence[str], count: int, rendezvous: Path) -> int:
    env = {
        "OMP_NUM_THREADS": str(max(1, _cores() // count)),
        **os.environ,
        RENDEZVOUS: str(rendezvous),  # torch's own is a server that whoever reaches it may speak to
        "GLOO_SOCKET_IFNAME": _loopback(),
        "NCCL_SOCKET_IFNAME": _loopback(),
        "WORLD_SIZE": str(count),
    }
    processes: list[subprocess.Popen[bytes]] = []
    lifeline, held = os.pipe()  # what is held is closed when this process is gone, however that comes
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), LIFELINE: str(lifeline)}
            processes += [subprocess.Popen(command, env=env | place, start_new_session=True, pass_fds=[lifeline])]
        code = _first_end(processes)
        _end(processes, signal.SIGTERM)
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        _end(processes, number)
        return 128 + number  # the first process says so
    finally:
        os.close(lifeline)
        os.close(held)
    if code < 0:
        print(printable(f"error: a process was ended by {signal.Signals(-code).name}: --resume goes on"), file=sys.stderr)
        return 1
    return code


def end_with_starter() -> None:
    """Have this process stop when the one that started it is gone, if `start_processes` did."""
    if (lifeline := os.environ.get(LIFELINE)) is None:
        return

    def follow() -> None:
        os.read(int(lifeline), 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="emseg-lifeline", daemon=True).start()


def see_own_gpu() -> None:
    """Hide the GPUs of other processes from this one, if it is one of several, before torch looks at any.

    Each thread begins on the first GPU that its process sees, so that must be the right one.

    Raises
    ------
    InputError
        If there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    rank, gpus = int(os.environ["LOCAL_RANK"]), _named_gpus()
    if gpus is not None and rank >= len(gpus):
        raise InputError(f"process {rank} of this machine needs a GPU, but there are {len(gpus)}: start as many as GPUs")
    os.environ.update(CUDA_VISIBLE_DEVICES=str(rank) if gpus is None else gpus[rank], LOCAL_RANK="0")


def _named_gpus() -> list[str] | None:
    """The GPUs that the environment lets this process see; None where it sees all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else list(filter(None, visible.split(",")))


def _first_end(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code of the first process that fails, negative for a signal; 0 once all are done."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        sleep(LOOK)


def _end(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Signal the processes that still run, and kill those that do not end."""
    deadline = monotonic() + GRACE
    for process in processes:
        process.send_signal(number)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - monotonic()))
        process.kill()
        process.wait()


def _cores() -> int:
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1


def _loopback() -> str:
    """What this machine calls its loopback."""
    addresses = psutil.net_if_addrs()
    return next((name for name, known in addresses.items() if any(one.address == LOOPBACK for one in known)), "lo")
