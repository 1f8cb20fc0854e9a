"""Test the container recipes as far as possible without a container engine: their commands run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import save_volume, texture

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
DOCKERFILE = CONTAINER / "Dockerfile"
INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$", re.MULTILINE)
SECTION = re.compile(r"^%(\w+)\n(.*?)(?=^%|\Z)", re.MULTILINE | re.DOTALL)
INSTRUCTIONS = INSTRUCTION.findall(DOCKERFILE.read_text())
SECTIONS = dict(SECTION.findall((CONTAINER / "emseg.def").read_text()))


def arguments(name: str) -> list[str]:
    """Return the arguments of each instruction with this name."""
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied() -> list[tuple[str, str]]:
    """Return the source in the repository and the target below ``/src`` of each path that a build copies."""
    pairs = []
    for words in (rest.split() for rest in arguments("COPY") if not rest.startswith("--from")):
        *sources, target = words
        pairs += [(source, source if target == "./" else target) for source in sources]
    return pairs


def test_no_linter_complains() -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_is_pinned_and_runs_as_somebody() -> None:
    images = [rest.split()[0] for rest in arguments("FROM") if rest.split()[0] != "base"]
    (from_apptainer,) = re.findall(r"^From: (\S+)$", (CONTAINER / "emseg.def").read_text(), re.MULTILINE)
    assert {*images, from_apptainer} == {"python:3.11.14-slim-bookworm"}
    last = max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM")
    (user,) = [rest for name, rest in INSTRUCTIONS[last:] if name == "USER"]
    assert all(int(number) > 0 for number in user.split(":"))
    assert (arguments("ENTRYPOINT"), SECTIONS["runscript"].strip()) == (['["emseg"]'], 'exec emseg "$@"')


def test_all_that_is_copied_exists_and_is_let_through() -> None:
    lines = [line for line in (CONTAINER / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "nothing else is sent"
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert {source for source, _ in copied()} == let_through
    for source, _ in copied():
        assert (ROOT / source).exists(), source
    files = [line.split() for line in SECTIONS["files"].splitlines() if line.strip()]
    assert {tuple(pair) for pair in files} == {(source, f"/src/{target}") for source, target in copied()}


def test_both_recipes_run_the_same_commands() -> None:
    post = SECTIONS["post"].replace("'.{{ EXTRAS }}'", '".$EXTRAS"')
    commands = {line.strip() for line in post.splitlines()}
    for command in arguments("RUN"):
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
        assert command in commands or command.startswith("useradd ")
        assert "pip install" not in command or " -c deploy/constraints.txt " in command
    for name in ("post", "environment", "runscript", "test"):
        assert subprocess.run(["sh", "-n", "-c", SECTIONS[name]]).returncode == 0


def build(place: Path, *, afresh: bool) -> Path:
    """Run the ``RUN`` and ``COPY`` instructions before the last stage, below a folder in place of ``/``.

    Unless everything is to be installed afresh, pip uses the dependencies that are installed here, and installs only emseg.
    """
    source = place / "src"
    for origin, target in copied():
        (source / target).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / origin).is_dir():
            shutil.copytree(ROOT / origin, source / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / origin, source / target)
    environment = place / "opt" / "emseg"
    variables = {**os.environ, "TORCH_INDEX": "", "EXTRAS": ""}
    for command in (command for command in arguments("RUN") if not command.startswith("useradd ")):
        here = command.replace("/opt/emseg", str(environment)).replace("python3 ", f"{sys.executable} ", 1)
        done = subprocess.run(["sh", "-euc", here], cwd=source, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if not afresh and "-m venv" in command:
            (packages,) = environment.glob("lib/python*/site-packages")
            (packages / "here.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    shutil.rmtree(source)
    return environment


@pytest.mark.parametrize(
    "afresh",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif("EMSEG_CONTAINER" not in os.environ, reason="EMSEG_CONTAINER is not set")),
    ],
)
@pytest.mark.timeout(900)
def test_the_commands_make_an_emseg_that_runs(afresh: bool, tmp_path: Path) -> None:
    environment = build(tmp_path, afresh=afresh)
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    python = [str(environment / "bin" / "python"), "-c", "import emseg, emseg as w; print(emseg.__file__, w.__file__)"]
    where = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True).stdout.split()
    assert all(Path(file).is_relative_to(environment) for file in where), where
    assert len(where) == 2
    command: list[str | Path] = [environment / "bin" / "emseg", "run", "volume.zarr", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "volume.emseg.zarr" / "zarr.json").exists()
