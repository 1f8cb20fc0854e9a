"""Test that a browser shows each voxel of an output at its place and in its colour."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import zarr
from chromium import DRAWING, HUB, needs_chromium, started, watched_page
from numpy.typing import NDArray
from object_store import object_store
from PIL import Image
from playwright.sync_api import Browser, Page
from proxy import PREFIX, proxy, tunnel
from runs import PLANAR, save_random_model, texture

from emseg import label, segment, view
from emseg.clusters.local import LOOPBACK
from emseg.flows.view import View
from emseg.viewing.state import fragment
from emseg_core.box import Box, triple
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA
from emseg_core.store.outputs.instances import open_instances
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.zarrs.omero import colour

SHAPE = (8, 110, 330)
SIZE = (30.0, 8.0, 4.0)
REGION = Box((2, 10, 20), (7, 100, 320))
Z = 4
"""The slice that is shown, in the volume's coordinates."""
ZOOM = 3
"""Pixels per voxel along x, which is half of those along y."""
BACKGROUND = (128, 128, 128)
CLOSE = 3
"""Maximum rounding error of a colour, in steps of 255."""

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started(*DRAWING) as browser:
        yield browser


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an output of part of a realistic volume, with every optional array and one missing block."""
    folder = tmp_path_factory.mktemp("seen")
    placed: dict[str, Any] = {"voxel_size": SIZE, "offset": (90, 800, -40), "units": "nm"}
    zarr.create_array(folder / "v.zarr", data=texture(SHAPE), chunks=(3, 64, 64), zarr_format=2, order="F", attributes=placed)
    model = save_random_model(folder / "m.safetensors", PLANAR)
    segment(folder / "v.zarr", folder / "o.zarr", model=model, roi=str(REGION), probabilities=True, workers=0)
    label(folder / "o.zarr", class_name="membrane", smallest=40, workers=0)
    start = triple((Z, *REGION.start[1:]))
    corner = Box(start, triple(first + 1 for first in start)).relative_to(REGION.start)
    for level in reversed(open_output(folder / "o.zarr").levels):
        blocks = (level.blocks.block(number).write for number in range(len(level.blocks)))
        level.remove(next(box for box in blocks if box.contains(corner)))
    return folder / "o.zarr"


def state_of(shown: View) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(unquote(shown.link.partition("#!")[2]))
    return state


def settle(page: Page) -> None:
    """Wait until everything is drawn, and fail if anything prevented it."""
    page.wait_for_function("() => window.viewer && viewer.isReady()", timeout=60_000)
    page.wait_for_timeout(500)
    page.wait_for_function("() => viewer.isReady()", timeout=60_000)
    problems = page.evaluate(
        """() => viewer.layerManager.managedLayers.flatMap(({layer}) => [
            ...layer.dataSources.map(source => source.loadState?.error?.message),
            layer.fragmentMain && layer.shaderError?.value?.message,
        ]).filter(Boolean)"""
    )
    assert problems == []


def seen(page: Page, shown: View, layer: str, scale: float, door: str = "", **changed: Any) -> NDArray[np.uint8]:
    """Return the pixels ``(y, x, 3) uint8`` of a panel that shows a single layer. Its centre is the centre of the view.

    If a door is given, the viewer is opened at its host and port.
    """
    state = state_of(shown)
    state |= {"layout": "xy", "crossSectionScale": scale, "showAxisLines": False, "showScaleBar": False, "selectedLayer": {}}
    state["position"][2] = 90 / SIZE[0] + Z
    for one in state["layers"]:
        one["visible"] = False
        if one["name"] == layer:
            one.update(visible=True, **changed)
    address = shown.server.viewer(fragment(state))
    if door:
        address = urlsplit(address)._replace(scheme="http", netloc=door).geturl()
    page.goto(address, wait_until="domcontentloaded")
    settle(page)
    (panel,) = page.locator(".neuroglancer-rendered-data-panel").all()
    place = panel.bounding_box()
    assert place is not None
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    left, top, width, height = (round(place[key]) for key in ("x", "y", "width", "height"))
    return pixels[top : top + height, left : left + width]


def at_voxels(pixels: NDArray[np.uint8], state: dict[str, Any], box: Box) -> NDArray[np.uint8]:
    """Return the colour at the centre of each voxel of a slice, ``(y, x, 3) uint8``."""
    x, y, *_ = state["position"]
    rows = pixels.shape[0] / 2 + (800 / SIZE[1] + np.arange(box.start[1], box.stop[1]) - y) * 2 * ZOOM
    columns = pixels.shape[1] / 2 + (-40 / SIZE[2] + np.arange(box.start[2], box.stop[2]) - x) * ZOOM
    return np.asarray(pixels[np.floor(rows).astype(int)][:, np.floor(columns).astype(int)])


def assert_close(found: NDArray[np.uint8], wanted: NDArray[Any]) -> None:
    wrong = np.abs(found.astype(int) - wanted.astype(int)).max(axis=-1) > CLOSE
    assert wrong.mean() == 0, f"{wrong.mean():.1%} of the voxels, such as {np.argwhere(wrong)[:3]}"


@pytest.fixture
def remote(output: Path) -> Iterator[tuple[str, str]]:
    """Return the addresses of copies of the output and its volume on an object store."""
    with object_store() as store:
        yield store.upload(output, "o.zarr"), store.upload(output.with_name("v.zarr"), "v.zarr")


def test_what_is_on_an_object_store_is_shown_as_well(browser: Browser, output: Path, remote: tuple[str, str]) -> None:
    """The browser sends its requests to this machine, not to the store."""
    copy, volume = remote
    box = Box((Z, *REGION.start[1:]), (Z + 1, *REGION.stop[1:]))
    labels = open_output(output).read_labels(box)[0]
    with view(copy, volume=volume) as shown, watched_page(browser, expected="/raw/.zarray") as page:
        assert shown.notes == ()
        state = state_of(shown)
        found = seen(page, shown, "classes", 1 / ZOOM, selectedAlpha=1, segments=["0", "1"])
        colours = np.array([colour(0), colour(1), *[BACKGROUND] * 254])
        assert_close(at_voxels(found, state, box), colours[labels])
        found = seen(page, shown, "raw", 1 / ZOOM)
        low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
        grey = np.clip((texture(SHAPE)[box.slices()][0] - low) / (high - low), 0, 1) * 255
        assert_close(at_voxels(found, state, box), np.repeat(grey[..., None], 3, axis=-1))


def test_each_voxel_is_where_it_is_in_its_colour(browser: Browser, output: Path) -> None:
    stored = open_output(output)
    box = Box((Z, *REGION.start[1:]), (Z + 1, *REGION.stop[1:]))
    labels = stored.read_labels(box)[0]
    missing = labels == NOT_COMPUTED
    assert 0 < missing.mean() < 1
    with view(output) as shown, watched_page(browser, expected="/raw/.zarray") as page:
        state = state_of(shown)

        found = seen(page, shown, "classes", 1 / ZOOM, selectedAlpha=1, segments=["0", "1"])
        colours = np.array([colour(0), colour(1), *[BACKGROUND] * 254])
        assert_close(at_voxels(found, state, box), colours[labels])

        found = seen(page, shown, "classes", 1 / ZOOM, selectedAlpha=1)
        colours[0] = BACKGROUND
        assert_close(at_voxels(found, state, box), colours[labels])

        found = seen(page, shown, "probability of membrane", 1 / ZOOM)
        amounts = stored.read_probabilities(box)[1, 0][..., None] / QUANTA
        wanted = np.where(missing[..., None], BACKGROUND, np.array(colour(1)) * amounts)
        assert_close(at_voxels(found, state, box), wanted)

        found = seen(page, shown, "raw", 1 / ZOOM)
        low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
        around = Box((Z, 5, 10), (Z + 1, 105, 325))
        grey = np.clip((texture(SHAPE)[around.slices()][0] - low) / (high - low), 0, 1) * 255
        assert_close(at_voxels(found, state, around), np.repeat(grey[..., None], 3, axis=-1))

        found = at_voxels(seen(page, shown, "instances", 1 / ZOOM, selectedAlpha=1), state, box)
        ids = open_instances(open_output(output), "instances").read(box.relative_to(REGION.start))[0]
        assert_close(found[ids == 0], np.broadcast_to(BACKGROUND, found[ids == 0].shape))
        pairs = np.unique(np.column_stack([ids[ids > 0], found[ids > 0]]), axis=0)
        assert len(pairs) == len(np.unique(ids[ids > 0])), "an instance has more than one colour"
        assert len(np.unique(pairs[:, 1:], axis=0)) > len(pairs) / 2, "instances have the same colours"


def assert_classes_are_shown(page: Page, shown: View, output: Path, door: str = "") -> None:
    """Check the classes on a page that shows all layers, and then on their own."""
    assert page.get_by_text("membrane", exact=True).count() > 0, "names have an address of their own"
    box = Box((Z, *REGION.start[1:]), (Z + 1, *REGION.stop[1:]))
    found = seen(page, shown, "classes", 1 / ZOOM, door, selectedAlpha=1, segments=["0", "1"])
    colours = np.array([colour(0), colour(1), *[BACKGROUND] * 254])
    assert_close(at_voxels(found, state_of(shown), box), colours[open_output(output).read_labels(box)[0]])


def test_behind_a_proxy(browser: Browser, output: Path) -> None:
    """The proxy has another host and adds a prefix. No request bypasses it."""
    with proxy() as port:
        home = f"http://{HUB}:{port}{PREFIX}proxy/"
        with (
            view(output, public_url=f"{home}{{port}}/") as shown,
            watched_page(browser, expected="/raw/.zarray", home=home) as page,
        ):
            page.goto(shown.url, wait_until="domcontentloaded")
            settle(page)
            assert page.url.startswith(f"{shown.url}v/emseg/#!")
            assert_classes_are_shown(page, shown, output)


def test_under_a_hub_that_does_not_state_its_address(browser: Browser, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the path is known here, so the data have addresses of this machine until the page opens."""
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", PREFIX)
    monkeypatch.delenv("JUPYTERHUB_PUBLIC_URL", raising=False)
    with proxy() as port, view(output) as shown:
        door = f"{HUB}:{port}"
        with watched_page(browser, expected="/raw/.zarray", home=f"http://{door}{PREFIX}proxy/") as page:
            page.goto(f"http://{door}{shown.url}", wait_until="domcontentloaded")
            settle(page)
            assert_classes_are_shown(page, shown, output, door)


def test_a_tunnel_may_begin_at_another_port(browser: Browser, output: Path) -> None:
    """This also holds for an address that was copied at the other end and pasted into the open page."""
    with view(output) as shown, tunnel(shown.server.port) as port:
        door = f"{LOOPBACK}:{port}"
        with watched_page(browser, expected="/raw/.zarray", home=door) as page:
            page.goto(shown.url.replace(str(shown.server.port), str(port)), wait_until="domcontentloaded")
            settle(page)
            assert_classes_are_shown(page, shown, output, door)
            page.evaluate("pasted => { location.hash = pasted }", urlsplit(shown.link).fragment)
            settle(page)
            assert page.evaluate("viewer.layerManager.managedLayers.length") == len(state_of(shown)["layers"])


def test_the_channel_is_shown_that_was_segmented(browser: Browser, tmp_path: Path) -> None:
    """The image has several channels and timepoints."""
    values = np.stack([[texture(SHAPE, seed=3 * time + channel) for channel in range(3)] for time in range(2)])
    placed: dict[str, Any] = {"voxel_size": SIZE, "offset": (90, 800, -40), "units": "nm", "axis_names": [*"tczyx"]}
    zarr.create_array(tmp_path / "v.zarr", data=values, chunks=(1, 3, 3, 64, 64), zarr_format=2, attributes=placed)
    model = save_random_model(tmp_path / "m.safetensors", PLANAR)
    segment(tmp_path / "v.zarr", tmp_path / "o.zarr", model=model, roi=str(REGION), channel=1, timepoint=1, workers=0)
    with view(tmp_path / "o.zarr") as shown, watched_page(browser, expected="/raw/.zarray") as page:
        state = state_of(shown)
        found = seen(page, shown, "raw", 1 / ZOOM)
        low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
        around = Box((Z, 5, 10), (Z + 1, 105, 325))
        grey = np.clip((values[(1, 1, *around.slices())][0] - low) / (high - low), 0, 1) * 255
        assert_close(at_voxels(found, state, around), np.repeat(grey[..., None], 3, axis=-1))
        box = Box((Z, *REGION.start[1:]), (Z + 1, *REGION.stop[1:]))
        found = seen(page, shown, "classes", 1 / ZOOM, selectedAlpha=1, segments=["0", "1"])
        colours = np.array([colour(0), colour(1), *[BACKGROUND] * 254])
        assert_close(at_voxels(found, state, box), colours[open_output(tmp_path / "o.zarr").read_labels(box)[0]])


def test_what_a_user_sees_first(browser: Browser, output: Path, tmp_path: Path) -> None:
    """The address given to a browser shows all layers with names, and a coarser level when zoomed out."""
    with view(output) as shown, watched_page(browser, expected="/raw/.zarray") as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(shown.server.ticket(), wait_until="domcontentloaded")
        settle(page)
        page.screenshot(path=tmp_path / "first.png")
        pixels = np.asarray(Image.open(tmp_path / "first.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
        for name in ("inside", "membrane", "not computed"):
            assert page.get_by_text(name, exact=True).count() > 0
        assert page.url.startswith(f"{shown.url}v/emseg/#!")
        assert any("/classes/0/c/" in url for url in asked)

        asked.clear()
        far = state_of(shown) | {"crossSectionScale": 3, "layout": "xy"}
        page.goto("about:blank")
        page.goto(shown.server.viewer(fragment(far)), wait_until="domcontentloaded")
        settle(page)
        chunks = [url for url in asked if "/classes/" in url and "/c/" in url]
        assert chunks
        assert all("/classes/1/c/" in url for url in chunks)
