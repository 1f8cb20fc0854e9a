"""Packages of BioImage.IO, as zip files or folders: a network, and ``rdf.yaml``, which describes it.

Only networks that are data are taken; weights that need the code of their author, or are unpickled, are refused.
https://bioimage.io/docs, formats 0.4 and 0.5.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from emseg.errors import ModelError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
"""Names of the description in a package."""


def read_package(path: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """The ONNX network in a package, its description, and what that tells.

    Raises
    ------
    ModelError
        If it holds no network that is data alone, or one elsewhere, or does to images what is not known here.
    OSError, ValueError, KeyError
        If it is damaged.
    """
    folder = path.parent if path.name in DESCRIPTIONS else path
    if folder.is_dir():
        names = [name for name in DESCRIPTIONS if (folder / name).is_file()]
        read: Callable[[str], bytes] = partial(_of_folder, folder)
    else:
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        names = [name for name in DESCRIPTIONS if name in archive.namelist()]
        read = archive.read
    if not names:
        raise ModelError(f"{path} is no package of BioImage.IO: it has no {' or '.join(DESCRIPTIONS)}")
    text = read(names[0])
    try:
        described = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{names[0]} is not plain YAML: {error}") from error
    weights = described["weights"]
    if "onnx" in weights:
        return read(_local(weights["onnx"]["source"])), text, _told(described)
    raise ModelError(
        f"the package {path} has weights as {', '.join(weights)}, which run code when they are loaded: of a package only onnx "
        "is taken. Convert it with `bioimageio add-weights PACKAGE OUT onnx` of bioimageio.core, or use torch.export"
    )


def _local(source: Any) -> str:
    """Name of a file within a package."""
    name = str(source.get("path", "") if isinstance(source, Mapping) else source)
    if "://" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelError(f"the weights of the package are at {name!r}, not in it: download the whole package")
    return name


def _of_folder(folder: Path, name: str) -> bytes:
    """A file of a folder, not one that a link leads to outside."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ModelError(f"{folder / name} leads out of the package: download the whole package")
    return file.read_bytes()


def _told(described: Mapping[str, Any]) -> dict[str, Any]:
    """What the description of a package tells, of formats 0.4 and 0.5."""
    told: dict[str, Any] = {}
    source, output = described["inputs"][0], described["outputs"][0]
    if len(described["inputs"]) != 1:
        raise ModelError(f"the network of the package has {len(described['inputs'])} inputs, but a volume is one")
    for step in source.get("preprocessing") or ():
        told |= _normalised(str(step.get("id", step.get("name"))), step.get("kwargs") or {})
    names = _channel_names(output)
    if names and len(names) > 1:
        told["classes"] = names
    elif names:
        told["classes"] = ["background", names[0]]
    return told


def _channel_names(output: Mapping[str, Any]) -> list[str]:
    """Names of the channels of an output; numbered ones are left out."""
    for axis in output.get("axes") or ():
        if isinstance(axis, Mapping) and axis.get("type") == "channel":
            names = axis.get("channel_names") or []
            numbered = all(str(name).removeprefix("channel").isdecimal() for name in names)
            return [] if isinstance(names, str) or numbered else [str(name) for name in names]
    return []


def _normalised(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a step before the network does to intensities."""
    fixed = settings.get("mean"), settings.get("std")
    match name:
        case "zero_mean_unit_variance" | "fixed_zero_mean_unit_variance" if None not in fixed:
            return {"mean": float(_one(fixed[0])), "deviation": float(_one(fixed[1]))}
        case "zero_mean_unit_variance" | "ensure_dtype":
            return {}
        case "scale_linear":
            gain, offset = float(_one(settings.get("gain", 1.0))), float(_one(settings.get("offset", 0.0)))
            return {"mean": -offset / gain, "deviation": 1 / gain}
    raise ModelError(
        f"the package prepares images by {name!r}, which is not known here: take the network out of it, and tell how it was "
        "trained in a file beside, with normalise, or mean and deviation"
    )


def _one(value: Any) -> Any:
    """A number, or the one in a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
