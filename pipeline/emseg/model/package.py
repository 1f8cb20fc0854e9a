"""Packages of BioImage.IO, as zip files or folders: a network, and ``rdf.yaml``, which describes it.

Only networks that are data are taken; weights that need the code of their author, or are unpickled, are refused.
https://bioimage.io/docs, formats 0.4 and 0.5.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from emseg.documents import MOST_BYTES, read_document
from emseg.errors import ModelError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
"""Names of the description in a package."""
MOST_MODEL_BYTES = 2**31
"""Most bytes of a network in ONNX, as Protocol Buffers have it, and of an exported program."""
MOST_VALUES = 10_000
"""Most values in a description, which has some hundreds."""
DEEPEST = 50
"""Most levels of these."""


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
        read: Callable[[str, int], bytes] = partial(_of_folder, folder)
    else:
        archive = zipfile.ZipFile(path)
        names = [name for name in DESCRIPTIONS if name in archive.namelist()]
        read = partial(_of_archive, archive)
    if not names:
        raise ModelError(f"{path} is no package of BioImage.IO: it has no {' or '.join(DESCRIPTIONS)}")
    text = read(names[0], MOST_BYTES)
    described = _parsed(text, names[0])
    weights = described["weights"]
    if "onnx" in weights:
        return read(_local(weights["onnx"]["source"]), MOST_MODEL_BYTES), text, _told(described)
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


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    """A description, which may say the same twice by an alias, but not again and again.

    Raises
    ------
    ValueError
        If it is no text, no YAML, or what it says is too much or too deep to be looked at.
    """
    try:
        loader = _Loader(text.decode())
        try:
            described = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not plain YAML: {error}") from error
    if not isinstance(described, dict):
        raise ValueError(f"{name} holds no mapping")
    return described


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML of a bounded number of values, those behind aliases counted each time, and depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._seen = 0
        self._sizes: dict[int, int] = {}
        """Number of values in each node that has ended."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, of which PyYAML makes those inside in the same way."""
        before, alias = self._seen, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEEPEST:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise ValueError("a value holds itself")
        self._seen = before + self._sizes[id(node)] if alias else self._seen + 1
        if self._seen > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")
        self._sizes[id(node)] = self._seen - before
        return node


def _of_archive(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of a zip file, of no more bytes than `most`."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others decompress further than they are asked
        raise ValueError(f"{name} is compressed in an unusual way")
    if info.file_size > most:
        raise ValueError(f"{name} has {info.file_size} bytes, more than {most}")
    return archive.read(info)  # no more than it says


def _of_folder(folder: Path, name: str, most: int) -> bytes:
    """A file of a folder of no more bytes than `most`, not one that a link leads to outside."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ModelError(f"{folder / name} leads out of the package: download the whole package")
    return read_document(file, most)


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
