"""Run predictors written in Python: classes that each worker process imports by name, ``module:Class``.

Such a class has these attributes::

    class DarkRidges:
        version = "1"                        # change it whenever its results change: a run is resumed only with the same one
        classes = ("inside", "membrane")     # names, in the order of the label values from 0
        planar = True                        # whether each z slice is predicted on its own

        def predict(self, tiles): ...        # logits (n, classes, z', y', x') of normalised tiles (n, z, y, x), all float32

A class that gives more than classes that exclude one another states its ``heads`` instead of ``classes``, a tuple of
`emseg_core.specs.heads.Head`, and returns the channels of all of them in their order: logits of classes, probabilities of
independent classes and affinities, and values.

It is instantiated without arguments, once per process, and called by one thread at a time. Its receptive field, the tile shapes
that it accepts, and the shifts that it commutes with are measured, see `emseg_core.model.receptive_field`. Instead of
these attributes, a class may state all of these in ``spec``, a `emseg_core.specs.contract.Contract`. Costs cannot be
measured in that way; a class may state them as ``flops_per_voxel`` and ``bytes_per_voxel``, as in a contract.

Importing a module runs its code. The name of a class is therefore always an argument and never read from a file: to work with
an output made by such a class, pass its name again.
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

from emseg_core.box import triple
from emseg_core.errors import MemoryShortageError, ModelError
from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.receptive_field import Run, Told, probe
from emseg_core.specs.contract import Contract
from emseg_core.specs.heads import Activation, Head, HeadKind, channels_of, check_heads, classes_of
from emseg_core.specs.model import FLOAT32_BYTES

DEFAULT_FLOPS_PER_VOXEL = 10_000
"""Cost assumed for a class that does not state it: that of a small network. A run that is too slow is noticed at its start."""
FINAL: dict[HeadKind, Activation] = {"classes": "logits", "independent": "sigmoid", "affinities": "sigmoid", "values": "none"}
"""Activation of what a class returns, by the kind of head."""
MEMORY_PROBE_VOXELS = 64
"""Length in voxels of each axis of the output for which memory is measured."""


@dataclass(frozen=True, slots=True)
class ImportPath:
    """Import path of a predictor class, used where the path of a model is expected.

    Raises
    ------
    ModelError
        If the name is not of the form ``module:Class``.
    """

    name: str
    """``module:Class``"""

    def __post_init__(self) -> None:
        module, _, kind = self.name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *kind.split("."))):
            raise ModelError(f"the predictor {self.name!r} is not of the form module:Class: give a class that can be imported")
        if module == "__main__":
            raise ModelError(f"the predictor {self.name} cannot be imported by workers: give the module of its file instead")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class PythonModel:
    """An imported predictor class, used like a `emseg_core.model.file.ModelFile`."""

    name: str
    """``module:Class``"""
    version: str
    """Version that the class states."""
    kind: type[Any]
    """The class."""
    contract: Contract | None
    """How it behaves, if that is known already."""

    @property
    def title(self) -> str:
        """Name and version of the class."""
        return f"{self.name} {self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of the name, the version and the attributes of the class, in hexadecimal."""
        spec = getattr(self.kind, "spec", None)
        heads = getattr(self.kind, "heads", None)
        meaning = [head.to_json() for head in heads] if heads else list(getattr(self.kind, "classes", ()))
        said = spec.to_json() if isinstance(spec, Contract) else [meaning, bool(self.kind.planar)]
        return hashlib.sha256(json.dumps([self.name, self.version, said], sort_keys=True).encode()).hexdigest()

    @property
    def card(self) -> dict[str, str]:
        """Origin of the model."""
        return {"origin": f"{self.title}, a class of its user"}


def import_model(place: ImportPath, contract: Contract | None = None) -> PythonModel:
    """Import a predictor class and check its attributes.

    Parameters
    ----------
    place
        Name of the class.
    contract
        How it behaves, if that is known already.

    Returns
    -------
    PythonModel
        The class.

    Raises
    ------
    ModelError
        If it cannot be imported, or an attribute is missing or invalid.
    """
    module, _, name = place.name.partition(":")
    try:
        kind: Any = import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
    except Exception as error:  # importing a module may raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(
            f"the predictor {place} cannot be imported ({said}): check its name, and that each worker can find its module"
        ) from error
    if not isinstance(kind, type) or not callable(getattr(kind, "predict", None)):
        raise ModelError(f"the predictor {place} is not a class with a method predict: see emseg_core.model.python_predictor")
    version, spec = getattr(kind, "version", None), getattr(kind, "spec", None)
    if not isinstance(version, str) or not version.isprintable() or not 1 <= len(version) <= 100:
        raise ModelError(f"the version of the predictor {place} is {version!r}, not a short text: add version = '1'")
    heads = spec.heads if isinstance(spec, Contract) else getattr(kind, "heads", ())
    if not isinstance(heads, tuple | list) or not all(isinstance(head, Head) for head in heads):
        raise ModelError(f"the heads of the predictor {place} are not a tuple of Head: see emseg_core.specs.heads")
    if unlike := [head for head in heads if head.activation != FINAL[head.kind] or head.source is not None]:
        raise ModelError(
            f"the predictor {place} gives {unlike[0].activation}, not logits of all classes, "
            "probabilities of other heads, or values: change its predict and spec"
        )
    if isinstance(spec, Contract):
        pass
    elif heads:
        check_heads(heads)
        if hasattr(kind, "classes") or not isinstance(getattr(kind, "planar", None), bool):
            raise ModelError(
                f"the predictor {place} has heads and classes, or lacks planar, True or False: give heads and planar"
            )
    elif spec is not None:
        raise ModelError(f"the spec of the predictor {place} is a {type(spec).__name__}, not a Contract: remove it")
    elif not _named(getattr(kind, "classes", None)) or not isinstance(getattr(kind, "planar", None), bool):
        raise ModelError(f"the predictor {place} lacks classes, a tuple of names, or planar, True or False: add them")
    return PythonModel(place.name, version, kind, contract)


def _named(classes: Any) -> bool:
    """Return whether these are names of classes."""
    return isinstance(classes, tuple | list) and all(isinstance(name, str) for name in classes)


def python_contract(model: PythonModel) -> Contract:
    """Determine how a predictor class behaves, from its ``spec`` or by running it.

    Parameters
    ----------
    model
        The predictor class and its settings.

    Returns
    -------
    Contract
        The contract stored in `model` or stated by the class if there is one, else the measured one.

    Raises
    ------
    ModelError
        If it accepts no tile, or cannot be applied tile by tile.
    """
    stated = getattr(model.kind, "spec", None)
    known = model.contract or (stated if isinstance(stated, Contract) else None)
    if known is not None:
        return known
    kind, predict = model.kind, model.kind().predict

    def run(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(predict(tiles), np.float32)

    found = probe(run, planar=kind.planar, told=Told(place=f"a Contract that {model.name} states as its spec"))
    heads = tuple(getattr(kind, "heads", ()))
    classes = classes_of(heads) if heads else tuple(kind.classes)
    if found.channels != (expected := channels_of(heads) if heads else len(classes)):
        what = "channels in its heads" if heads else "classes"
        raise ModelError(f"{model.name} gives {found.channels} channels, but has {expected} {what}: name each channel")
    contract = found.contract(
        classes=classes,
        planar=kind.planar,
        activation="logits" if classes else "none",
        named_heads=heads,
        parameters=0,
        flops_per_voxel=getattr(kind, "flops_per_voxel", DEFAULT_FLOPS_PER_VOXEL),
        bytes_per_voxel=getattr(kind, "bytes_per_voxel", 0),
    )
    return contract if contract.bytes_per_voxel else replace(contract, bytes_per_voxel=_bytes_per_voxel(run, contract))


def _bytes_per_voxel(run: Run, contract: Contract) -> int:
    """Measure the peak memory of NumPy arrays, in bytes per voxel of a tile; at least that of the input and the output."""
    tile = contract.tile_for((1 if contract.planar else MEMORY_PROBE_VOXELS, MEMORY_PROBE_VOXELS, MEMORY_PROBE_VOXELS))
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
    return FLOAT32_BYTES * max(words, 1 + channels_of(contract.heads))


class PythonPredictor(BasePredictor):
    """Predictor that calls a class written in Python.

    Parameters
    ----------
    model
        The class.
    threads
        Number of threads recorded for the run; the class chooses its own.

    Raises
    ------
    ModelError
        If its behaviour has to be measured and it cannot be applied tile by tile.
    """

    def __init__(self, model: PythonModel, threads: int) -> None:
        super().__init__(model.title, platform.machine(), "float32", threads)
        self.spec: Contract = python_contract(model)
        self._predict = model.kind().predict

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the channels of all heads; see `emseg_core.model.base_predictor.BasePredictor.predict`.

        Raises
        ------
        MemoryShortageError
            If there is too little memory.
        ModelError
            If the class returns another shape than its contract says.
        """
        try:
            found = np.asarray(self._predict(tiles), np.float32)
        except MemoryError as error:
            raise MemoryShortageError("out of memory") from error
        output = self.spec.output_shape(triple(tiles.shape[1:]))
        expected = len(tiles), channels_of(self.spec.heads), *(n + 2 * c for n, c in zip(output, self.spec.crop, strict=True))
        if found.shape != expected:
            raise ModelError(
                f"{self._numerics.backend} returns shape {found.shape} for tiles of shape {tiles.shape}, but its contract "
                f"says {expected}: return (n, channels, z, y, x), shorter by the same number of voxels on both sides"
            )
        z, y, x = (slice(c, c + n) for n, c in zip(output, self.spec.crop, strict=True))
        return np.ascontiguousarray(found[:, :, z, y, x])
