"""Test that a command killed before any change on disk ends as if undisturbed when it is run again.

The suite tries a few changes of each command; ``make faults`` tries all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from crash_points import COMMANDS

LONG = "EMSEG_FAULTS" in os.environ
SEED = int(os.environ.get("EMSEG_FAULTS", "0"))
MOMENTS = 0 if LONG else 6

pytestmark = pytest.mark.timeout(3600 if LONG else 900)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_differs(command: str, tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(Path(__file__).parents[1] / "crash_points.py"),
        command,
        str(tmp_path),
        str(MOMENTS),
        str(SEED),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changes, *differences = done.stdout.splitlines()
    assert int(changes) > 5
    assert not differences, "\n".join(differences)
