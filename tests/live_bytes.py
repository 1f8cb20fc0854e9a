"""Measure the peak size of the tensors that a network has alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emseg_core.box import Triple
from emseg_core.model.predictor import TorchPredictor
from emseg_core.model.unet import UNet


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Peak bytes of tensors alive at once inside the ``with`` block, including the tensors that come in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, split into its parts, and count the storages that it takes and makes."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            self._count(tensor)
        with self:
            made = func.decompose(*args, **kwargs)
        if made is NotImplemented:
            made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            self._count(tensor)
        return made

    def _count(self, tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, torch.nn.Parameter):
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


def live_bytes(network: UNet, tile: Triple) -> int:
    """Measure the peak bytes of tensors alive at once while a predictor computes one tile."""
    predictor, zeros = TorchPredictor(network, threads=1), np.zeros((1, *tile), np.float32)
    watch = LiveBytes()
    with watch:
        predictor.predict(zeros)
    return watch.peak
