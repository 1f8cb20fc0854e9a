"""Run the test tensors of a BioImage.IO package as a run would, and compare with the outputs that its author got.

This shows whether preprocessing, network, output and postprocessing are taken as the author meant them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg_core.errors import ModelError
from emseg_core.model.external_model import ExternalModel, classes_of, inputs_of, is_external, opened, read_external, reading
from emseg_core.model.output import index_of, meaning_of
from emseg_core.model.package import Package, open_package
from emseg_core.normalise import MIN_RELATIVE_DEVIATION, normalised
from emseg_core.specs.contract import Contract

RELATIVE_TOLERANCE = ABSOLUTE_TOLERANCE = 1e-3
MISMATCHES_PER_MILLION = 100
"""Tolerances if a package states none; the defaults of the format."""
WEIGHTS = "onnx"


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """How an output compares with the test output of the package."""

    output: str
    """Name of the output."""
    values: int
    """Number of values compared."""
    difference: float
    """Largest difference."""
    mismatches: int
    """Number of values that differ by more than the tolerances."""
    relative: float
    absolute: float
    per_million: float
    """Tolerances: a value may differ by ``absolute + relative * value``, and of a million values so many may differ by more."""

    @property
    def holds(self) -> bool:
        """Whether the output is the same within the tolerances."""
        return self.mismatches * 1e6 <= self.per_million * self.values

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "holds": self.holds}

    def __str__(self) -> str:
        """Describe the result in one line."""
        return (
            f"output {self.output}: {'the same' if self.holds else 'DIFFERENT'}, largest difference {self.difference:.3g}; "
            f"{self.mismatches} of {self.values} values differ by more than {self.absolute:g} + {self.relative:g} x value "
            f"({self.per_million:g} per million may)"
        )


def check_package(path: Path) -> TensorCheck:
    """Compare the output that is used of a package with its test output.

    Parameters
    ----------
    path
        A package.

    Returns
    -------
    TensorCheck
        The comparison.

    Raises
    ------
    ModelError
        If it is not a package, has no test tensors, or cannot be used.
    """
    if not is_external(path) or path.suffix.lower() in (".onnx", ".pt2"):
        raise ModelError(f"{path} is not a BioImage.IO package, and only packages have test tensors: give a package")
    model = read_external(path)
    if model.heads:
        raise ModelError(
            f"{path} has heads in {model.stated.beside}, and its test tensors are compared without them: move it away"
        )
    index = index_of(model.outputs(), model.stated)
    with reading(path):
        package = open_package(path)
        source, wanted = _tensor(package, "inputs", 0), _tensor(package, "outputs", index)
        described = package.described["outputs"][index]
        name = str(described.get("id", described.get("name", index)))
        relative, absolute, per_million = _tolerances(package.described, name)
    found = _computed(model, source)
    channel = model.settings.get("channel")
    if channel is not None and found.shape[1] == 1:
        wanted = wanted[:, channel : channel + 1]
    if found.shape != wanted.shape:
        raise ModelError(
            f"the network of {path} turns its test input {source.shape} into {found.shape}, but its test output {name} has the "
            f"shape {wanted.shape}: ask its author for a package that agrees with itself"
        )
    differences = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    beyond = ~(differences <= absolute + relative * np.abs(wanted.astype(np.float64)))
    return TensorCheck(name, wanted.size, float(differences.max(initial=0)), int(beyond.sum()), relative, absolute, per_million)


def _tensor(package: Package, kind: str, number: int) -> NDArray[Any]:
    """Read a test tensor of format 0.4 or 0.5."""
    older = package.described.get(f"test_{kind}") or ()
    entries = [entry.get("test_tensor") for entry in package.described[kind]]
    named = older[number] if number < len(older) else entries[number] if number < len(entries) else None
    if named is None:
        raise ModelError(f"the package {package.path} has no test tensors for its {kind}: nothing can be compared")
    return _array(package.file(named), f"the test tensor {named} of {package.path}")


def _array(data: bytes, name: str) -> NDArray[Any]:
    """Read an array in NumPy's format whose header is consistent with its size; nothing is unpickled."""
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"it has the unknown version {version}")
        shape, _, dtype = headers[version](file)
        if dtype.hasobject or dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
            raise ValueError(f"{dtype} in shape {shape} does not take {len(data) - file.tell()} bytes")
        array: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ModelError(f"{name} is not a readable array ({error}): download the package again") from error
    return array


def _computed(model: ExternalModel, source: NDArray[Any]) -> NDArray[Any]:
    """Run a network on one tile, its test input; the result is what the package says that the output is."""
    import torch  # takes seconds

    from emseg_core.model.adapter import apply_network, to_prediction

    network, shape, _, _ = opened(model)
    inputs = inputs_of(model, shape)
    if source.ndim != len(shape) or source.shape[1] != (1 if inputs.stacked else inputs.count):
        raise ModelError(
            f"the test input of {model.path} has the shape {source.shape}, but the network takes {shape}: use another"
        )
    if inputs.kind == "copies" and not (source == source[:, :1]).all():
        raise ModelError(
            f"the test input of {model.path} has the shape {source.shape} and channels that differ, but {model.stated.beside} "
            'says inputs = "copies": correct it, or use another test input'
        )
    planar = source.ndim == 4 and inputs.kind != "slices"
    if inputs.kind == "slices":
        tiles = source if inputs.stacked else source[:, None]
    else:
        tiles = source[:, :, None] if planar else source
        tiles = tiles if inputs.kind == "channels" else tiles[:, :1]
    ready = np.stack([[_normalised(channel, model.settings) for channel in tile] for tile in tiles])
    with torch.inference_mode():
        output = apply_network(network, torch.from_numpy(ready), planar=planar, inputs=inputs).float()
    used = model.outputs()[index_of(model.outputs(), model.stated)]
    meaning = meaning_of(used, model.stated, output.shape[1])
    contract = Contract(
        classes=classes_of(model, output.shape[1]),
        planar=planar,
        context=(0, 0, 0),
        lattice=(1, 1, 1),
        least=(1, 1, 1),
        crop=(0, 0, 0),
        activation=meaning.activation,
        local=True,
        parameters=0,
        flops_per_voxel=0,
        bytes_per_voxel=0,
        channel=model.settings.get("channel"),
    )
    logits = to_prediction(output, contract)
    single = meaning.activation.startswith("sigmoid")
    if "binarize" in model.stated.postprocessing:
        found = logits.argmax(dim=1, keepdim=True)
    elif model.stated.postprocessing or meaning.activation in ("softmax", "sigmoid"):
        found = logits.softmax(dim=1)[:, int(single) :]
    else:
        found = logits[:, int(single) :]
    array: NDArray[Any] = found.numpy()
    return array[:, :, 0] if planar or inputs.kind == "slices" else array


def _normalised(values: NDArray[Any], settings: Mapping[str, Any]) -> NDArray[np.float32]:
    """Normalise a test input ``(z, y, x)`` as a volume would be, by all of its voxels."""
    numbers = values.astype(np.float64)
    if "mean" in settings:
        mean, deviation = np.full(len(values), settings["mean"]), np.full(len(values), settings["deviation"])
    else:
        axes = (1, 2) if settings.get("normalise") == "slice" else None
        mean, deviation = numbers.mean(axis=axes), numbers.std(axis=axes)
        if "percentiles" in settings:
            mean, high = np.percentile(values, settings["percentiles"])
            deviation = high - mean
        constant = deviation <= MIN_RELATIVE_DEVIATION * np.abs(mean)
        deviation = np.where(constant, 1, deviation + settings.get("eps", 0))
        mean, deviation = (np.broadcast_to(numbers, len(values)) for numbers in (mean, deviation))
    return normalised(values, mean.astype(np.float32), deviation.astype(np.float32))


def _tolerances(described: Mapping[str, Any], output: str) -> tuple[float, float, float]:
    """Return the relative and absolute tolerance and the mismatches per million, the first that a package states for this."""
    config = (described.get("config") or {}).get("bioimageio") or {}
    entries: Sequence[Mapping[str, Any]] = config.get("reproducibility_tolerance") or ()
    for entry in entries:
        outputs, formats = entry.get("output_ids") or (output,), entry.get("weights_formats") or (WEIGHTS,)
        if output in outputs and WEIGHTS in formats:
            return (
                float(entry.get("relative_tolerance", RELATIVE_TOLERANCE)),
                float(entry.get("absolute_tolerance", ABSOLUTE_TOLERANCE)),
                float(entry.get("mismatched_elements_per_million", MISMATCHES_PER_MILLION)),
            )
    return RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE, MISMATCHES_PER_MILLION
