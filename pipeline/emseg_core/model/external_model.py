"""Read networks trained elsewhere: ONNX files, programs exported by torch, and BioImage.IO packages.

What a file does not say about its network is read from ``FILE.toml`` beside it (``FOLDER.toml`` beside the folder of a
package), which wins over what a package says. How the network treats tiles is measured by running it::

    output = "labels"                     # output to use, by name or number from 0, if the network has several
    activation = "softmax"                # see `emseg_core.specs.contract.Activation`; not needed if the network ends with it
    channel = 1                           # channel to use, if the network has several that do not exclude one another
    classes = ["inside", "membrane"]      # default: numbered
    normalise = "volume"                  # or "slice": mean 0 and deviation 1 over the volume (default) or each z slice
    mean = 0.0                            # or: subtract this ...
    deviation = 255.0                     # ... and divide by that
    percentiles = [1, 99.8]               # or: these percentiles of the volume become 0 and 1
    eps = 1e-6                            # added to the measured deviation, or to the range between percentiles
    rescale = [2.0, -1.0]                 # then multiply by this and add that
    clip = [-1.0, 1.0]                    # and limit to this range
    voxel_size = "8 8 8 nm"               # voxel size of the training data
    inputs = "slices"                     # channels of the input, if it has several: neighbouring z slices, "copies" of
                                          # the grey value, or channels of the volume, such as [2, 0]
    only_tile = [1, 512, 512]             # the only tile shape (z, y, x) that the network accepts, in voxels
    context = [0, 64, 64]                 # voxels (z, y, x) to remove from each side of a tile; default: as many as needed
    lattice = [1, 32, 32]                 # shift (z, y, x) in voxels that the network commutes with
    [[heads]]                             # what channels mean, if they are more than classes that exclude one another,
                                          # see `emseg_core.model.told_heads`

What is told is used even if something else is found. Labels may then depend on tiles, which the contract says.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from emseg_core.box import Triple, triple
from emseg_core.documents import read_document
from emseg_core.errors import ModelError
from emseg_core.installation import install_hint
from emseg_core.model.description import INTENSITIES, translate
from emseg_core.model.output import NetworkOutput, Statement, index_of, meaning_of
from emseg_core.model.package import DESCRIPTIONS, MAX_MODEL_BYTES, open_package, read_inside
from emseg_core.model.told_heads import check_channels, outputs_of, read_heads
from emseg_core.specs.contract import Contract, FrozenNorm
from emseg_core.specs.heads import ACTIVATIONS, Head
from emseg_core.specs.heads import classes_of as classes_in
from emseg_core.specs.inputs import GREY, TOLD, Inputs, check_told
from emseg_core.specs.numerics import Precision

Kind = Literal["onnx", "exported"]
Lengths = tuple[int | None, ...]

KINDS: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported"}
"""Kind of network by file suffix."""
SETTINGS = (
    "output", "activation", "channel", "classes", "heads", "normalise", "mean", "deviation", "percentiles", "eps", "rescale",
    "clip", "voxel_size", "inputs", "only_tile", "context", "lattice",
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
    stated: Statement = field(repr=False)
    """Settings given with the file, by names from `SETTINGS`, and what its package does to the output."""
    contract: Contract | None = None
    """How the network behaves, if that is known already."""
    norms: tuple[FrozenNorm, ...] = ()
    """Frozen statistics of its normalisations; see `emseg_core.model.frozen_norms`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings given with the file, by names from `SETTINGS`."""
        return self.stated.settings

    @property
    def card(self) -> dict[str, str]:
        """Origin of the model, what its output is taken for, how intensities are normalised, and voxel size, if given."""
        names = (*INTENSITIES, "voxel_size")
        outputs = self.outputs()
        if self.heads:
            taken = f"heads {', '.join(head.name for head in self.heads)}, stated in {self.stated.beside}"
        else:
            output = outputs[index_of(outputs, self.stated)]
            meaning = meaning_of(output, self.stated, output.channels)
            taken = ", ".join([*([output.name] if len(outputs) > 1 else []), meaning.activation, meaning.why])
        return {
            "origin": f"{PurePosixPath(self.path).name}, not of emseg",
            "output": taken,
            **{name: str(self.settings[name]) for name in names if name in self.settings},
        }

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are told; empty if the network is told to have classes alone."""
        if "heads" not in self.settings:
            return ()
        return read_heads(self.settings["heads"], self.outputs(), self.stated.beside)

    @property
    def used_outputs(self) -> tuple[int, ...]:
        """Indices of the outputs that are used; channels of several are joined in this order."""
        if "heads" in self.settings:
            return outputs_of(self.settings["heads"], self.outputs(), self.stated.beside)
        return (index_of(self.outputs(), self.stated),)

    def outputs(self) -> tuple[NetworkOutput, ...]:
        """List the outputs of the network.

        Returns
        -------
        tuple of NetworkOutput
            Name, channels and last operation of each.

        Raises
        ------
        ModelError
            If the file cannot be read.
        """
        if self.kind == "onnx":
            found: tuple[NetworkOutput, ...] = _onnx_file(self.path).read_outputs(self.data, self.path)
            return found
        from emseg_core.model.torch_export import read_outputs

        return read_outputs(self.data, self.path)


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
    with reading(path):
        model = _read_file(path, contract) if path.suffix.lower() in KINDS else _read_package(path, contract)
        return model if contract is None else replace(model, norms=contract.norms)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a `ModelError` in place of what damaged files raise in the ``with`` block.

    Parameters
    ----------
    path
        Path of the network.

    Yields
    ------
    None
        While errors are translated.

    Raises
    ------
    ModelError
        If a file cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, zipfile.BadZipFile, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"the model {path} cannot be read ({said}): check it, or download it again") from error


def _read_file(path: Path, contract: Contract | None) -> ExternalModel:
    """Read a network and the settings beside it."""
    data, kind = read_document(path, MAX_MODEL_BYTES), KINDS[path.suffix.lower()]
    beside = path.with_name(f"{path.name}.toml")
    text, settings = _read_settings(beside)
    whole, others = data, []
    if kind == "onnx":
        whole, others = _onnx_file(str(path)).with_weights(data, str(path), partial(read_inside, path.parent))
    stated = Statement(settings, (), str(path), beside.name)
    return ExternalModel(kind, str(path), _digest(data, text, *others), whole, stated, contract)


def _read_package(path: Path, contract: Contract | None) -> ExternalModel:
    """Read a package and the settings beside it; only ONNX is accepted."""
    package = open_package(path)
    text, told = _read_settings(package.beside)
    found = translate(package.described, told, str(path), package.beside.name)
    data, read = package.network()
    whole, others = _onnx_file(str(path)).with_weights(data, str(path), read)
    settings = {**found.settings, **told}
    if told.get("output") in found.outputs:
        settings["output"] = found.outputs.index(told["output"])
    if "heads" in told:
        settings["heads"] = found.settings["heads"]
    stated = Statement(settings, found.postprocessing, str(path), package.beside.name)
    texts = (package.text, text) if text else (package.text,)
    return ExternalModel("onnx", str(path), _digest(data, *texts, *others), whole, stated, contract)


def _digest(*parts: bytes) -> str:
    """Return the SHA-256 of the SHA-256 of each part."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _onnx_file(path: str) -> Any:
    """Return the module that reads ONNX files, which needs a package that not every installation has."""
    try:
        from emseg_core.model import onnx_file
    except ImportError as error:
        raise ModelError(f"{path} is an ONNX file, which needs more packages ({error}): {install_hint('openvino')}") from error
    return onnx_file


def _read_settings(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Read settings, and check their names, types and values."""
    text = read_document(path) if path.exists() else b""
    settings = tomllib.loads(text.decode())
    kinds: dict[str, tuple[type, ...]] = {"channel": (int,), "output": (str, int), "inputs": (str, list)}
    kinds |= dict.fromkeys(("classes", "heads", "percentiles", "rescale", "clip", *TRIPLES), (list,))
    kinds |= dict.fromkeys(("mean", "deviation", "eps"), (int, float))
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ModelError(f"{path} has the unknown key {name!r}: use one of {', '.join(SETTINGS)}")
        if not isinstance(value, kind := kinds.get(name, (str,))) or isinstance(value, bool):
            raise ModelError(f"{name} in {path} is {value!r}, not {kind[0].__name__}: correct it")
    if (activation := settings.get("activation", "logits")) not in ACTIVATIONS["classes"]:
        raise ModelError(f"the activation is {activation!r}, but must be one of {', '.join(ACTIVATIONS['classes'])}")
    if "heads" in settings and (others := {"output", "activation", "channel", "classes"} & settings.keys()):
        raise ModelError(f"{path} has both heads and {min(others)}, which would be ignored: state it in the tables of heads")
    check_told(settings.get("inputs", TOLD[0]), path)
    for name, least in TRIPLES.items():
        numbers = settings.get(name, [least] * 3)
        if len(numbers) != 3 or any(type(number) is not int or number < least for number in numbers):
            raise ModelError(
                f"{name} in {path} is {numbers}, not three whole numbers [z, y, x] of at least {least}: correct it"
            )
    _check_intensities(settings, path)
    return text, settings


def _check_intensities(settings: Mapping[str, Any], path: Path) -> None:
    """Check the settings that say how intensities are normalised."""
    if settings.get("normalise", "volume") not in ("volume", "slice"):
        raise ModelError(f"normalise in {path} is {settings['normalise']!r}, not volume or slice: correct it")
    if ("mean" in settings) != ("deviation" in settings) or not settings.get("deviation", 1) > 0:
        raise ModelError(
            f"{path} has only one of mean and deviation, or a deviation that is not positive: give both, or neither"
        )
    ways = [name for name in ("normalise", "mean", "percentiles") if name in settings]
    if len(ways) > 1 or ("eps" in settings and ways == ["mean"]):
        raise ModelError(f"{path} has both {' and '.join((*ways, 'eps')[:2])}, of which one would be ignored: give one of them")
    for name in ("percentiles", "rescale", "clip"):
        if name in settings and not _are_numbers(settings[name], rising=name != "rescale"):
            which = "a factor other than 0 and what is added" if name == "rescale" else "two numbers, the lower one first"
            raise ModelError(f"{name} in {path} is {settings[name]!r}, not {which}: correct it")
    low, high = settings.get("percentiles", [0, 100])
    if low < 0 or high > 100 or settings.get("eps", 0) < 0:
        raise ModelError(f"{path} has percentiles outside of 0 to 100, or a negative eps: correct them")


def _are_numbers(values: Sequence[Any], *, rising: bool) -> bool:
    """Return whether these are two finite numbers, in rising order or with a first one that is not 0."""
    if len(values) != 2 or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return False
    return bool(values[0] < values[1] if rising else values[0] != 0)


def norms_refusal(name: str) -> ModelError:
    """Return the error for a network that has nothing to freeze.

    Parameters
    ----------
    name
        The network.

    Returns
    -------
    ModelError
        The error.
    """
    return ModelError(
        f"--norms is for networks that normalise over space, but {name} has no instance, group or layer norm over space that "
        "is known: leave it out"
    )


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
    heads = model.heads
    if not heads:
        output = model.outputs()[model.used_outputs[0]]
        meaning_of(output, model.stated, output.channels)  # refused before anything is computed
    network, shape, example, parameters = opened(model)
    inputs = inputs_of(model, shape)
    slices, channels = inputs.kind == "slices", inputs.kind == "channels"
    planar = len(shape) == 4 or slices  # slices are found to be those of a 2-D network first, and put along z afterwards

    def run(tiles: Any) -> Any:
        source = torch.from_numpy(tiles)[:, None]
        with torch.inference_mode():
            if slices:
                return torch.cat([_of_slices(network, tile[None], inputs) for tile in source]).float().numpy()
            source = _alike(source, inputs) if channels else source
            return apply_network(network, source, planar=planar, inputs=inputs).float().numpy()

    def cost(tile: Triple) -> tuple[int, int]:
        return cast("tuple[int, int]", network.cost(inputs.shape(tile[planar:])))

    told = {name: triple(model.settings[name]) for name in TRIPLES if name in model.settings}
    if slices:
        told = {name: _in_plane(name, value, inputs, model.stated.beside) for name, value in told.items()}
    found = probe(
        run,
        planar=planar,
        declared=_spatial(example, flat=planar),
        static=_spatial(shape, flat=planar) is not None,
        told=Told(**told, place=model.stated.beside),
        cost=cost,
        # arithmetic knows tiles that lie along all axes of an input
        tracing=None if inputs.stacked else lambda tile: network.trace(inputs.shape(tile[planar:])),
    )
    flops, alive = cost(found.least)
    voxels = math.prod(found.least)
    if heads:
        check_channels(heads, found.channels, model.path)
        activation = next((head.activation for head in heads if head.kind == "classes"), "none")
        facts: dict[str, Any] = {"classes": classes_in(heads), "activation": activation, "named_heads": heads}
    else:
        activation = meaning_of(output, model.stated, found.channels).activation
        facts = {
            "classes": classes_of(model, found.channels),
            "activation": activation,
            "channel": model.settings.get("channel"),
        }
    return (found.along_z(inputs) if slices else found).contract(
        planar=planar and not slices,
        inputs=inputs,
        parameters=parameters,
        flops_per_voxel=-(-flops // voxels),
        bytes_per_voxel=-(-alive // voxels),
        norms=model.norms,
        **facts,
    )


def inputs_of(model: ExternalModel, shape: Lengths) -> Inputs:
    """Return what the input channels of a network are.

    Parameters
    ----------
    model
        The network.
    shape
        Shape of its input; None for axes of any length.

    Returns
    -------
    Inputs
        The channels.

    Raises
    ------
    ModelError
        If nothing says what they are, or what is told does not fit.
    """
    told, channels, beside = model.settings.get("inputs"), shape[1] or 1, model.stated.beside
    stacked = False
    if len(shape) == 5 and channels == 1:
        outputs = model.outputs()
        stacked = {outputs[number].rank for number in model.used_outputs} == {4}
    count = shape[2] if stacked else channels
    what = "several slices" if count is None else f"{count} slices" if stacked else f"{channels} channel{'s'[: channels > 1]}"
    if stacked and told is None:
        raise ModelError(
            f"{model.path} labels one slice of several, as its output has four axes and its input five: write "
            f'inputs = "slices" into {beside} beside it if this is the middle one, or let it end with an axis z'
        )
    if told is None and channels > 1:
        slices = f'inputs = "slices" ({channels} neighbouring z slices, of which the middle one is labelled) or '
        fits = len(shape) == 4 and channels % 2
        raise ModelError(
            f"{model.path} takes {channels} channels, and nothing says what they are: write into {beside} beside it "
            f'{slices if fits else ""}inputs = "copies" (the grey value in each), or inputs = {[*range(channels)]} '
            "(channels of the volume, counted from 0, each normalised by itself)"
        )
    if told is None:
        return GREY
    if isinstance(told, list):
        if len(told) != channels:
            raise ModelError(
                f"{beside} says inputs = {told}, {len(told)} channels of the volume, but {model.path} takes {what}: "
                "name as many"
            )
        return Inputs("channels", channels, channels=tuple(told))
    if told == "slices" and channels > 1 and len(shape) == 5:
        raise ModelError(
            f'{beside} says inputs = "slices", but {model.path} is three-dimensional and takes {what}: write '
            'inputs = "copies" (the grey value in each), or leave it out'
        )
    if channels == 1 and (told == "copies" or not stacked):
        raise ModelError(
            f'{beside} says inputs = "{told}", but {model.path} takes 1 channel: leave it out'
            + (", or export it with a fixed number of channels" if shape[1] is None else "")
        )
    if told == "slices" and (count is None or count < 3 or count % 2 == 0):
        raise ModelError(
            f'{beside} says inputs = "slices", but {model.path} takes {what}: '
            "export it for an odd number "
            "of slices, 3 or more, of which it labels the middle one"
        )
    return Inputs(told, cast("int", count), stacked)


def _of_slices(network: Any, tile: Any, inputs: Inputs) -> Any:
    """Run a network on slices that are functions of one tile ``(1, 1, 1, y, x)``; return ``(1, channels, 1, y', x')``."""
    stack = _alike(tile, inputs)[0, :, 0]
    return network(stack.expand(inputs.shape(tuple(stack.shape[1:]))))[:, :, None]


def _alike(tiles: Any, inputs: Inputs) -> Any:
    """Return tiles ``(n, channels, z, y, x)`` whose channels are functions of the only one of these tiles.

    Each is another function of the same voxel: shifts and changes of a tile are those of every channel, and no difference
    between channels vanishes.
    """
    import torch

    return torch.cat([tiles if number == 0 else torch.sin((number + 1) * tiles) for number in range(inputs.count)], 1)


def _in_plane(name: str, told: Triple, inputs: Inputs, beside: str) -> Triple:
    """Return what is told of tiles of a network that takes slices, as of a 2-D network."""
    along_z = {"context": inputs.reach, "lattice": 1, "only_tile": inputs.count}[name]
    if told[0] != along_z:
        raise ModelError(
            f"{beside} says {name} = {list(told)}, but the network takes {inputs.count} slices: its first number, along z, is "
            f"{along_z}"
        )
    return triple((0 if name == "context" else 1, *told[1:]))


def _spatial(shape: tuple[int | None, ...], *, flat: bool) -> Triple | None:
    """Return the shape (z, y, x) of a tile, if that of an input says it."""
    spatial = (1, *shape[-2:]) if flat else shape[2:]
    return None if None in spatial else triple(cast("tuple[int, ...]", spatial))


def opened(model: ExternalModel) -> tuple[Any, Lengths, Lengths, int]:
    """Open a network to experiment with it.

    Parameters
    ----------
    model
        The network.

    Returns
    -------
    network : callable
        From normalised tiles to the output that is used.
    shape : tuple of int or None
        Shape of its input; None for axes of any length.
    example : tuple of int or None
        Shape of the input that it was exported with, as far as the file says.
    parameters : int
        Number of learned parameters.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    if model.kind == "onnx":
        network = open_onnx(model, threads=1)
        return network, network.shape, network.shape, network.parameters
    program, shape, example = open_exported(model)
    return program.eval(), shape, example, sum(weight.numel() for weight in program.parameters())


def open_exported(model: ExternalModel) -> tuple[Any, Lengths, Lengths]:
    """Open the network of an exported program.

    Parameters
    ----------
    model
        The network and its settings.

    Returns
    -------
    network : Prepared
        The network.
    shape : tuple of int or None
        Shape of its input; None for axes of any length.
    example : tuple of int or None
        Shape of the input that it was exported with.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    from emseg_core.model.adapter import Prepared
    from emseg_core.model.torch_export import read_exported

    network, shape, example = read_exported(model.data, model.path, model.used_outputs)
    network = network.frozen(model.norms, len(shape)) if model.norms else network
    return Prepared(network, model.settings.get("rescale"), model.settings.get("clip")), shape, example


def open_onnx(model: ExternalModel, threads: int, precision: Precision = "float32") -> Any:
    """Open the network of an ONNX file.

    Parameters
    ----------
    model
        The network and its settings.
    threads
        Number of threads.
    precision
        Type of the activations.

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
    prepared = model.settings.get("rescale"), model.settings.get("clip")
    return OnnxNetwork(model.data, model.path, threads, model.used_outputs, *prepared, precision, model.norms)


def classes_of(model: ExternalModel, channels: int) -> tuple[str, ...]:
    """Return the names of the classes of a network.

    Parameters
    ----------
    model
        The network.
    channels
        Number of channels of its output.

    Returns
    -------
    tuple of str
        The stated names, or numbers.

    Raises
    ------
    ModelError
        If the settings name another number of classes.
    """
    single = channels == 1 or model.settings.get("channel") is not None
    count = 2 if single else channels
    names = tuple(map(str, model.settings.get("classes", ())))
    if len(names) not in (0, count):
        raise ModelError(
            f"{model.path} has {count} classes, but its settings name {len(names)} ({', '.join(names)}): name each"
        )
    usual = ("background", "foreground") if single else tuple(f"class {number}" for number in range(count))
    return names or usual
