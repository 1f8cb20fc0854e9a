"""Every example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_without_a_test() -> None:
    """But those of unet_paper/, which have tests of their own."""
    scripts = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if path.parent.name != "unet_paper"}
    assert scripts == {"segment_sample.py", "look_at_plan.py", "draw_cells.py", "fib25-sample/baseline.py"}


def test_segment_sample(tmp_path: Path) -> None:
    """The demo: its score is that of the bundled model on slices that it has never seen."""
    printed = run("segment_sample.py", str(tmp_path))
    score = re.search(r"membrane F1 (\d\.\d+)", printed)
    assert score is not None
    assert float(score[1]) > 0.7
    assert (tmp_path / "sample.png").stat().st_size > 10_000


def test_look_at_plan() -> None:
    assert "a petabyte" in run("look_at_plan.py")


def test_draw_cells(tmp_path: Path) -> None:
    """What it draws is learnt from in test_readme.py."""
    run("draw_cells.py", str(tmp_path))
    for depth, pair in ((5, ("slices", "labels")), (6, ("volume", "truth"))):
        raw, values = (tifffile.imread(tmp_path / f"{name}.tif") for name in pair)
        assert raw.shape == values.shape == (depth, 256, 256)
        assert np.unique(values).tolist() == [0, 255]
        assert raw[values == 0].mean() < raw[values == 255].mean() - 20


@pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder")
def test_baseline() -> None:
    assert "F1" in run("fib25-sample/baseline.py")
