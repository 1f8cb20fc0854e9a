"""Translate the description of a BioImage.IO package, of format 0.4 or 0.5, to settings.

What cannot be done as described is refused by its name. Statistics of a sample are those of the whole volume here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emseg_core.errors import ModelError
from emseg_core.model.told_heads import numbered

INTENSITIES = ("normalise", "mean", "deviation", "percentiles", "eps", "rescale", "clip")
"""Settings of intensities; one of them beside a package replaces all that the package says of intensities."""
LAYOUTS = ("bcyx", "bczyx")
"""Orders of axes that networks may have: batch, channel, and those of space."""
THRESHOLD = 0.5
"""The probability from which a voxel belongs to the second of two classes."""
DEFAULT_EPS = 1e-6
"""What is added to a measured deviation or range; the default of the format."""
PREPROCESSING = (
    "scale_linear", "fixed_zero_mean_unit_variance", "zero_mean_unit_variance", "scale_range", "clip", "ensure_dtype",
)  # fmt: skip
POSTPROCESSING = ("sigmoid", "softmax", "binarize", "ensure_dtype")
_PARAMETERS = {
    "scale_linear": ("gain", "offset", "axes", "axis"),
    "fixed_zero_mean_unit_variance": ("mean", "std", "axis"),
    "zero_mean_unit_variance": ("mode", "axes", "mean", "std", "eps"),
    "scale_range": ("mode", "axes", "min_percentile", "max_percentile", "eps", "reference_tensor"),
    "clip": ("min", "max"),
    "ensure_dtype": ("dtype",),
    "sigmoid": (),
    "softmax": ("axis",),
    "binarize": ("threshold",),
}
"""Known steps, and those of their parameters that are known."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a package says of its network."""

    settings: dict[str, Any]
    """Settings, by names from `emseg_core.model.external_model.SETTINGS`."""
    postprocessing: tuple[str, ...]
    """Steps applied to the output: ``sigmoid`` or ``softmax``, and ``binarize``."""
    outputs: tuple[str, ...]
    """Names of the outputs, in the order of those of the network."""


def translate(described: Mapping[str, Any], told: Mapping[str, Any], path: str, beside: str) -> Description:
    """Translate a description.

    Parameters
    ----------
    described
        The parsed description.
    told
        Settings beside the package, which win.
    path
        Path of the package, for messages.
    beside
        Name of the file with settings beside it, for messages.

    Returns
    -------
    Description
        Settings and postprocessing.

    Raises
    ------
    ModelError
        If the network has several inputs, or is used in a way that is not supported.
    """
    inputs, outputs = described["inputs"], described["outputs"]
    if len(inputs) != 1:
        raise ModelError(
            f"the network of the package {path} has {len(inputs)} inputs, but a volume is 1 input: use a network with 1"
        )
    names = tuple(_name(output, number) for number, output in enumerate(outputs))
    source, settings = inputs[0], dict[str, Any]()
    if "heads" in told:
        settings["heads"] = numbered(told["heads"], names, beside)
        used = sorted({table["output"] for table in settings["heads"]})
    else:
        used = [_index(names, told, path, beside)]
        settings |= {"output": used[0]} if len(outputs) > 1 else {}
    axes, *_ = [_check_axes(source, outputs[number], path) for number in used]
    if not any(name in told for name in INTENSITIES):
        chain = _Chain(path, beside, [_name(source, 0)], axes)
        for step in source.get("preprocessing") or ():
            chain.add(*_step(step))
        settings |= chain.settings()
    if "heads" in told:  # which say what the network itself gives
        return Description(settings, (), names)
    output = outputs[used[0]]
    if classes := _channel_names(output):
        channel = told.get("channel")
        if channel is not None and 0 <= channel < len(classes):
            classes = [classes[channel]]
        settings["classes"] = classes if len(classes) > 1 else ["background", *classes]
    steps = () if "activation" in told else _postprocessing(output, path, beside)
    return Description(settings, steps, names)


def _name(tensor: Mapping[str, Any], number: int) -> str:
    """Return the name of an input or output."""
    return str(tensor.get("id", tensor.get("name", number)))


def _index(names: Sequence[str], told: Mapping[str, Any], path: str, beside: str) -> int:
    """Return which of the outputs is used."""
    asked = told.get("output")
    if asked is None and len(names) > 1:
        raise ModelError(
            f"the package {path} has {len(names)} outputs, {', '.join(names)}, and nothing says which one to use: write a line "
            f'such as output = "{names[0]}" into {beside} beside it'
        )
    index = 0 if asked is None else asked if isinstance(asked, int) else names.index(asked) if asked in names else -1
    if not 0 <= index < len(names):
        raise ModelError(f"the package {path} has the outputs {', '.join(names)}, but {beside} selects {asked!r}: select one")
    return index


def _step(step: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the name and parameters of a step of processing."""
    given = {key: value for key, value in (step.get("kwargs") or {}).items() if value is not None}
    return str(step.get("id", step.get("name"))), given


def _unknown(name: str, given: Mapping[str, Any], known: Sequence[str]) -> str:
    """Return what is not known of a step; an empty text if all of it is."""
    if name not in known:
        return f"{name!r}"
    others = [key for key in given if key not in _PARAMETERS[name]]
    return f"{name!r} with {', '.join(others)}" if others else ""


# -- Axes -----------------------------------------------------------------------------------------------------------


def _check_axes(source: Mapping[str, Any], output: Mapping[str, Any], path: str) -> str:
    """Check that input and output are images of one size; return the axes of the input, or nothing if it has none."""
    layouts = [_layout(tensor) for tensor in (source, output)]
    for what, layout in zip(("input", "output"), layouts, strict=True):
        if layout and layout not in LAYOUTS:
            raise ModelError(
                f"the {what} of the package {path} has the axes {layout}, but a network has {' or '.join(LAYOUTS)}: "
                "export it with these axes"
            )
    if all(layouts) and layouts[0] != layouts[1]:
        raise ModelError(
            f"the input of the package {path} has the axes {layouts[0]}, its output {layouts[1]}: use a network that labels "
            "the voxels of its input"
        )
    scales = [*_scales_by_length(source, output), *_scales_by_shape(output)]
    if any(scale != 1 for scale in scales):
        raise ModelError(
            f"the output of the package {path} has other voxels than its input (scale {scales}): use a network that labels "
            "each voxel, or interpolate the output to the size of the input at the end of the network"
        )
    if others := _references(output) - {_name(source, 0)}:
        raise ModelError(
            f"the size of the output of the package {path} depends on {', '.join(sorted(others))}, but its input is "
            f"{_name(source, 0)}: use a network whose output has the size of its input"
        )
    return layouts[0]


def _layout(tensor: Mapping[str, Any]) -> str:
    """Return the axes of a tensor as letters; nothing if it has no axes."""
    axes = tensor.get("axes") or ""
    if isinstance(axes, str):
        return axes
    letters = {"batch": "b", "channel": "c", "time": "t", "index": "i"}
    return "".join(letters.get(axis["type"], str(axis.get("id"))) for axis in axes)


def _spatial(tensor: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the axes of space of a tensor of format 0.5."""
    axes = tensor.get("axes") or ()
    return [] if isinstance(axes, str) else [axis for axis in axes if axis["type"] == "space"]


def _scales_by_length(source: Mapping[str, Any], output: Mapping[str, Any]) -> list[float]:
    """Return the voxel size of the output as a multiple of that of the input, by axis, for format 0.5."""
    sizes = {axis.get("id"): float(axis.get("scale", 1)) for axis in _spatial(source)}
    return [float(axis.get("scale", 1)) / sizes.get(axis.get("id"), 1.0) for axis in _spatial(output)]


def _scales_by_shape(output: Mapping[str, Any]) -> list[float]:
    """Return the factors by which the output is longer than the input, by axis, for format 0.4."""
    shape = output.get("shape")
    if not isinstance(shape, Mapping):
        return []
    return [float(scale) for axis, scale in zip(_layout(output), shape["scale"], strict=True) if axis in "zyx"]


def _references(output: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors on whose size that of the output depends."""
    named = [axis["size"].get("tensor_id") for axis in _spatial(output) if isinstance(axis.get("size"), Mapping)]
    named += [output["shape"].get("reference_tensor")] if isinstance(output.get("shape"), Mapping) else []
    return {str(name) for name in named if name is not None}


def _channel_names(output: Mapping[str, Any]) -> list[str]:
    """Return the channel names of an output; none if they are just numbered."""
    for axis in output.get("axes") or ():
        if isinstance(axis, Mapping) and axis.get("type") == "channel":
            names = axis.get("channel_names") or []
            numbered = all(str(name).removeprefix("channel").isdecimal() for name in names)
            return [] if isinstance(names, str) or numbered else [str(name) for name in names]
    return []


# -- Processing -----------------------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """Steps of preprocessing, composed: ``(value - mean) / deviation``, then clipped.

    The value is a grey value, or what statistics of the volume make of it.
    """

    path: str
    beside: str
    names: Sequence[str]
    """Names of the input."""
    axes: str
    measured: dict[str, Any] = field(default_factory=dict)
    """Settings of the statistics, if there are any."""
    mean: float = 0.0
    deviation: float = 1.0
    limits: tuple[float, float] | None = None

    def add(self, name: str, given: Mapping[str, Any]) -> None:
        """Append a step."""
        if unknown := _unknown(name, given, PREPROCESSING):
            raise self._refusal(unknown)
        fixed = "mean" in given and "std" in given and given.get("mode", "fixed") == "fixed"
        match name:
            case "scale_linear":
                gain, offset = self._number(name, given, "gain", 1.0), self._number(name, given, "offset", 0.0)
                if gain == 0:
                    raise self._refusal(f"{name!r} with the gain 0")
                self._standardise(-offset / gain, 1 / gain)
            case "zero_mean_unit_variance" | "fixed_zero_mean_unit_variance" if fixed:
                deviation = self._number(name, given, "std", 1.0)
                if deviation <= 0:
                    raise self._refusal(f"{name!r} with the deviation {deviation}")
                self._standardise(self._number(name, given, "mean", 0.0), deviation)
            case "zero_mean_unit_variance" if "mean" not in given and "std" not in given and given.get("mode") != "fixed":
                self._measure(name, given, {"normalise": "volume"})
            case "scale_range":
                low, high = (self._number(name, given, f"{end}_percentile", usual) for end, usual in (("min", 0), ("max", 100)))
                if not 0 <= low < high <= 100 or str(given.get("reference_tensor", self.names[0])) not in self.names:
                    raise self._refusal(f"{name!r} with {dict(given)}")
                self._measure(name, given, {"percentiles": [low, high]})
            case "clip":
                low, high = (self._number(name, given, *end) for end in (("min", -math.inf), ("max", math.inf)))
                there = self.limits or (-math.inf, math.inf)
                self.limits = min(max(there[0], low), high), min(max(there[1], low), high)
            case "ensure_dtype":
                self._check_type(str(given.get("dtype")))
            case _:
                raise self._refusal(f"{name!r} with {dict(given)}")

    def settings(self) -> dict[str, Any]:
        """Return the settings that do the same."""
        found = dict(self.measured)
        if not found:
            found = {"mean": self.mean, "deviation": self.deviation}
        elif (self.mean, self.deviation) != (0, 1):
            found["rescale"] = [1 / self.deviation, -self.mean / self.deviation]
        if self.limits is not None:
            found["clip"] = list(self.limits)
        return found

    def _standardise(self, mean: float, deviation: float) -> None:
        """Append ``(value - mean) / deviation``; the deviation may be negative, which inverts an image."""
        self.mean, self.deviation = self.mean + mean * self.deviation, self.deviation * deviation
        if self.limits is not None:
            low, high = sorted((limit - mean) / deviation for limit in self.limits)
            self.limits = low, high

    def _measure(self, name: str, given: Mapping[str, Any], settings: dict[str, Any]) -> None:
        """Append a step with statistics; steps before it may only be a positive factor and an offset, which cancel."""
        if self.measured or self.limits is not None or self.deviation < 0:
            raise self._refusal(f"{name!r} after a step that clips, inverts or measures")
        if given.get("mode", "per_sample") not in ("per_sample", "per_dataset"):
            raise self._refusal(f"{name!r} with the mode {given['mode']!r}")
        over = given.get("axes")
        if over is not None and not set("zyx" if "z" in self.axes else "yx") <= set(over):
            raise self._refusal(f"{name!r} over the axes {over}, not over the whole image")
        eps = self._number(name, given, "eps", DEFAULT_EPS) * self.deviation
        if eps < 0:
            raise self._refusal(f"{name!r} with eps {given['eps']}")
        self.measured, self.mean, self.deviation = {**settings, "eps": eps}, 0.0, 1.0

    def _check_type(self, dtype: str) -> None:
        """Accept types that keep values: any as the first step, as voxels are stored, and floats after that."""
        untouched = not self.measured and (self.mean, self.deviation, self.limits) == (0, 1, None)
        if not dtype.startswith("float") and not (untouched and "int" in dtype):
            raise self._refusal(f"'ensure_dtype' with {dtype}")

    def _number(self, name: str, given: Mapping[str, Any], key: str, usual: float) -> float:
        """Return a parameter, which is a finite number or a list of one."""
        value = given.get(key, usual)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, bool) or not isinstance(value, int | float) or (key in given and not math.isfinite(value)):
            raise self._refusal(f"{name!r} with {key} {value!r}")
        return float(value)

    def _refusal(self, what: str) -> ModelError:
        return ModelError(
            f"the package {self.path} preprocesses images with {what}, which is not supported: describe its normalisation in "
            f"{self.beside} beside it, with normalise, with percentiles, or with mean and deviation"
        )


def _postprocessing(output: Mapping[str, Any], path: str, beside: str) -> tuple[str, ...]:
    """Return the steps applied to an output that change what it means."""
    steps: list[str] = []
    for name, given in map(_step, output.get("postprocessing") or ()):
        unknown = _unknown(name, given, POSTPROCESSING)
        match name:
            case "ensure_dtype":
                fits = "binarize" in steps or str(given.get("dtype")).startswith("float")
            case "softmax":
                fits = not steps and given.get("axis", "channel") in ("channel", "c")
            case "sigmoid":
                fits = not steps
            case _:
                fits = "softmax" not in steps and "binarize" not in steps and given.get("threshold") == THRESHOLD
        if unknown or not fits:
            raise ModelError(
                f"the package {path} postprocesses its output with {unknown or f'{name!r} {dict(given)}'}"
                f"{f' after {steps}' if steps else ''}, which is not supported: write activation = into {beside} beside it, "
                "with what the network itself gives; it then replaces all postprocessing"
            )
        if name != "ensure_dtype":
            steps.append(name)
    return tuple(steps)
