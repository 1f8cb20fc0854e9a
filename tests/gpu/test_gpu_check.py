"""Test that `deploy/gpu-check` shows which checks pass, and gives a remedy for the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECK = Path(__file__).parents[2] / "deploy" / "gpu-check"
ROW = re.compile(r"^(pass|FAIL|skip)  ([\w-]+) +\S", re.MULTILINE)


def check(*options: str, **environment: str) -> tuple[int, dict[str, str], str]:
    """Return the exit code, the result of each row, and the output."""
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, CHECK, *options], env=environment, capture_output=True, text=True, timeout=280)
    return done.returncode, {name: ended for ended, name in ROW.findall(done.stdout)}, done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu() -> None:
    """Checks that need no GPU pass. The others give a remedy or name what they need."""
    code, rows, printed = check()
    assert code == 1
    assert len(rows) == 12
    assert rows["emseg"] == rows["dask-cuda"] == "pass"
    assert rows["torch"] == "FAIL"
    assert rows["verify"] == "skip"
    assert printed.count("remedy: ") == list(rows.values()).count("FAIL")
    assert "Traceback" not in printed
    assert os.access(CHECK, os.X_OK)


def test_a_rehearsal(fake_driver: dict[str, str]) -> None:
    """Each row can pass with a simulated driver and predictors on the CPU."""
    code, rows, printed = check("--device", "cpu", **fake_driver)
    assert code == 0, printed
    assert set(rows.values()) == {"pass"}


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_on_this_machine() -> None:
    code, _, printed = check()
    assert code == 0, printed
