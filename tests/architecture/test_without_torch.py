"""Test the layers below model/, and store/, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKED = "import sys; sys.modules['torch'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
LAYERS = [f"tests/pipeline/{layer}" for layer in ("specs", "metrics", "grid", "instances", "store")]
MODULES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/pipeline/test_*.py"))


def without_torch(*arguments: str) -> str:
    """Return the output of pytest in a Python that cannot import torch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", BLOCKED, "-q", "-p", "no:cacheprovider", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_they_are_collected() -> None:
    collected = without_torch("--collect-only", *LAYERS, *MODULES)
    assert all(file in collected for file in ("grid/test_symmetry.py", "store/files/test_remote.py", "pipeline/test_block.py"))


def test_what_makes_a_network_is_skipped_and_the_rest_runs() -> None:
    said = without_torch(
        "tests/pipeline/grid/test_symmetry.py", "tests/pipeline/test_canary.py", "tests/pipeline/test_docstrings.py"
    )
    assert "could not import 'torch'" in said
    assert " passed" in said
