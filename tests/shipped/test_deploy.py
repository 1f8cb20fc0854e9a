"""Test that the files under deploy/ are consistent."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def requirements_in(name: str) -> list[Requirement]:
    """Return the requirements that a file in deploy/ lists."""
    return [Requirement(line) for line in (ROOT / "deploy" / name).read_text().splitlines() if not line.startswith("#")]


LINES = requirements_in("constraints.txt")
PINS = {line.name: str(line.specifier).removeprefix("==") for line in LINES if line.marker is None or line.marker.evaluate()}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOR_DEVELOPERS = {"bench", "dev", "docs"}
ONLY_ON_LINUX = {"cuda-bindings", "dask-cuda", "nvidia-ml-py"}


def name_of(requirement: str) -> str:
    """Return the package that a requirement names."""
    return re.split(r"[\[<>=,; ]", requirement)[0]


def test_each_dependency_is_pinned() -> None:
    wanted = PROJECT["dependencies"] + [name for extra in PROJECT["optional-dependencies"].values() for name in extra]
    assert {name_of(requirement) for requirement in wanted} <= set(PINS)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_each_python_has_one_pin_of_each_package(python: str) -> None:
    names = [line.name for line in LINES if line.marker is None or line.marker.evaluate({"python_version": python})]
    assert sorted(names) == sorted(PINS)


def test_minima_are_the_lower_bounds() -> None:
    """Of all that a user may install; those of `cuda` need a GPU, and follow dask-cuda."""
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in FOR_DEVELOPERS | {"cuda"}}
    allowed = [Requirement(line) for lines in (PROJECT["dependencies"], *extras.values()) for line in lines]
    bounds = {line.name: [limit.version for limit in line.specifier if limit.operator == ">="] for line in allowed}
    minima = requirements_in("minima.txt")
    assert {line.name: [str(line.specifier).removeprefix("==")] for line in minima} == bounds
    assert len(minima) == len(bounds)


@pytest.mark.parametrize("name", sorted(PINS))
def test_what_runs_here_is_what_is_pinned(name: str) -> None:
    if name in ONLY_ON_LINUX and sys.platform != "linux":
        pytest.skip("dask-cuda is for Linux")
    assert version(name).split("+")[0] == PINS[name]


def test_the_releases_of_zarr_that_are_allowed() -> None:
    """The range starts at the first release with atomic local writes, and ends at the newest tested with the outage guard."""
    (line,) = (line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.strip().startswith('"zarr>'))
    allowed = Requirement(line.split('"')[1]).specifier
    assert PINS["zarr"] in allowed
    assert [release for release in ("3.1.5", "3.1.6", "3.2.1", "3.3.0", "3.4.2", "4.0") if release in allowed] == [
        "3.1.6",
        "3.2.1",
        "3.3.0",
        "3.4.2",
    ]


def test_the_cuda_extra_resolves_with_the_pins() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-c", "deploy/constraints.txt", ".[cuda]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
