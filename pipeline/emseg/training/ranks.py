"""Training in several processes, each with a part of every batch, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from emseg.errors import InputError
from emseg.model.device import Device

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
    """This process among those that ``torchrun`` started, if it did; on GPUs, each has its own."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
