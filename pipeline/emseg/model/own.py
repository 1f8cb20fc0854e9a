"""Predictors of a user's own: classes that each process which computes imports by name, ``module:Class``.

What such a class has::

    class DarkRidges:
        version = "1"                        # another one where it gives other logits: outputs go on with the same alone
        classes = ("inside", "membrane")     # names, in the order of the label values from 0
        planar = True                        # whether it sees nothing along z

        def predict(self, tiles): ...        # logits (n, classes, z', y', x') of normalised tiles (n, z, y, x), all float32

It is made without arguments, once in a process, and predicts for one thread at a time. How far its voxels see, which tiles it
takes, and which shifts it commutes with is found by experiment, see `emseg.probe`. In the place of classes and planar, a class
may have all of that as its ``spec``, a `emseg.specs.contract.Contract`. What no experiment tells may be told besides:
``flops_per_voxel`` and ``bytes_per_voxel``, as in a contract.

To import is to run code. So a name is an argument, never what a file says: who opens an output that was made so gives it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import tracemalloc
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Triple, triple
from emseg.canary import canary_of
from emseg.errors import MemoryShortageError, ModelError
from emseg.probe import Run, probe
from emseg.specs.contract import Contract
from emseg.specs.model import FLOAT32_BYTES
from emseg.specs.numerics import Numerics

FLOPS_PER_VOXEL = 10_000
"""Of a class that does not tell: those of a small network. What is too slow for it is noticed when a run begins."""
MEASURED = 64
"""Voxels along each axis of the output for which memory is measured."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The name of a class, in the place of a model's path.

    Raises
    ------
    ModelError
        If it is no such name.
    """

    name: str
    """``module:Class``"""

    def __post_init__(self) -> None:
        module, _, kind = self.name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *kind.split("."))):
            raise ModelError(f"the predictor {self.name!r} is not of the form module:Class: name a class that can be imported")
        if module == "__main__":
            raise ModelError(f"the predictor {self.name} is in no module that workers can import: name that of its file")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class OwnModel:
    """A class of a user's own, in the place of a `emseg.model.file.ModelFile`."""

    name: str
    version: str
    kind: type[Any]
    told: Contract | None
    """How it behaves, if that is known already."""

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of name and version, and of what the class says about itself, in hexadecimal."""
        spec = getattr(self.kind, "spec", None)
        said = spec.to_json() if isinstance(spec, Contract) else [list(self.kind.classes), bool(self.kind.planar)]
        return hashlib.sha256(json.dumps([self.name, self.version, said], sort_keys=True).encode()).hexdigest()

    @property
    def card(self) -> dict[str, str]:
        """Where it comes from."""
        return {"origin": f"{self.title}, a class of its user"}


def read_own(place: Imported, told: Contract | None = None) -> OwnModel:
    """The class of this name, which is imported here; `told` if its contract is known.

    Raises
    ------
    ModelError
        If it cannot be imported, or lacks something.
    """
    module, _, name = place.name.partition(":")
    try:
        kind: Any = import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except Exception as error:  # whatever a module raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"the predictor {place} cannot be imported ({said}): check its name, and that each worker finds its module"
        ) from error
    if not isinstance(kind, type) or not callable(getattr(kind, "predict", None)):
        raise ModelError(f"the predictor {place} is no class with a method predict: see emseg.model.own")
    version, spec = getattr(kind, "version", None), getattr(kind, "spec", None)
    if not isinstance(version, str) or not version.isprintable() or not 1 <= len(version) <= 100:
        raise ModelError(f"the version of the predictor {place} is {version!r}, not a short text: name it, version = '1'")
    if isinstance(spec, Contract):
        if spec.activation != "logits" or spec.channel is not None:
            raise ModelError(f"the predictor {place} gives {spec.gives}, but logits of all classes are wanted: make it do so")
    elif spec is not None:
        raise ModelError(f"the spec of the predictor {place} is {type(spec).__name__}, not a Contract: leave it out")
    elif not _named(getattr(kind, "classes", None)) or not isinstance(getattr(kind, "planar", None), bool):
        raise ModelError(f"the predictor {place} must tell classes, a tuple of names, and planar, True or False: add them")
    return OwnModel(place.name, version, kind, told)


def _named(classes: Any) -> bool:
    return isinstance(classes, tuple | list) and all(isinstance(name, str) for name in classes)


def contract_of_own(model: OwnModel) -> Contract:
    """How a class behaves: as it says, or as experiments show.

    Raises
    ------
    ModelError
        If it takes no tile, or does something that does not fit tiles.
    """
    stated = getattr(model.kind, "spec", None)
    known = model.told or (stated if isinstance(stated, Contract) else None)
    if known is not None:
        return known
    kind, predict = model.kind, model.kind().predict

    def run(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(predict(tiles), np.float32)

    found = probe(run, planar=kind.planar)
    if found.channels != len(kind.classes):
        raise ModelError(f"{model.name} gives {found.channels} channels, but names {len(kind.classes)} classes: name each")
    contract = Contract(
        classes=tuple(kind.classes),
        planar=kind.planar,
        context=found.context,
        lattice=found.lattice,
        least=found.least,
        crop=found.crop,
        activation="logits",
        local=found.local,
        parameters=0,
        flops_per_voxel=getattr(kind, "flops_per_voxel", FLOPS_PER_VOXEL),
        bytes_per_voxel=getattr(kind, "bytes_per_voxel", 0),
    )
    return contract if contract.bytes_per_voxel else replace(contract, bytes_per_voxel=_bytes_per_voxel(run, contract))


def _bytes_per_voxel(run: Run, contract: Contract) -> int:
    """Bytes of NumPy arrays alive at once for each voxel of a tile; at least what goes in and comes out."""
    tile = contract.tile_for((1 if contract.planar else MEASURED, MEASURED, MEASURED))
    tiles, tracing = np.zeros((1, *tile), np.float32), tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run(tiles)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    words = -(-(peak + tiles.nbytes) // (FLOAT32_BYTES * math.prod(tile)))
    return FLOAT32_BYTES * max(words, 1 + len(contract.classes))


class OwnPredictor:
    """Predicts with a class of a user's own, whatever that computes with."""

    def __init__(self, model: OwnModel, threads: int) -> None:
        self.spec = contract_of_own(model)
        self._title, self._threads = model.title, threads
        self._predict = model.kind().predict

    def numerics(self, tile: Triple) -> Numerics:
        """What decides the last bits of predictions, for a run with tiles of this shape (z, y, x) in voxels."""
        return Numerics(self._title, platform.machine(), "float32", self._threads, canary_of(self, tile))

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``(n, classes, z', y', x')`` of normalised tiles ``(n, z, y, x)``.

        Raises
        ------
        MemoryShortageError
            If there is too little memory.
        ModelError
            If the class gives another shape than its contract says.
        """
        try:
            given = np.asarray(self._predict(tiles), np.float32)
        except MemoryError as error:
            raise MemoryShortageError("out of memory") from error
        output = self.spec.output_shape(triple(tiles.shape[1:]))
        wanted = len(tiles), len(self.spec.classes), *(n + 2 * c for n, c in zip(output, self.spec.crop, strict=True))
        if given.shape != wanted:
            raise ModelError(
                f"{self._title} gives the shape {given.shape} for tiles of the shape {tiles.shape}, but its contract says "
                f"{wanted}: (n, classes, z, y, x), the same number of voxels less on both sides"
            )
        z, y, x = (slice(c, c + n) for n, c in zip(output, self.spec.crop, strict=True))
        return np.ascontiguousarray(given[:, :, z, y, x])
