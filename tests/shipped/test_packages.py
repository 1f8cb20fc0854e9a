"""Test the built packages: the wheel and the source distribution."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = {"emseg": ROOT / "workflows" / "emseg", "emseg_core": ROOT / "pipeline" / "emseg_core"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both into a folder, with the hatchling that pip provides."""
    tools, folder = tmp_path_factory.mktemp("tools"), tmp_path_factory.mktemp("dist")
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tools), backend]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"pip cannot fetch {backend}")
    environment = {**os.environ, "PYTHONPATH": str(tools)}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--target", "wheel", "--directory", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def in_wheel(built: Path) -> dict[str, bytes]:
    """Return each file of the wheel."""
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="module")
def in_sdist(built: Path) -> dict[str, bytes]:
    """Return each file of the source distribution, relative to its folder."""
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        opened = {member.name.partition("/")[2]: archive.extractfile(member) for member in members}
        return {name: stream.read() for name, stream in opened.items() if stream is not None}


def package_files(root: Path) -> dict[str, bytes]:
    """Return each file of a package in the checkout: code, templates, models, licences, type markers."""
    files = [file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def test_the_wheel_holds_the_packages_and_nothing_else(in_wheel: dict[str, bytes]) -> None:
    expected = {f"{name}/{file}": data for name, root in PACKAGES.items() for file, data in package_files(root).items()}
    assert {name: data for name, data in in_wheel.items() if ".dist-info/" not in name} == expected
    assert {"emseg/py.typed", "emseg_core/py.typed", "emseg_core/model/bundled/LICENSE.txt"} <= set(expected)
    assert [name for name in expected if name.endswith(".safetensors")]


def test_the_source_distribution_builds_the_same_and_has_no_tests(in_sdist: dict[str, bytes]) -> None:
    for root in PACKAGES.values():
        folder = root.relative_to(ROOT).as_posix()
        found = {name.removeprefix(f"{folder}/"): data for name, data in in_sdist.items() if name.startswith(f"{folder}/")}
        assert found == package_files(root)
    others = {name for name in in_sdist if not name.startswith(("pipeline/emseg_core/", "workflows/emseg/"))}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= others
    assert not [name for name in in_sdist if {"tests", "__pycache__", ".venv"} & set(PurePosixPath(name).parts)]


def test_their_metadata_is_valid_complete_and_the_same(in_wheel: dict[str, bytes], in_sdist: dict[str, bytes]) -> None:
    (text,) = (data for name, data in in_wheel.items() if name.endswith(".dist-info/METADATA"))
    found = Metadata.from_email(text, validate=True)
    assert in_sdist["PKG-INFO"] == text
    assert (found.name, str(found.version), found.summary) == (PROJECT["name"], PROJECT["version"], PROJECT["description"])
    assert (found.license_expression, found.license_files) == (PROJECT["license"], PROJECT["license-files"])
    assert found.description == (ROOT / "README.md").read_text()
    assert found.description_content_type == "text/markdown"
    assert str(found.requires_python) == PROJECT["requires-python"]
    assert set(found.provides_extra or ()) == set(PROJECT["optional-dependencies"])
    needed = [line for line in found.requires_dist or () if "extra ==" not in str(line.marker)]
    assert {str(line) for line in needed} == {str(Requirement(line)) for line in PROJECT["dependencies"]}


def test_their_licences_are_those_of_the_checkout(in_wheel: dict[str, bytes]) -> None:
    for name in PROJECT["license-files"]:
        assert in_wheel[f"emseg-{PROJECT['version']}.dist-info/licenses/{name}"] == (ROOT / name).read_bytes()
