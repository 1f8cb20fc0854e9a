"""Read BioImage.IO packages: zip files or folders with a network and its description, ``rdf.yaml``.

Only networks stored as pure data are accepted; weights that need the code of their author, or must be unpickled, are
rejected. The formats are 0.4 and 0.5, https://bioimage.io/docs.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Package:
    """An open package."""

    path: Path
    """The zip file or folder."""
    text: bytes = field(repr=False)
    """Its description file."""
    described: Mapping[str, Any] = field(repr=False)
    """The parsed description."""
    read: Callable[[str, int], bytes] = field(repr=False)
    """Reads a file of the package, by its name in it, of at most so many bytes."""

    @property
    def beside(self) -> Path:
        """Path of the file with settings beside the package."""
        return self.path.with_name(f"{self.path.name}.toml")

    def network(self) -> tuple[bytes, Callable[[str, int], bytes]]:
        """Read the ONNX network.

        Returns
        -------
        data : bytes
            The ONNX file.
        read : callable
            Reads a file by its name relative to the ONNX file.

        Raises
        ------
        ModelError
            If there are no weights in ONNX, they are outside the package, or have another checksum than described.
        """
        weights = self.described["weights"]
        if "onnx" not in weights:
            raise ModelError(
                f"the package {self.path} has weights as {', '.join(weights)}, which run code when loaded, and only onnx is "
                "accepted: convert it with `bioimageio add-weights PACKAGE OUT onnx` of bioimageio.core, or use torch.export"
            )
        folder = PurePosixPath(_local(weights["onnx"]["source"])).parent
        return self.file(weights["onnx"]), lambda name, most: self.read(str(folder / name), most)

    def file(self, described: Any) -> bytes:
        """Read a file that the description names.

        Parameters
        ----------
        described
            Its name, or a mapping with ``source`` and perhaps ``sha256``.

        Returns
        -------
        bytes
            Content of the file.

        Raises
        ------
        ModelError
            If it is outside the package, or has another checksum than described.
        """
        known = described if isinstance(described, Mapping) else {"source": described}
        name = _local(known["source"])
        data = self.read(name, MAX_MODEL_BYTES)
        stated, found = known.get("sha256"), hashlib.sha256(data).hexdigest()
        if stated is not None and str(stated).lower() != found:
            raise ModelError(
                f"{name} of the package {self.path} has the SHA-256 {found}, but its description says {stated}: download the "
                "package again"
            )
        return data


def open_package(path: Path) -> Package:
    """Open a package and read its description.

    Parameters
    ----------
    path
        Path of a zip file, a folder, or the description in a folder.

    Returns
    -------
    Package
        The package.

    Raises
    ------
    ModelError
        If it has no description.
    OSError, ValueError, KeyError
        If it is damaged.
    """
    folder = path.parent if path.name in DESCRIPTIONS else path
    if folder.is_dir():
        path = Path(os.path.abspath(folder))  # a folder may be given as `.`, which has no name  # noqa: PTH100
        names = [name for name in DESCRIPTIONS if (folder / name).is_file()]
        if misplaced := [name for name in names if (folder / f"{name}.toml").exists()]:
            raise ModelError(
                f"{folder / misplaced[0]}.toml is within the package, where it would be ignored: move it to {path.name}.toml "
                "beside it"
            )
        read: Callable[[str, int], bytes] = partial(read_inside, folder)
    else:
        archive = zipfile.ZipFile(path)
        names = [name for name in DESCRIPTIONS if name in archive.namelist()]
        read = partial(_of_archive, archive)
    if not names:
        raise ModelError(f"{path} is not a BioImage.IO package: it has no {' or '.join(DESCRIPTIONS)}")
    text = read(names[0], MAX_DOCUMENT_BYTES)
    return Package(path, text, _parsed(text, names[0]), read)


def read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a file in a folder, following no link that leads out of it.

    Parameters
    ----------
    folder
        The folder.
    name
        Path of the file, relative to the folder.
    max_bytes
        Largest size of the file.

    Returns
    -------
    bytes
        Content of the file.

    Raises
    ------
    ModelError
        If a link leads out of the folder.
    OSError, ValueError
        If the file cannot be read, or is too large.
    """
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ModelError(
            f"{folder / name} is a link that leads out of its folder: download the whole package, or copy the file"
        )
    return read_document(file, max_bytes)


def _local(source: Any) -> str:
    """Return the name of a file, which must lie within the package."""
    name = str(source.get("path", "") if isinstance(source, Mapping) else source)
    if "://" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelError(f"the package has its file {name!r} outside of it: download the whole package")
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
