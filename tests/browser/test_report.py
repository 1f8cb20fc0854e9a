"""Test that a browser opens a report from disk and requests no other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from playwright.sync_api import Page
from runs import save_volume

import emseg
from emseg import label, segment

SAMPLE = Path(__file__).parents[2] / "examples" / "fib25-sample" / "raw.tif"
BLUE = (43, 123, 186)
"""The colour of finished blocks and of chart columns."""


def pixels(page: Page, picture: Path) -> np.ndarray:
    """Return the pixels of the whole page, ``(y, x, 3)``."""
    page.screenshot(path=picture, full_page=True)
    return np.asarray(Image.open(picture).convert("RGB"))


def test_a_report_is_read(page: Page, tmp_path: Path) -> None:
    size = {"voxel_size": [10, 10, 10], "units": ["nanometer"] * 3}
    volume = save_volume(tmp_path / "volume.zarr", tifffile.imread(SAMPLE)[:4, :96, :96], (4, 96, 96), **size)
    segment(volume, tmp_path / "out.zarr", workers=0, probabilities=True)
    label(tmp_path / "out.zarr", workers=0)
    file = emseg.report(tmp_path / "out.zarr")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.title() == "out.zarr"
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it is as wide as the window"

    drawn = page.locator("figure image")
    assert drawn.count() == 12, "raw, labels, both and instances of three slices"
    assert all((box := drawn.nth(n).bounding_box()) is not None and box["width"] > 100 for n in range(12))
    screen = pixels(page, tmp_path / "screen.png")
    place = drawn.first.bounding_box()
    assert place is not None
    top, left = round(place["y"]), round(place["x"])
    raw = screen[top : top + round(place["height"]), left : left + round(place["width"])]
    assert len(np.unique(raw.reshape(-1, 3), axis=0)) > 50, "no picture of tissue"
    assert (screen == BLUE).all(axis=2).sum() > 10_000, "no bar, no chart"

    page.click("text=Where the time went")
    assert page.evaluate("window.scrollY") > 0

    page.emulate_media(media="print")
    page.set_viewport_size({"width": 760, "height": 1100})
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it is as wide as paper"
    assert (pixels(page, tmp_path / "paper.png") == BLUE).all(axis=2).sum() > 5000
