"""Training in several processes: start them on this machine, and choose the one that reports an error.

Whether ``torchrun`` or this module starts them, each process has its rank in ``RANK`` and ``LOCAL_RANK``, and the number of
processes in ``WORLD_SIZE``.
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

from emseg.clusters.private_folder import private_folder
from emseg.runs.stop import GRACE_SECONDS, StoppedError, signal_of
from emseg_core.errors import EmsegError, InputError
from emseg_core.machine import usable_cores
from emseg_core.model.device import Device
from emseg_core.printable import printable
from emseg_core.training.ranks import RENDEZVOUS_VARIABLE

LOOPBACK = "127.0.0.1"
REPORT_DELAY_SECONDS = 10.0
"""Delay of a process's error message after that of a process that knows the cause better."""
LIFELINE_VARIABLE = "EMSEG_LIFELINE"
"""Environment variable with the file descriptor that reaches its end when the process that started this one has ended."""
POLL_SECONDS = 0.1
"""Time between two checks of the processes."""


def is_first_process() -> bool:
    """Check whether this process is the first of those that share a training.

    Returns
    -------
    bool
        True also if it is the only one.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK") == "0"


@contextmanager
def one_error_report() -> Iterator[None]:
    """Let only one of several processes report why a training failed.

    If all of them fail for the same reason, the first one reports it. An `EmsegError` is reported before errors that it causes,
    such as a lost connection. The other processes wait, and are ended silently meanwhile.

    Yields
    ------
    None
        While the training runs.
    """
    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    waiting = False
    try:
        try:
            yield
        except Exception as error:
            waiting = True
            if together:
                sleep(REPORT_DELAY_SECONDS * ((not is_first_process()) + 2 * (not isinstance(error, EmsegError))))
            raise
    except (KeyboardInterrupt, StoppedError) as stopped:
        if is_first_process() and not waiting:
            raise
        sys.exit(128 + signal_of(stopped))


def start_processes(words: Sequence[str], count: int, device: Device) -> int:
    """Run ``emseg`` in several processes. All of them are ended when one fails.

    They communicate over loopback, and meet through a file that only this user can read, so that other users have no access.

    Parameters
    ----------
    words
        Arguments of ``emseg``.
    count
        Number of processes.
    device
        Device on which they compute; each needs its own GPU.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    InputError
        If this process is already one of several, or there are too few GPUs.
    """
    if "RANK" in os.environ:
        raise InputError("this process is already one of several: omit --processes under torchrun")
    named = _visible_gpus()
    if device == "cuda" and (gpus := torch.cuda.device_count() if named is None else len(named)) < count:
        raise InputError(f"{count} processes need a GPU each, but there are {gpus}: use at most as many --processes as GPUs")
    with private_folder() as folder:
        return _run([sys.executable, "-m", "emseg", *words], count, folder / "rendezvous")


def _run(command: Sequence[str], count: int, rendezvous: Path) -> int:
    env = {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // count)),
        **os.environ,
        RENDEZVOUS_VARIABLE: str(rendezvous),  # torch's default is a server open to anyone who can reach it
        "GLOO_SOCKET_IFNAME": _loopback(),
        "NCCL_SOCKET_IFNAME": _loopback(),
        "WORLD_SIZE": str(count),
    }
    processes: list[subprocess.Popen[bytes]] = []
    lifeline, held = os.pipe()  # `held` is closed when this process ends, for whatever reason
    try:
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), LIFELINE_VARIABLE: str(lifeline)}
            processes += [subprocess.Popen(command, env=env | place, start_new_session=True, pass_fds=[lifeline])]
        code = _first_end(processes)
        _end(processes, signal.SIGTERM)
    except (KeyboardInterrupt, StoppedError) as stopped:
        _end(processes, signal_of(stopped))
        return 128 + signal_of(stopped)  # the first process reports it
    finally:
        os.close(lifeline)
        os.close(held)
    if code < 0:
        print(
            printable(f"error: a process was ended by {signal.Signals(-code).name}: use --resume to continue"), file=sys.stderr
        )
        return 1
    return code


def stop_with_starter() -> None:
    """Stop this process when the one that started it has ended, if that was `start_processes`."""
    if (lifeline := os.environ.get(LIFELINE_VARIABLE)) is None:
        return

    def follow() -> None:
        os.read(int(lifeline), 1)  # nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="emseg-lifeline", daemon=True).start()


def select_gpu() -> None:
    """Hide the GPUs of other processes from this one, if it is one of several. Call it before torch initialises GPUs.

    Each thread starts on the first GPU that its process sees, so that must be the process's own.

    Raises
    ------
    InputError
        If there are fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    rank, gpus = int(os.environ["LOCAL_RANK"]), _visible_gpus()
    if gpus is not None and rank >= len(gpus):
        raise InputError(
            f"process {rank} of this machine needs a GPU, but there are {len(gpus)}: start at most as many processes as GPUs"
        )
    os.environ.update(CUDA_VISIBLE_DEVICES=str(rank) if gpus is None else gpus[rank], LOCAL_RANK="0")


def _visible_gpus() -> list[str] | None:
    """Return the GPUs that are visible to this process; None if all are."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else list(filter(None, visible.split(",")))


def _first_end(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for the processes. Return the exit code of the first that fails, negative for a signal; 0 if none does."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        sleep(POLL_SECONDS)


def _end(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to the processes, and kill those that do not end."""
    deadline = monotonic() + GRACE_SECONDS
    for process in processes:
        process.send_signal(number)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - monotonic()))
        process.kill()
        process.wait()


def _loopback() -> str:
    """Return the name of this machine's loopback interface."""
    addresses = psutil.net_if_addrs()
    return next((name for name, known in addresses.items() if any(one.address == LOOPBACK for one in known)), "lo")
