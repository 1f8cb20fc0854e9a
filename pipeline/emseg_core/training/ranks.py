"""Train in several processes started by ``torchrun``, each with a part of every batch."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from traceback import clear_frames

import psutil
import torch
import torch.distributed.nn.functional  # imported after a group is made, its default arguments keep that group for good
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from emseg_core.errors import InputError
from emseg_core.model.device import Device

RENDEZVOUS_VARIABLE = "EMSEG_RENDEZVOUS"
"""Environment variable with the path of the file, in a folder private to this user, through which the processes of one machine
find one another."""
RENDEZVOUS_TIMEOUT = timedelta(hours=12)
"""How long processes wait for one another; the others wait while the first one validates."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of this process among those of a training."""

    rank: int = 0
    """Number of this process, counted from 0."""
    count: int = 1
    """Number of processes."""

    @property
    def leads(self) -> bool:
        """Whether this process is the first, which validates and writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Select the tiles of a batch for this process.

        Parameters
        ----------
        batch
            Number of tiles in the batch.

        Returns
        -------
        range
            Indices of the tiles.

        Raises
        ------
        InputError
            If the batch cannot be divided evenly.
        """
        if batch % self.count:
            raise InputError(
                f"a batch of {batch} tiles cannot be divided evenly among {self.count} processes: use a multiple of "
                f"{self.count}"
            )
        return range(self.rank, batch, self.count)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are averaged over all processes.

        Parameters
        ----------
        network
            The network to train.

        Returns
        -------
        nn.Module
            The wrapped network; the network itself if there is only one process.
        """
        if self.count == 1:
            return network
        # With channels last, kernels of one voxel have the same bytes in either order of strides, but torch warns anyway.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(network)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, each of which must call this method.

        Parameters
        ----------
        value
            The tensor of this process.

        Returns
        -------
        Tensor
            The sum; the tensor itself if there is only one process.
        """
        if self.count > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value

    def broadcast(self, value: int) -> int:
        """Send a number from the first process to all, each of which must call this method.

        Parameters
        ----------
        value
            The number of this process.

        Returns
        -------
        int
            The number of the first process.
        """
        if self.count == 1:
            return value
        message = torch.tensor(value, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.broadcast(message, src=0)
        return int(message)


@contextmanager
def join_processes(device: Device) -> Iterator[Ranks]:
    """Join the processes started by ``torchrun``, or by another launcher on this machine; on CUDA, each uses its own GPU.

    Parameters
    ----------
    device
        Device of the training.

    Yields
    ------
    Ranks
        Rank of this process; a single one if no launcher started it.

    Raises
    ------
    InputError
        If a process that does not belong to the training has connected to this one.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device == "cuda" else "gloo"
    place = os.environ.get(RENDEZVOUS_VARIABLE)
    if place is None:
        distributed.init_process_group(backend, timeout=RENDEZVOUS_TIMEOUT)
    else:
        store = distributed.FileStore(place, count)  # type: ignore[attr-defined]
        store.set_timeout(RENDEZVOUS_TIMEOUT)
        distributed.init_process_group(
            backend, store=store, rank=int(os.environ["RANK"]), world_size=count, timeout=RENDEZVOUS_TIMEOUT
        )
    try:
        if place is not None and backend == "gloo":
            check_peers()
        yield Ranks(distributed.get_rank(), count)
    except BaseException as error:
        clear_frames(error.__traceback__)  # the wrapped network in them keeps the group
        raise
    finally:
        # Gloo's threads let go of tensors late. One that does so while the interpreter ends aborts the process, so they end
        # here, with the group, of which this is the last reference: only the end of that one does not hold the lock (GIL)
        # that the threads wait for.
        group = distributed.group.WORLD
        distributed.destroy_process_group()
        gc.collect()
        del group


def check_peers() -> None:
    """Check that only processes of this training have connected to this process.

    The packages of torch have no TLS for Gloo, so the operating system is asked which process is at the other end of each
    connection. NCCL needs no check: it authenticates by a number that is exchanged only through the rendezvous.

    Raises
    ------
    InputError
        If another process has connected.
    """
    me = psutil.Process()
    mine = me.net_connections("tcp")
    listening = {connection.laddr for connection in mine if connection.status == psutil.CONN_LISTEN}
    peers = {(connection.raddr, connection.laddr) for connection in mine if connection.raddr and connection.laddr in listening}
    for process in (me.parent() or me).children():
        with suppress(psutil.Error):  # the process has ended
            peers -= {(connection.laddr, connection.raddr) for connection in process.net_connections("tcp")}
    if peers:
        raise InputError(
            f"a process that is not part of this training has connected to it from port {peers.pop()[0].port}: find out which "
            "one it is, and start the training again"
        )
