"""What stands under deploy/ fits together."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "deploy" / "constraints.txt").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ONLY_ON_LINUX = {"cuda-bindings", "dask-cuda", "nvidia-ml-py"}


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    return re.split(r"[\[<>=,; ]", requirement)[0]


def test_each_dependency_is_pinned() -> None:
    wanted = PROJECT["dependencies"] + [name for extra in PROJECT["optional-dependencies"].values() for name in extra]
    assert {name_of(requirement) for requirement in wanted} <= set(PINS)


@pytest.mark.parametrize("name", sorted(PINS))
def test_what_runs_here_is_what_is_pinned(name: str) -> None:
    if name in ONLY_ON_LINUX and sys.platform != "linux":
        pytest.skip("dask-cuda is for Linux")
    assert version(name).split("+")[0] == PINS[name]


def test_the_cuda_extra_resolves_with_the_pins() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-c", "deploy/constraints.txt", ".[cuda]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
