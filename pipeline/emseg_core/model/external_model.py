"""Read networks trained elsewhere: ONNX files, programs exported by torch, and BioImage.IO packages.

What a file does not say about its network is read from ``FILE.toml`` beside it, or measured by running the network::

    classes = ["inside", "membrane"]      # default: numbered
    activation = "softmax"                # see `emseg_core.specs.contract.Activation`; default: guessed from the output
    channel = 1                           # channel to use, if the network has several
    normalise = "volume"                  # or "slice": mean 0 and deviation 1 over the volume (default) or each z slice
    mean = 0.0                            # or: subtract this ...
    deviation = 255.0                     # ... and divide by that
    voxel_size = "8 8 8 nm"               # voxel size of the training data
    only_tile = [1, 512, 512]             # the only tile shape (z, y, x) that the network accepts, in voxels
    context = [0, 64, 64]                 # voxels (z, y, x) to remove from each side of a tile; default: as many as needed
    lattice = [1, 32, 32]                 # shift (z, y, x) in voxels that the network commutes with

What is told is used even if something else is found. Labels may then depend on tiles, which the contract says.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from emseg_core.box import Triple, triple
from emseg_core.documents import read_document
from emseg_core.errors import ModelError
from emseg_core.installation import install_hint
from emseg_core.model.package import DESCRIPTIONS, MAX_MODEL_BYTES, read_package
from emseg_core.specs.contract import Activation, Contract

Kind = Literal["onnx", "exported"]

KINDS: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported"}
"""Kind of network by file suffix."""
SETTINGS = (
    "classes", "activation", "channel", "normalise", "mean", "deviation", "voxel_size", "only_tile", "context", "lattice",
)  # fmt: skip
"""Keys allowed in ``FILE.toml``."""
TRIPLES = {"only_tile": 1, "context": 0, "lattice": 1}
"""Settings that are three numbers (z, y, x), and the least that each may be."""


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """A network trained elsewhere, in memory; used like a `emseg_core.model.file.ModelFile`."""

    kind: Kind
    path: str
    """Path of the file, for messages."""
    digest: str
    """SHA-256 of the file and its settings, in hexadecimal."""
    data: bytes = field(repr=False)
    """The ONNX file or the exported program."""
    settings: Mapping[str, Any] = field(repr=False)
    """Settings given with the file, by names from `SETTINGS`."""
    contract: Contract | None = None
    """How the network behaves, if that is known already."""

    @property
    def card(self) -> dict[str, str]:
        """Origin of the model, how intensities are normalised, and the voxel size of the training data, if given."""
        names = ("normalise", "mean", "deviation", "voxel_size")
        return {
            "origin": f"{PurePosixPath(self.path).name}, not of emseg",
            **{name: str(self.settings[name]) for name in names if name in self.settings},
        }


def is_external(path: Path) -> bool:
    """Return whether a path is that of a network trained elsewhere, not of one of emseg's own model files.

    Parameters
    ----------
    path
        Path of a model.

    Returns
    -------
    bool
        True for ONNX files, exported programs, and packages.
    """
    return path.suffix.lower() in (*KINDS, ".zip") or path.name in DESCRIPTIONS or path.is_dir()


def read_external(path: Path, contract: Contract | None = None) -> ExternalModel:
    """Read a network trained elsewhere.

    Parameters
    ----------
    path
        An ONNX file, an exported program, or a package.
    contract
        How it behaves, if that is known already.

    Returns
    -------
    ExternalModel
        The network and its settings.

    Raises
    ------
    ModelError
        If the file cannot be read, or is of a kind that would run code.
    """
    try:
        if path.suffix.lower() in KINDS:
            data = read_document(path, MAX_MODEL_BYTES)
            beside = path.with_name(f"{path.name}.toml")
            text = read_document(beside) if beside.exists() else b""
            settings = _checked(tomllib.loads(text.decode()), beside)
            kind = KINDS[path.suffix.lower()]
        else:
            kind = "onnx"  # the only weights accepted from a package
            data, text, settings = read_package(path)
    except (OSError, ValueError, zipfile.BadZipFile, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"the model {path} cannot be read ({said}): check it, or download it again") from error
    digest = hashlib.sha256(hashlib.sha256(data).digest() + hashlib.sha256(text).digest()).hexdigest()
    return ExternalModel(kind, str(path), digest, data, settings, contract)


def _checked(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check the names, types and values of settings."""
    kinds: dict[str, tuple[type, ...]] = {"classes": (list,), "channel": (int,)}
    kinds |= dict.fromkeys(TRIPLES, (list,))
    kinds |= dict.fromkeys(("mean", "deviation"), (int, float))
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ModelError(f"{path} has the unknown key {name!r}: use one of {', '.join(SETTINGS)}")
        if not isinstance(value, kind := kinds.get(name, (str,))):
            raise ModelError(f"{name} in {path} is {value!r}, not {kind[0].__name__}: correct it")
    for name, least in TRIPLES.items():
        numbers = settings.get(name, [least] * 3)
        if len(numbers) != 3 or any(type(number) is not int or number < least for number in numbers):
            raise ModelError(
                f"{name} in {path} is {numbers}, not three whole numbers [z, y, x] of at least {least}: correct it"
            )
    if settings.get("normalise", "volume") not in ("volume", "slice"):
        raise ModelError(f"normalise in {path} is {settings['normalise']!r}, not volume or slice: correct it")
    if ("mean" in settings) != ("deviation" in settings) or not settings.get("deviation", 1) > 0:
        raise ModelError(
            f"{path} has only one of mean and deviation, or a deviation that is not positive: give both, or neither"
        )
    return dict(settings)


def contract_of(model: ExternalModel) -> Contract:
    """Determine how a network behaves, from its file or by running it.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    Contract
        The contract stored in `model` if there is one, else the measured one, which is the same each time.

    Raises
    ------
    ModelError
        If the network cannot be read, accepts no tile, or cannot be applied tile by tile.
    """
    import torch  # takes seconds

    from emseg_core.model.adapter import apply_network
    from emseg_core.model.receptive_field import Told, probe

    if model.contract is not None:
        return model.contract
    network, shape, example, parameters = _opened(model)
    planar = len(shape) == 4
    if shape[1] not in (1, None):
        raise ModelError(f"{model.path} takes {shape[1]} channels, but a volume has 1: use a network with 1 input channel")

    def run(tiles: Any) -> Any:
        with torch.inference_mode():
            return apply_network(network, torch.from_numpy(tiles)[:, None], planar=planar).float().numpy()

    def cost(tile: Triple) -> tuple[int, int]:
        return cast("tuple[int, int]", network.cost((1, 1, *tile[planar:])))

    told = {name: triple(model.settings[name]) for name in TRIPLES if name in model.settings}
    found = probe(
        run,
        planar=planar,
        declared=_spatial(example),
        static=_spatial(shape) is not None,
        told=Told(**told, place=f"{model.path}.toml"),
        cost=cost,
        tracing=lambda tile: network.trace((1, 1, *tile[planar:])),
    )
    flops, alive = cost(found.least)
    voxels = math.prod(found.least)
    activation, classes = _classes(model, found.channels, (found.lowest, found.highest), found.sums_to_one)
    return found.contract(
        classes=classes,
        planar=planar,
        activation=activation,
        parameters=parameters,
        flops_per_voxel=-(-flops // voxels),
        bytes_per_voxel=-(-alive // voxels),
        channel=model.settings.get("channel"),
    )


def _spatial(shape: tuple[int | None, ...]) -> Triple | None:
    """Return the shape (z, y, x) of a tile, if that of an input says it."""
    spatial = (1, *shape[2:]) if len(shape) == 4 else shape[2:]
    return None if None in spatial else triple(cast("tuple[int, ...]", spatial))


def _opened(model: ExternalModel) -> tuple[Any, tuple[int | None, ...], tuple[int | None, ...], int]:
    """Return the network, the shape of its input, that of the input it was exported with, and its number of parameters."""
    if model.kind == "onnx":
        network = open_onnx(model, threads=1)
        return network, network.shape, network.shape, network.parameters
    from emseg_core.model.torch_export import read_exported

    program, shape, example = read_exported(model.data, model.path)
    return program.eval(), shape, example, sum(weight.numel() for weight in program.parameters())


def open_onnx(model: ExternalModel, threads: int) -> Any:
    """Open the network of an ONNX file.

    Parameters
    ----------
    model
        The network and its settings.
    threads
        Number of threads.

    Returns
    -------
    OnnxNetwork
        The network, run by OpenVINO on this many threads.

    Raises
    ------
    ModelError
        If the file cannot be read, or OpenVINO is not installed.
    """
    try:
        from emseg_core.model.onnx import OnnxNetwork
    except ImportError as error:
        raise ModelError(f"{model.path} is an ONNX file, which needs OpenVINO ({error}): {install_hint('openvino')}") from error
    return OnnxNetwork(model.data, model.path, threads)


def _classes(
    model: ExternalModel, channels: int, values: tuple[float, float], sums_to_one: bool
) -> tuple[Activation, tuple[str, ...]]:
    """Return the activation of a network and the names of its classes, from the settings or guessed from its output."""
    channel = model.settings.get("channel")
    if channel is not None and not 0 <= channel < channels:
        raise ModelError(
            f"{model.path} has {channels} channels, counted from 0, but its settings select channel {channel}: correct them"
        )
    single, shares = channels == 1 or channel is not None, values[0] >= 0 and values[1] <= 1
    if single:
        looks = "sigmoid" if shares else "sigmoid logits"
    elif shares and not sums_to_one and "activation" not in model.settings:
        raise ModelError(
            f"{model.path} gives {channels} probabilities that do not add up to 1: choose the channel to use in "
            f"{model.path}.toml, channel = 0 to {channels - 1}"
        )
    else:
        looks = "softmax" if shares else "logits"
    activation = cast("Activation", model.settings.get("activation", looks))
    count = 2 if single else channels
    names = tuple(map(str, model.settings.get("classes", ())))
    if len(names) not in (0, count):
        raise ModelError(
            f"{model.path} has {count} classes, but its settings name {len(names)} ({', '.join(names)}): name each"
        )
    usual = ("background", "foreground") if single else tuple(f"class {number}" for number in range(count))
    return activation, names or usual
