"""Read BioImage.IO packages: zip files or folders with a network and its description, ``rdf.yaml``.

Only networks stored as pure data are accepted; weights that need the code of their author, or must be unpickled, are
rejected. The formats are 0.4 and 0.5, https://bioimage.io/docs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from emseg_core.documents import MAX_DOCUMENT_BYTES, read_document
from emseg_core.errors import ModelError

DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")
"""File names of a package's description."""
MAX_MODEL_BYTES = 2**31
"""Maximum size of an ONNX file, which is the limit of Protocol Buffers, and of an exported program."""
MAX_VALUES = 10_000
"""Maximum number of values in a description; usual ones have some hundreds."""
MAX_DEPTH = 50
"""Maximum nesting depth of a description."""


def read_package(path: Path) -> tuple[bytes, bytes, dict[str, Any]]:
    """Read the ONNX network of a package and its description.

    Parameters
    ----------
    path
        Path of a zip file or a folder.

    Returns
    -------
    data : bytes
        The ONNX file.
    text : bytes
        The description file.
    settings : dict of str to Any
        Settings read from it, by names from `emseg_core.model.external_model.SETTINGS`.

    Raises
    ------
    ModelError
        If it has no weights in ONNX, its weights are outside the package, or its preprocessing is not supported.
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
        raise ModelError(f"{path} is not a BioImage.IO package: it has no {' or '.join(DESCRIPTIONS)}")
    text = read(names[0], MAX_DOCUMENT_BYTES)
    described = _parsed(text, names[0])
    weights = described["weights"]
    if "onnx" in weights:
        return read(_local(weights["onnx"]["source"]), MAX_MODEL_BYTES), text, _settings_of(described)
    raise ModelError(
        f"the package {path} has weights as {', '.join(weights)}, which run code when loaded, and only onnx is accepted: "
        "convert it with `bioimageio add-weights PACKAGE OUT onnx` of bioimageio.core, or use torch.export"
    )


def _local(source: Any) -> str:
    """Return the name of a file, which must lie within the package."""
    name = str(source.get("path", "") if isinstance(source, Mapping) else source)
    if "://" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelError(f"the weights of the package are at {name!r}, outside of it: download the whole package")
    return name


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    """Parse a description; aliases are allowed as long as their expansion stays within the limits.

    Raises
    ------
    ValueError
        If it is not text or not YAML, or has too many values or levels.
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
        raise ValueError(f"{name} is not a mapping")
    return described


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader of plain YAML with a limited depth and number of values; aliased values are counted each time."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._seen = 0
        self._sizes: dict[int, int] = {}
        """Number of values in each complete node."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node and check the limits; PyYAML composes nested nodes through this method as well.

        Returns
        -------
        yaml.Node
            The node.

        Raises
        ------
        ValueError
            If there are too many values or levels, or a value contains itself.
        """
        before, alias = self._seen, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:
            raise ValueError("a value contains itself")
        self._seen = before + self._sizes[id(node)] if alias else self._seen + 1
        if self._seen > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        self._sizes[id(node)] = self._seen - before
        return node


def _of_archive(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes` bytes from a zip file."""
    info = archive.getinfo(name)
    # Decompressors of other methods may produce more bytes than they are asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unusual way")
    if info.file_size > max_bytes:
        raise ValueError(f"{name} has {info.file_size} bytes, more than {max_bytes}")
    return archive.read(info)  # at most info.file_size bytes


def _of_folder(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes` bytes from a folder, following no link that leads out of it."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ModelError(f"{folder / name} is a link that leads out of the package: download the whole package")
    return read_document(file, max_bytes)


def _settings_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """Read settings from a description of format 0.4 or 0.5."""
    settings: dict[str, Any] = {}
    source, output = described["inputs"][0], described["outputs"][0]
    if len(described["inputs"]) != 1:
        raise ModelError(
            f"the network of the package has {len(described['inputs'])} inputs, but a volume is 1 input: use a network with 1"
        )
    for step in source.get("preprocessing") or ():
        settings |= _normalised(str(step.get("id", step.get("name"))), step.get("kwargs") or {})
    if names := _channel_names(output):
        settings["classes"] = names if len(names) > 1 else ["background", *names]
    return settings


def _channel_names(output: Mapping[str, Any]) -> list[str]:
    """Return the channel names of an output; none if they are just numbered."""
    for axis in output.get("axes") or ():
        if isinstance(axis, Mapping) and axis.get("type") == "channel":
            names = axis.get("channel_names") or []
            numbered = all(str(name).removeprefix("channel").isdecimal() for name in names)
            return [] if isinstance(names, str) or numbered else [str(name) for name in names]
    return []


def _normalised(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a preprocessing step into settings."""
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
        f"the package preprocesses images with {name!r}, which is not supported: extract the network and describe its "
        "normalisation in FILE.toml beside it, with normalise, or mean and deviation"
    )


def _one(value: Any) -> Any:
    """Return a number, or the only one in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
