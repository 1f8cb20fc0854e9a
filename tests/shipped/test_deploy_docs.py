"""Test every command of the deployment pages: it is run, or its words are checked if it needs a cluster or an engine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker
from runs import bytes_of, free_port, save_volume, texture
from torch.distributed.run import get_args_parser as torchrun_parser

from emseg.cli import cli
from emseg.clusters.local import LOOPBACK
from emseg.flows.segment import segment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCS = ROOT / "workflows" / "docs"
PAGES = "\n".join(page.read_text() for page in [*sorted((DOCS / "deploy").glob("*.md")), DOCS / "tutorials" / "slurm.md"])
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```$", PAGES, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
IN_TEXT = re.findall(r"`((?:emseg|deploy/|kubectl scale|docker stop)[^`]* [^`]*)`", PAGES)
EVERYWHERE = "\n".join(page.read_text() for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))])
EMSEG_OPTIONS = re.findall(r"`(--[\w-]+)(?: [^`]*)?`", EVERYWHERE)
EMSEG_IN_TEXT = re.findall(r"`emseg ([^`]*)`", EVERYWHERE)
ELSEWHERE = {"--network", "--build-arg", "--time", "--lifetime", "--help"}
"""Options in the text that belong to other programs."""
SBATCH_OPTIONS = {"--gres", "--cpus-per-task", "--time", "--nodes", "--ntasks-per-node"}
DOCKERFILE = (DEPLOY / "container" / "Dockerfile").read_text()


def check_emseg(words: list[str]) -> None:
    """Check that the words after ``emseg`` are a command with valid options and values."""
    name, *rest = words
    cli.commands[name].make_context(name, list(rest))


def check_file(path: str) -> None:
    """Check that a path of the repository exists."""
    assert (ROOT / path).is_file(), path


def check_build(words: list[str]) -> None:
    """Check that a container build names a recipe and arguments that the recipe has."""
    for flag, value in pairwise(words):
        if flag == "-f" or value.endswith(".def"):
            check_file(value)
        if flag == "--build-arg":
            assert re.search(rf"^ARG {value.split('=')[0]}=", DOCKERFILE, re.MULTILINE)
            (extra,) = re.findall(r"^EXTRAS=\[(\w+)\]$", value)
            assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def check_kubectl(words: list[str]) -> None:
    """Check that everything named exists: files, the namespace, and the objects that the operator creates for the job."""
    action, *rest = words
    job = yaml.safe_load((DEPLOY / "kubernetes" / "cpu.yaml").read_text())["metadata"]
    name = job["name"]
    if action in ("apply", "delete"):
        assert rest[0] == "-f"
        check_file(rest[1])
        return
    assert rest[:2] == ["-n", job["namespace"]]
    known = {
        "logs": ["-f", f"{name}-runner"],
        "port-forward": [f"deployment/{name}-scheduler", "8787:8787"],
        "scale": [f"daskworkergroup/{name}-default", "--replicas", "32"],
    }
    assert rest[2:] == known[action]


def check(words: list[str]) -> None:
    """Check one command of the pages."""
    match words:
        case ["emseg", *rest]:
            check_emseg(rest)
        case ["pip", "install", "-c", constraints, "-e", what]:
            check_file(constraints)
            assert what in (".[openvino]", ".[cuda]")
        case ["deploy/gpu-check", *rest]:
            check_file(words[0])
            assert os.access(ROOT / words[0], os.X_OK)
            assert rest in ([], ["--device", "cpu"])
        case ["torchrun", *rest]:
            arguments = torchrun_parser().parse_args(rest)
            assert arguments.module
            assert arguments.training_script == "emseg"
            check_emseg(arguments.training_script_args)
        case ["sbatch", *options, script, "my.toml"]:
            check_file(script)
            assert {option.split("=")[0] for option in options} <= SBATCH_OPTIONS
        case ["ssh", "-N", "-L", tunnel, *_]:
            assert tunnel == f"8787:{LOOPBACK}:8787"
        case ["dask", "scheduler", *rest]:
            dask_scheduler.make_context("scheduler", rest)
        case ["dask", "worker", *rest]:
            dask_worker.make_context("worker", rest)
        case ["docker" | "apptainer", "build", *rest]:
            check_build(rest)
        case ["docker" | "apptainer", "run", *rest]:
            image = next(
                index for index, word in enumerate(rest) if re.fullmatch(r"emseg:[\d.]+(-cuda)?|emseg(-cuda)?\.sif", word)
            )
            check_emseg(rest[image + 1 :])
        case ["docker", "stop", "--time", "60"]:
            pass
        case ["kubectl", *rest]:
            check_kubectl(rest)
        case ["umask" | "openssl", *_]:
            pass  # run below
        case _:
            raise AssertionError(f"a new command needs a test here: {shlex.join(words)}")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_made_of_words_that_exist(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cert.pem", "key.pem", "site.toml"):
        (tmp_path / name).touch()
    check(shlex.split(command, comments=True))


@pytest.mark.parametrize("command", sorted(set(IN_TEXT)))
def test_each_command_in_the_text_too(command: str) -> None:
    words = shlex.split(command)
    if (words[:2] == ["emseg", "submit"] and len(words) > 2) or words[0] != "emseg":
        check(words)
    else:
        assert words[1] in cli.commands


@pytest.mark.parametrize("option", sorted(set(EMSEG_OPTIONS) - ELSEWHERE - {"--dashboard-address", "--no-dashboard"}))
def test_each_option_in_the_text_exists(option: str) -> None:
    parameters = [parameter for command in cli.commands.values() for parameter in command.params]
    known = {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}
    assert option in known


@pytest.mark.parametrize("words", sorted(set(EMSEG_IN_TEXT)))
def test_each_command_anywhere_has_options_that_exist(words: str) -> None:
    """This covers the README and all pages: `emseg NAME` and all options after it."""
    name, *rest = words.split()
    if name.startswith("-"):
        assert name in ("--help", "--version")
        return
    command = cli.commands[name]
    taken = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    if name == "submit":
        taken |= {option for parameter in cli.commands["run"].params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", " ".join(rest))) <= taken


def test_a_renamed_option_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        cli.commands["run"].make_context("run", ["volume.zarr", "--helpers", "2"])
    with pytest.raises(AssertionError):
        check(["make", "coffee"])


def block(start: str) -> str:
    """Return the only block that starts with these words."""
    (found,) = [block for block in BLOCKS if block.startswith(start)]
    return found


def run_here(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with the package's commands on the path, and return how it ended."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_one_machine(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    install, *commands = block("pip install -c deploy/constraints.txt -e '.[openvino]'\n").splitlines()
    assert install.startswith("pip install ")
    done = run_here("\n".join(commands), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "volume.emseg.zarr" / "zarr.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: one configuration is needed: sbatch deploy/train.sbatch my.toml"),
        (["one.toml", "two.toml"], "error: one configuration is needed: sbatch deploy/train.sbatch my.toml"),
    ],
)
def test_the_batch_script_wants_one_configuration(words: list[str], message: str) -> None:
    """Its other behaviour is tested on a SLURM cluster, in tests/slurm."""
    done = subprocess.run(["bash", str(DEPLOY / "train.sbatch"), *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"{message}\n"


def test_the_batch_script_says_how_it_is_started() -> None:
    """It uses the words of the page."""
    text = (DEPLOY / "train.sbatch").read_text()
    assert re.findall(r"^#     (sbatch .*)$", text, re.MULTILINE) == block("sbatch").splitlines()


def test_several_machines(tmp_path: Path) -> None:
    """It prints the command that the text mentions."""
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    done = run_here(block("emseg run volume.zarr --host").replace("10.0.0.1", LOOPBACK), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another host joins with: " in done.stderr


def test_any_dask_cluster(tmp_path: Path) -> None:
    """The certificate is that of the page. Clients without it are rejected."""
    volume = save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    done = run_here(block("umask 077"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    port = free_port()
    script = (
        block("dask scheduler")
        .replace("10.0.0.1", LOOPBACK)
        .replace("8786", str(port))
        .replace(f"{LOOPBACK}:8787", f"{LOOPBACK}:0")
    )
    scheduler, worker, run = (shlex.split(line) for line in script.replace("\\\n", " ").splitlines())
    with ExitStack() as held:
        for command in (scheduler, worker):
            process = subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, stderr=subprocess.DEVNULL)
            held.callback(process.wait, 30)
            held.callback(process.terminate)
        stranger = run_here(f"emseg run volume.zarr --scheduler tcp://{LOOPBACK}:{port}", tmp_path)
        assert stranger.returncode == 2
        done = run_here(shlex.join(run), tmp_path)
    assert done.returncode == 0, done.stderr
    segment(volume, tmp_path / "alone.zarr", workers=0)
    assert bytes_of(tmp_path / "volume.emseg.zarr") == bytes_of(tmp_path / "alone.zarr")
