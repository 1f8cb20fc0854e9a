"""Test the cost of imports and the list of public names. Import-linter checks the layers themselves (`make lint`)."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

import emseg
from emseg.cli import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "workflows" / "docs"


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that are loaded after running some code in a new interpreter."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import emseg_core", {"torch", "zarr", "dask", "distributed", "click"}),
        ("import emseg_core.serial, emseg_core.grid.layout, emseg_core.grid.cost", {"torch", "zarr", "tifffile", "dask"}),
        ("import emseg", {"torch", "zarr", "dask", "distributed", "click"}),
        ("import emseg.cli", {"numpy", "torch", "zarr", "dask", "distributed", "rich"}),
        ("import emseg.clusters.fork_server", {"numpy", "torch", "zarr", "dask", "distributed"}),
        ("import emseg.flows.segment", {"torch", "dask", "distributed"}),
    ],
)
def test_imports_are_light(code: str, unwanted: set[str]) -> None:
    assert not loaded_by(code) & unwanted


def test_a_command_imports_no_other() -> None:
    probe = "import sys; from emseg.cli import cli; cli.get_command(None, 'models'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert {f"emseg.cli.{name}" for name in cli.commands} & set(done.stdout.split()) == {"emseg.cli.models"}


def test_public_names() -> None:
    """The public names are the commands as functions, and every type that they take, return or raise."""
    assert sorted(emseg.FUNCTIONS) == [
        "evaluate",
        "evaluate_instances",
        "evaluate_seams",
        "export",
        "ingest",
        "label",
        "plan",
        "prepare_submission",
        "preview",
        "repair",
        "report",
        "segment",
        "status",
        "submit",
        "train",
        "verify",
        "verify_checksums",
        "view",
        "watch",
    ]
    assert set(emseg.__all__) == {*emseg.FUNCTIONS, *emseg.TYPES}
    assert set(emseg.__all__) >= {
        "Box",
        "EmsegError",
        "InputError",
        "ModelSpec",
        "Policy",
        "Report",
        "Site",
        "Stop",
        "VolumeSpec",
    }
    assert all(callable(getattr(emseg, name)) for name in emseg.FUNCTIONS)


def test_the_picture_of_the_layers_is_the_linters_list() -> None:
    """pipeline/README.md shows the same modules, and none above a module that the linter places above it."""
    picture = (ROOT / "pipeline" / "README.md").read_text().partition("## Layers")[2].partition("Layers 1 to 6")[0]
    cells = [re.split(r"  +", line[18:])[0] for line in picture.splitlines() if line.startswith("    ") and "====" not in line]
    drawn = [name.rstrip("/") for cell in cells for name in cell.replace("<", " ").split()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each["type"] == "layers" and "containers" not in each)
    listed = [[name.strip().rpartition(".")[2] for name in layer.split("|")] for layer in layers]
    assert sorted(drawn) == sorted(name for names in listed for name in names)
    for above, below in pairwise(listed):
        assert max(map(drawn.index, above)) < min(map(drawn.index, below)), f"{above} is not drawn above {below}"


def test_each_command_has_its_functions() -> None:
    """The documentation lists all commands and all public functions, and nothing else."""
    table = (DOCS / "how-to" / "python.md").read_text()
    rows = re.findall(r"^\| (`emseg .*) \| (.*) \|$", table, re.MULTILINE)
    commands = {name for said, _ in rows for name in re.findall(r"`emseg (\w+)", said)}
    assert commands == set(cli.commands)
    functions = [name for _, given in rows for name in re.findall(r"`([\w.]+)\(", given)]
    assert sorted(name for name in functions if "." not in name) == sorted(emseg.FUNCTIONS)
    for module, _, name in (name.rpartition(".") for name in functions if "." in name):
        assert callable(getattr(import_module(module), name))


def test_each_configuration_is_listed() -> None:
    """workflows/README.md lists them."""
    listed = re.findall(r"`([\w-]+\.toml)`", (ROOT / "workflows" / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "workflows").glob("*.toml"))
