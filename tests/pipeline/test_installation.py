"""Test that the command in a message installs that extra, in this environment, from the same source."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import emseg_core.installation
from emseg_core.installation import install_hint

ROOT = Path(__file__).parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def from_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an installed wheel: no checkout around the module, only the wheel's own metadata."""
    lines = [f"{line.partition(';')[0]}; {mark(line, extra)}" for extra, lines in EXTRAS.items() for line in lines]
    folder = tmp_path / "emseg-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: emseg\nVersion: 0.1.0\n" + "".join(f"Requires-Dist: {line}\n" for line in lines)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(emseg_core.installation, "CHECKOUT", tmp_path)


def mark(line: str, extra: str) -> str:
    """Return the marker of a requirement, as hatchling writes it."""
    _, _, marker = line.partition("; ")
    return f"({marker}) and extra == '{extra}'" if marker else f"extra == '{extra}'"


def installed_by(line: str) -> list[str]:
    """Return what a command line has pip install, for this very interpreter."""
    python, *pip, what = shlex.split(line)[:5]
    assert python == sys.executable
    assert pip == ["-m", "pip", "install"]
    return shlex.split(line)[4:] if what else []


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_from_a_checkout_it_is_the_checkout(extra: str) -> None:
    assert installed_by(install_hint(extra)) == ["-e", f"{ROOT}[{extra}]"]


@pytest.mark.usefixtures("from_wheel")
@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_from_a_wheel_it_is_what_the_extra_requires(extra: str) -> None:
    assert metadata.version("emseg") == "0.1.0"
    found = [Requirement(line) for line in installed_by(install_hint(extra))]
    expected = [Requirement(line.partition(";")[0]) for line in EXTRAS[extra]]
    assert found == expected


def test_a_path_with_spaces_is_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "my checkout's"
    checkout.mkdir()
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(emseg_core.installation, "CHECKOUT", checkout)
    assert installed_by(install_hint("view")) == ["-e", f"{checkout}[view]"]


def test_no_message_and_no_page_names_an_index() -> None:
    """emseg is on no index: `pip install emseg` would install another project's upload."""
    files = [*ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.md")]
    files += [file for folder in ("pipeline", "workflows", "deploy") for file in (ROOT / folder).rglob("*") if file.is_file()]
    texts = {file: file.read_text(errors="ignore") for file in files if "__pycache__" not in file.parts}
    assert not [file for file, text in texts.items() if re.search(r"pip install[^\n]*['\" ]emseg\b", text)]
    pages = {extra for text in texts.values() for line in re.findall(r"-e '\.\[([\w,]+)\]'", text) for extra in line.split(",")}
    assert pages <= set(EXTRAS)


def test_messages_name_extras_that_there_are() -> None:
    sources = [file.read_text() for root in ("pipeline", "workflows/emseg") for file in (ROOT / root).rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r"""install_hint\(["'](\w+)["']\)""", text)}
    loaded = {extra for text in sources for extra in re.findall(r'load_extra\("[\w.]+", "(\w+)"', text)}
    assert {"cuda", "openvino", "slurm"} <= named <= set(EXTRAS)
    assert {"remote", "view"} <= loaded <= set(EXTRAS)
