"""What an import costs, and which names are public. The floors themselves are checked by import-linter (`make lint`)."""

import json
import subprocess
import sys

import pytest

import emseg
import emseg_workflows


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
        "evaluate",
        "ingest",
        "plan_run",
        "preview",
        "repair",
        "seams",
        "segment",
        "status",
        "train",
        "verify",
    ]
    assert all(callable(getattr(emseg_workflows, name)) for name in emseg_workflows.__all__)
