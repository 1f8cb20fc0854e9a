"""Test the limits on the size and content of files that are read whole."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emseg.settings.toml import read_toml
from emseg_core.documents import MAX_DOCUMENT_BYTES, read_document
from emseg_core.errors import InputError, ModelError, VolumeError
from emseg_core.model.external_model import read_external
from emseg_core.model.package import MAX_DEPTH, MAX_VALUES, open_package
from emseg_core.store.files.remote import MAX_METADATA_BYTES
from emseg_core.store.stacks.n5 import open_n5
from emseg_core.store.stacks.precomputed import open_precomputed
from emseg_core.store.zarrs.nodes import read_node

PLAIN = """\
weights: {onnx: {source: net.onnx}}
inputs: [{preprocessing: []}]
outputs: [{axes: []}]
"""


def package(path: Path, text: str | bytes, *, kind: str, method: int = zipfile.ZIP_DEFLATED, network: bytes = b"ONNX") -> Path:
    """Make a package as a folder or zip file."""
    files = {"rdf.yaml": text.encode() if isinstance(text, str) else text, "net.onnx": network}
    if kind == "folder":
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
        return path
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def laughs(levels: int) -> str:
    """Return YAML in which each line expands to nine times the previous one."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return PLAIN + "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN + "# " + "x" * MAX_DOCUMENT_BYTES, "bytes"),
        (laughs(30), f"more than {MAX_VALUES} values"),
        (PLAIN + "deep: " + "[" * 1000 + "]" * 1000, f"more than {MAX_DEPTH} deep"),
        (PLAIN + "deep: " + "{a: " * 1000 + "}" * 1000, f"more than {MAX_DEPTH} deep"),
        (PLAIN + "itself: &a [*a]", "a value contains itself"),
        (PLAIN + f"many: [{'x, ' * MAX_VALUES}]", f"more than {MAX_VALUES} values"),
        (b"\xff\xfe\x00weights", "codec"),
        (b"weights: \x00\x01", "not plain YAML"),
        ("- weights", "is not a mapping"),
        (PLAIN.replace("[{axes: []}]", "3"), "cannot be read"),
        ("weights: !!python/object/apply:os.getcwd []", "not plain YAML"),
    ],
    ids=range(11),
)
def test_a_description_out_of_bounds(tmp_path: Path, kind: str, text: str | bytes, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_external(package(tmp_path / "net", text, kind=kind))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_an_alias_is_no_harm(tmp_path: Path, kind: str) -> None:
    text = PLAIN.replace("preprocessing: []", "a: &a {kwargs: {}}, preprocessing: [], b: [*a, *a]")
    assert open_package(package(tmp_path / "net", text, kind=kind)).network()[0] == b"ONNX"
    assert open_package(package(tmp_path / "many", laughs(3), kind=kind)).network()[0] == b"ONNX"


def test_a_network_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = package(tmp_path / "odd", PLAIN, kind="zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(ModelError, match="compressed in an unusual way"):
        read_external(odd)
    monkeypatch.setattr("emseg_core.model.package.MAX_MODEL_BYTES", 1000)
    for kind in ("folder", "zip"):
        large = package(tmp_path / f"large-{kind}", PLAIN, kind=kind, network=bytes(2000))
        with pytest.raises(ModelError, match="more than 1000"):
            read_external(large)


@dataclass(frozen=True)
class Settings:
    name: str


def toml(path: Path) -> None:
    read_toml(path, Settings)


def beside(path: Path) -> None:
    network = path.with_name("net.onnx")
    network.write_bytes(b"ONNX")
    path.rename(path.with_name("net.onnx.toml"))
    read_external(network)


@pytest.mark.parametrize("read", [toml, beside])
@pytest.mark.parametrize(
    "text", [b"#" + b"x" * MAX_DOCUMENT_BYTES, b"name = " + b"[" * 5000, b"\xff", b"name = 3"], ids=range(4)
)
def test_settings_out_of_bounds(tmp_path: Path, read: Callable[[Path], None], text: bytes) -> None:
    (tmp_path / "s.toml").write_bytes(text)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "s.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("zarr.json", read_node),
        (".zarray", read_node),
        ("attributes.json", lambda path: open_n5(path, None)),
        ("info", open_precomputed),
    ],
)
def test_metadata_out_of_bounds(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    """A sparse file has no bytes on disk, but a large size."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(MAX_METADATA_BYTES + 1)
    with pytest.raises(VolumeError, match=f"{MAX_METADATA_BYTES}"):
        read(tmp_path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match=r"pipe\.onnx is not a regular file"):
        read_external(tmp_path / "pipe.onnx")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_document(Path("/dev/zero"))
