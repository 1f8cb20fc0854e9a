"""Test the dashboard in a browser during a run and after its end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from distributed import Client
from PIL import Image
from playwright.sync_api import Page
from runs import emseg_process, run_emseg, save_volume, slowed

from emseg.clusters.local import LOOPBACK

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
PAUSE = 1.5
"""Extra seconds per prediction."""
IN_FLIGHT = 8
"""Number of blocks that may be written before the page knows."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a scheduler in a separate process that outlives runs, with one worker slow enough for the browser to watch."""
    folder = tmp_path_factory.mktemp("scheduler")
    dask, place = (sys.executable, "-m", "dask"), ("--scheduler-file", str(folder / "scheduler.json"))
    commands = (
        (*dask, "scheduler", "--host", LOOPBACK, "--port", "0", "--dashboard-address", f"{LOOPBACK}:0", *place),
        (*dask, "worker", "--nthreads", "2", "--no-nanny", "--no-dashboard", "--death-timeout", "60", *place),
    )
    processes = [subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, env=slowed(PAUSE)) for command in commands]
    try:
        with Client(scheduler_file=place[1], timeout="30s") as client:
            address = client.scheduler_info()["address"]
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


NUMBERS = """() => {
    const shown = {};
    (function look(root) {
        for (const node of root.querySelectorAll('*')) {
            const name = (node.classList.value.match(/^emseg-(\\w+)$/) || [])[1];
            if (name) shown[name] = +node.innerText.replaceAll(',', '');
            if (node.shadowRoot) look(node.shadowRoot);
        }
    })(document);
    return shown;
}"""
"""Numbers of blocks by state, as the page shows them at one moment, in any shadow tree of Bokeh."""


def told(output: Path) -> dict[str, int]:
    """Return the same numbers from `emseg status --json`."""
    found = json.loads(run_emseg("status", output, "--json").stdout)
    return {"done": found["done"], "failed": len(found["failed"]), "left": found["left"], "blocks": found["blocks"]}


def colours(picture: Path) -> set[tuple[int, int, int]]:
    """Return the colours that cover at least a thousandth of a screenshot."""
    pixels, counts = np.unique(np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(pixel) for pixel in pixels[counts > counts.sum() / 1000].tolist()}


def test_a_run_is_watched(page: Page, address: str, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    volume = save_volume(tmp_path / "volume.zarr", tifffile.imread(SAMPLE)[:, :200, :200], (20, 64, 64))
    with emseg_process("run", volume, "-o", output, "--scheduler", address, "--precision", "float32") as run:
        try:
            watch(page, run, output, tmp_path)
        finally:
            run.kill()


def watch(page: Page, run: subprocess.Popen[str], output: Path, tmp_path: Path) -> None:
    """Watch the pages of a run from its start until after its end."""
    said = ""
    assert run.stderr is not None
    while "map " not in said:
        line = run.stderr.readline()
        assert line, said
        said += line
    where = re.findall(r"^map +(\S+)$", said, re.MULTILINE)[-1]
    page.goto(where, wait_until="domcontentloaded")
    page.wait_for_function("() => document.title == 'emseg'")
    page.wait_for_function(f"() => ({NUMBERS})().done > 0", timeout=100_000)
    before, shown, after = told(output), page.evaluate(NUMBERS), told(output)
    assert run.poll() is None, "it was over before anybody looked: make the volume larger"
    assert before["done"] - IN_FLIGHT <= shown["done"] <= after["done"] < after["blocks"]
    assert shown["blocks"] == after["blocks"] == sum(shown[state] for state in ("done", "running", "failed", "waiting"))
    page.wait_for_function(f"() => ({NUMBERS})().running > 0")
    page.wait_for_timeout(3000)
    page.screenshot(path=tmp_path / "emseg.png")
    assert {(43, 123, 186), (245, 166, 35), (223, 227, 232)} <= colours(tmp_path / "emseg.png"), "done, running, waiting"

    page.goto(where.replace("/emseg", "/status"), wait_until="domcontentloaded")
    page.wait_for_timeout(4000)
    page.screenshot(path=tmp_path / "status.png")
    assert len(colours(tmp_path / "status.png")) > 4
    assert page.locator("a[href='emseg']").count() == 1

    _, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    page.goto(where, wait_until="domcontentloaded")
    page.wait_for_function(f"() => ({NUMBERS})().done == {shown['blocks']}")
    found, shown = told(output), page.evaluate(NUMBERS)
    assert found == {"done": shown["done"], "failed": shown["failed"], "left": shown["waiting"], "blocks": shown["blocks"]}
    page.wait_for_timeout(3000)
    page.screenshot(path=tmp_path / "end.png")
    grey_or_green = np.asarray(Image.open(tmp_path / "end.png").convert("RGB"))[500:, 800:]
    assert len(np.unique(grey_or_green.reshape(-1, 3), axis=0)) > 100, "no picture of the newest slice"
