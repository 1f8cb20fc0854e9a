"""A Dask cluster of worker processes on this machine, reachable from this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

from emseg.errors import InputError

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787


def default_workers(threads: int) -> int:
    """Worker processes that keep each core of this machine busy, with this many threads per predictor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)


@contextmanager
def local_cluster(workers: int, blocks_in_flight: int) -> Iterator[Client]:
    """A client of a new cluster with this many worker processes; its threads are the blocks in flight.

    Scheduler, workers and dashboard listen on loopback only.
    """
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=blocks_in_flight,
            processes=True,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:{_free_port(DASHBOARD_PORT)}",
            worker_dashboard_address=f"{LOOPBACK}:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def running_cluster(address: str) -> Iterator[Client]:
    """A client of a Dask cluster that somebody else has started.

    Raises
    ------
    InputError
        If no scheduler answers at the address.
    """
    try:
        client = Client(address, timeout="20s")
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {address} ({error}): check the address") from error
    with client:
        yield client


def _free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else 0, which lets the system choose."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return 0
    return wanted
