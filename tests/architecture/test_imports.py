"""What an import costs, and which names are public. The floors themselves are checked by import-linter (`make lint`)."""

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
import emseg_workflows
from emseg_workflows.cli import cli

ROOT = Path(__file__).parents[2]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after running some code in a new interpreter."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import emseg", {"torch", "zarr", "dask", "distributed", "click"}),
        ("import emseg.serial, emseg.grid.layout, emseg.grid.cost", {"torch", "zarr", "tifffile", "dask"}),
        ("import emseg_workflows", {"torch", "zarr", "dask", "distributed", "click"}),
        ("import emseg_workflows.cli", {"numpy", "torch", "zarr", "dask", "distributed", "rich"}),
        ("import emseg_workflows.flows.segment", {"torch", "dask", "distributed"}),
    ],
)
def test_imports_are_light(code: str, unwanted: set[str]) -> None:
    assert not loaded_by(code) & unwanted


def test_public_names() -> None:
    assert {name for name in vars(emseg) if not name.startswith("_")} >= {
        "Box",
        "EmsegError",
        "InputError",
        "ModelSpec",
        "VolumeSpec",
    }
    assert emseg_workflows.__all__ == [
        "check",
        "compare_instances",
        "evaluate",
        "export",
        "ingest",
        "label",
        "plan_run",
        "prepare_submission",
        "preview",
        "repair",
        "report_page",
        "seams",
        "segment",
        "status",
        "submit",
        "train",
        "verify",
        "view",
        "watch",
    ]
    assert all(callable(getattr(emseg_workflows, name)) for name in emseg_workflows.__all__)


def test_the_picture_of_the_floors_is_the_linters_list() -> None:
    """In pipeline/README.md: the same rooms, none above one that the linter has it below."""
    floors = (ROOT / "pipeline" / "README.md").read_text().partition("## Floors")[2].partition("Floors 0 to 3")[0]
    cells = [re.split(r"  +", line[18:])[0] for line in floors.splitlines() if line.startswith("    ") and "====" not in line]
    drawn = [name.rstrip("/") for cell in cells for name in cell.replace("<", " ").split()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    listed = [[name.strip().rpartition(".")[2] for name in layer.split("|")] for layer in layers]
    assert sorted(drawn) == sorted(name for names in listed for name in names)
    for above, below in pairwise(listed):
        assert max(map(drawn.index, above)) < min(map(drawn.index, below)), f"{above} is not drawn above {below}"


def test_each_command_has_its_functions() -> None:
    """In workflows/README.md: all commands, all public functions, and nothing that is not there."""
    table = (ROOT / "workflows" / "README.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`emseg .*) \| (.*) \|$", table, re.MULTILINE)
    commands = {name for said, _ in rows for name in re.findall(r"`emseg (\w+)", said)}
    assert commands == set(cli.commands)
    functions = [name for _, given in rows for name in re.findall(r"`([\w.]+)\(", given)]
    assert sorted(name for name in functions if "." not in name) == emseg_workflows.__all__
    for module, _, name in (name.rpartition(".") for name in functions if "." in name):
        assert callable(getattr(import_module(module), name))


def test_each_configuration_is_listed() -> None:
    """In workflows/README.md."""
    listed = re.findall(r"`([\w-]+\.toml)`", (ROOT / "workflows" / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in (ROOT / "workflows").glob("*.toml"))
