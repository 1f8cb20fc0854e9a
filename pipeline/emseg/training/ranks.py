"""Training in several processes, each with a part of every batch, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from emseg.errors import InputError
from emseg.model.device import Device

RENDEZVOUS = "EMSEG_RENDEZVOUS"
"""Variable with the file, in a folder of this user alone, by which processes of one machine find one another."""
PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: the first one validates meanwhile."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """The tiles of a batch that this process takes.

        Raises
        ------
        InputError
            If they cannot be shared out evenly.
        """
        if batch % self.count:
            raise InputError(f"a batch of {batch} tiles cannot be shared by {self.count} processes: use a multiple of them")
        return range(self.rank, batch, self.count)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, whose gradients become the means over all processes."""
        if self.count == 1:
            return network
        # With channels last, kernels of one voxel have the same bytes in either order of strides; torch warns all the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(network)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes; each must ask for it."""
        if self.count > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
        return value

    def told(self, value: int) -> int:
        """The number that the leading process says; each must ask for it."""
        if self.count == 1:
            return value
        box = torch.tensor(value, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.broadcast(box, src=0)
        return int(box)


@contextmanager
def joined(device: Device) -> Iterator[Ranks]:
    """This process among those that ``torchrun``, or another starter on this machine, started, if one did; each has its GPU.

    Raises
    ------
    InputError
        If another process has connected to this one.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device == "cuda" else "gloo"
    place = os.environ.get(RENDEZVOUS)
    if place is None:
        distributed.init_process_group(backend, timeout=PATIENCE)
    else:
        store = distributed.FileStore(place, count)  # type: ignore[attr-defined]
        store.set_timeout(PATIENCE)
        distributed.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=count, timeout=PATIENCE)
    try:
        if place is not None and backend == "gloo":
            check_peers()
        yield Ranks(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def check_peers() -> None:
    """Nothing, if all that has connected to this process is those that were started with it.

    torch's packages have no TLS for Gloo, so who is at the other end is asked of the system; NCCL asks by a number that is told
    in the rendezvous alone.

    Raises
    ------
    InputError
        If another process has.
    """
    me = psutil.Process()
    mine = me.net_connections("tcp")
    doors = {connection.laddr for connection in mine if connection.status == psutil.CONN_LISTEN}
    arrived = {(connection.raddr, connection.laddr) for connection in mine if connection.raddr and connection.laddr in doors}
    for process in (me.parent() or me).children():
        with suppress(psutil.Error):  # one that has ended
            arrived -= {(connection.laddr, connection.raddr) for connection in process.net_connections("tcp")}
    if arrived:
        raise InputError(
            f"a process that is not of this training has connected to it from port {arrived.pop()[0].port}: find out whose "
            "that is, and start again"
        )
