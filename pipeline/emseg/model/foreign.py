"""Networks that somebody else has trained: ONNX files, exported programs of torch, and packages of BioImage.IO.

What a file does not say lies beside it, in ``FILE.toml``, or is found by experiment::

    classes = ["inside", "membrane"]      # else numbered
    activation = "softmax"                # what it gives, see `emseg.specs.contract.Activation`; else as its output looks
    channel = 1                           # the one to look at, of a network with other channels
    normalise = "volume"                  # or "slice": mean 0 and deviation 1 of the volume or of each z slice, by default
    mean = 0.0                            # or: subtract this ...
    deviation = 255.0                     # ... and divide by that
    voxel_size = "8 8 8 nm"               # what it was trained at
    only_tile = [1, 512, 512]             # the only shape (z, y, x) that it takes, in voxels
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

from emseg.box import Triple, triple
from emseg.documents import read_document
from emseg.errors import ModelError
from emseg.model.package import DESCRIPTIONS, MOST_MODEL_BYTES, read_package
from emseg.specs.contract import Activation, Contract

Kind = Literal["onnx", "exported"]

KINDS: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported"}
"""Suffixes of files with a network."""
SETTINGS = ("classes", "activation", "channel", "normalise", "mean", "deviation", "voxel_size", "only_tile")
"""What may be told beside a file."""


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A network of another origin, in memory; in the place of a `emseg.model.file.ModelFile`."""

    kind: Kind
    path: str
    """For messages."""
    digest: str
    """SHA-256 of the file and of all that is told about it, in hexadecimal."""
    data: bytes = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    """Those of `SETTINGS` that are told."""
    told: Contract | None = None
    """The contract, if it is known already."""

    @property
    def card(self) -> dict[str, str]:
        """Where it comes from, and how intensities are normalised."""
        told = {name: self.settings[name] for name in ("normalise", "mean", "deviation", "voxel_size") if name in self.settings}
        return {
            "origin": f"{PurePosixPath(self.path).name}, not of emseg",
            **{name: str(value) for name, value in told.items()},
        }


def is_foreign(path: Path) -> bool:
    """Whether a path leads to a network that was not written by emseg."""
    return path.suffix.lower() in (*KINDS, ".zip") or path.name in DESCRIPTIONS or path.is_dir()


def read_foreign(path: Path, told: Contract | None = None) -> ForeignModel:
    """A network of another origin; `told` if its contract is known.

    Raises
    ------
    ModelError
        If the file cannot be read, or is of a kind that would run code.
    """
    try:
        if path.suffix.lower() in KINDS:
            data = read_document(path, MOST_MODEL_BYTES)
            beside = path.with_name(f"{path.name}.toml")
            text = read_document(beside) if beside.exists() else b""
            settings = _checked(tomllib.loads(text.decode()), beside)
            kind = KINDS[path.suffix.lower()]
        else:
            kind = "onnx"  # all that is taken of a package
            data, text, settings = read_package(path)
    except (OSError, ValueError, zipfile.BadZipFile, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"the model {path} cannot be read ({said}): check it, or fetch it again") from error
    digest = hashlib.sha256(hashlib.sha256(data).digest() + hashlib.sha256(text).digest()).hexdigest()
    return ForeignModel(kind, str(path), digest, data, settings, told)


def _checked(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings of the right types."""
    kinds: dict[str, tuple[type, ...]] = {"classes": (list,), "channel": (int,), "only_tile": (list,)}
    kinds |= dict.fromkeys(("activation", "normalise", "voxel_size"), (str,)) | dict.fromkeys(
        ("mean", "deviation"), (int, float)
    )
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ModelError(f"{path} has the key {name!r}, but known are {', '.join(SETTINGS)}: correct it")
        if not isinstance(value, kinds[name]):
            raise ModelError(f"{name} in {path} is {value!r}, not {kinds[name][0].__name__}: correct it")
    if settings.get("normalise", "volume") not in ("volume", "slice"):
        raise ModelError(f"normalise in {path} is {settings['normalise']!r}, not volume or slice: correct it")
    if ("mean" in settings) != ("deviation" in settings) or not settings.get("deviation", 1) > 0:
        raise ModelError(f"{path} tells one of mean and deviation, or a deviation that is not positive: tell both, or neither")
    return dict(settings)


def contract_of(model: ForeignModel, threads: int = 1) -> Contract:
    """How a network behaves: as its file says, or as experiments show; the same each time.

    Raises
    ------
    ModelError
        If it cannot be read, takes no tile, or does something that does not fit tiles.
    """
    import torch  # noqa: PLC0415  takes seconds

    from emseg.model.adapted import through  # noqa: PLC0415
    from emseg.probe import probe  # noqa: PLC0415

    if model.told is not None:
        return model.told
    network, shape, parameters = _opened(model, threads)
    planar = len(shape) == 4
    if shape[1] not in (1, None):
        raise ModelError(f"{model.path} takes {shape[1]} channels, but a volume has one")

    def run(tiles: Any) -> Any:
        with torch.inference_mode():
            return through(network, torch.from_numpy(tiles)[:, None], planar=planar).float().numpy()

    found = probe(run, planar=planar, hint=_hint(model, shape))
    flops, alive = network.cost((1, 1, *found.least[planar:]))
    voxels = math.prod(found.least)
    activation, classes = _classes(model, found.channels, (found.lowest, found.highest), found.sums_to_one)
    return Contract(
        classes=classes,
        planar=planar,
        context=found.context,
        lattice=found.lattice,
        least=found.least,
        crop=found.crop,
        activation=activation,
        local=found.local,
        parameters=parameters,
        flops_per_voxel=-(-flops // voxels),
        bytes_per_voxel=-(-alive // voxels),
        only_tile=found.only_tile,
        channel=model.settings.get("channel"),
    )


def _hint(model: ForeignModel, shape: tuple[int | None, ...]) -> Triple | None:
    """The shape (z, y, x) of tiles that the file names, if it does."""
    if "only_tile" in model.settings:
        return triple(int(length) for length in model.settings["only_tile"])
    spatial = (1, *shape[2:]) if len(shape) == 4 else shape[2:]
    return None if None in spatial else triple(cast("tuple[int, ...]", spatial))


def _opened(model: ForeignModel, threads: int) -> tuple[Any, tuple[int | None, ...], int]:
    """The network, the shape of its input, and how many numbers it has learnt."""
    if model.kind == "onnx":
        network = open_onnx(model, threads)
        return network, network.shape, network.parameters
    from emseg.model.exported import read_exported  # noqa: PLC0415

    program, shape = read_exported(model.data, model.path)
    return program.eval(), shape, sum(weight.numel() for weight in program.parameters())


def open_onnx(model: ForeignModel, threads: int) -> Any:
    """The network of an ONNX file.

    Raises
    ------
    ModelError
        If it cannot be read, or OpenVINO is not installed.
    """
    try:
        from emseg.model.onnx import OnnxNetwork  # noqa: PLC0415
    except ImportError as error:
        raise ModelError(f"{model.path} is ONNX, which OpenVINO computes ({error}): pip install 'emseg[openvino]'") from error
    return OnnxNetwork(model.data, model.path, threads)


def _classes(
    model: ForeignModel, channels: int, values: tuple[float, float], sums_to_one: bool
) -> tuple[Activation, tuple[str, ...]]:
    """What a network gives, and the names of its classes: as told, else as its output looks."""
    channel = model.settings.get("channel")
    if channel is not None and not 0 <= channel < channels:
        raise ModelError(
            f"{model.path} has {channels} channels, counted from 0, and no channel {channel}: correct its settings"
        )
    single, shares = channels == 1 or channel is not None, values[0] >= 0 and values[1] <= 1
    if single:
        looks = "sigmoid" if shares else "sigmoid logits"
    elif shares and not sums_to_one and "activation" not in model.settings:
        raise ModelError(
            f"{model.path} gives {channels} probabilities that do not exclude one another: name the channel to look at in "
            f"{model.path}.toml, channel = 0 to {channels - 1}"
        )
    else:
        looks = "softmax" if shares else "logits"
    activation = cast("Activation", model.settings.get("activation", looks))
    count = 2 if single else channels
    names = tuple(map(str, model.settings.get("classes", ())))
    if len(names) not in (0, count):
        raise ModelError(f"{model.path} tells {count} classes apart, but {len(names)} are named: {', '.join(names)}")
    usual = ("background", "foreground") if single else tuple(f"class {number}" for number in range(count))
    return activation, names or usual
