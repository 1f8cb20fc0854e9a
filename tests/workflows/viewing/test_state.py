"""Test the viewer's state: layers, axes with units, colours, and the initial position."""

from __future__ import annotations

import json
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg.viewing.state import MAX_VOXELS_PER_PIXEL, Sources, class_names, fragment, viewer_state
from emseg_core.box import Box
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.zarrs.omero import colour

VOLUME = VolumeSpec(
    (30, 200, 300), "uint8", (10, 50, 50), 3, (0.04, 4.0, 5.0), (0.4, 0.0, -50.0), ("micrometer", "nanometer", "nanometer")
)
REGION = Box((10, 20, 100), (20, 100, 300))
CLASSES = ("inside", "membrane", "mitochondria")
SOURCES = Sources(
    classes="http://here/classes/|zarr3:",
    names="precomputed://http://here/names/",
    raw="http://here/raw/|zarr2:",
    probabilities="http://here/probabilities/|zarr3:",
    instances={"instances": "http://here/instances-0/|zarr3:", "mitochondria": "http://here/instances-1/|zarr3:"},
)
STATE = viewer_state(VOLUME, REGION, CLASSES, SOURCES, (60.0, 200.5))
LAYERS = {layer["name"]: layer for layer in STATE["layers"]}


def test_layers_from_the_lowest_to_the_highest() -> None:
    assert list(LAYERS) == [
        "raw",
        *(f"probability of {name}" for name in CLASSES),
        "instances",
        "mitochondria",
        "classes",
    ]
    assert {name for name, layer in LAYERS.items() if not layer.get("visible", True)} == {
        f"probability of {name}" for name in CLASSES
    }
    assert LAYERS["raw"]["source"] == SOURCES.raw
    assert LAYERS["raw"]["shaderControls"]["normalized"]["range"] == [60.0, 200.5]
    assert LAYERS["mitochondria"]["source"] == SOURCES.instances["mitochondria"]
    assert {layer["type"] for name, layer in LAYERS.items() if name in ("classes", *SOURCES.instances)} == {"segmentation"}


def test_what_is_not_there_has_no_layer() -> None:
    bare = viewer_state(VOLUME, REGION, CLASSES, Sources(SOURCES.classes, SOURCES.names), None)
    assert [layer["name"] for layer in bare["layers"]] == ["classes"]


def test_an_unknown_contrast_is_the_viewers_choice() -> None:
    raw = viewer_state(VOLUME, REGION, CLASSES, SOURCES, None)["layers"][0]
    assert "shaderControls" not in raw


def test_axes_are_in_metres_and_x_comes_first() -> None:
    assert list(STATE["dimensions"]) == ["x", "y", "z"]
    for axis, size in {"x": 5e-9, "y": 4e-9, "z": 40e-9}.items():
        assert STATE["dimensions"][axis] == [pytest.approx(size), "m"]


def test_axes_without_units_keep_their_proportions() -> None:
    bare = VolumeSpec((30, 200, 300), "uint8", (10, 50, 50), 3, (10.0, 1.0, 1.0))
    state = viewer_state(bare, bare.box, CLASSES, SOURCES, None)
    assert state["dimensions"] == {"x": [1.0, ""], "y": [1.0, ""], "z": [10.0, ""]}


def test_an_image_has_two_axes_and_one_panel() -> None:
    image = VolumeSpec((1, 200, 300), "uint8", (1, 50, 50), 2, (1.0, 4.0, 4.0), units=(None, "nanometer", "nanometer"))
    state = viewer_state(image, image.box, CLASSES, SOURCES, None)
    assert (list(state["dimensions"]), len(state["position"]), state["layout"]) == (["x", "y"], 2, "xy")
    assert STATE["layout"] == "4panel"


def test_classes_have_the_colours_and_names_of_the_metadata() -> None:
    classes = LAYERS["classes"]
    assert classes["source"] == [SOURCES.classes, SOURCES.names]
    for value in range(len(CLASSES)):
        written = classes["segmentColors"][str(value)]
        assert tuple(bytes.fromhex(written[1:])) == colour(value)
    inline = class_names(CLASSES)["inline"]
    assert dict(zip(inline["ids"], inline["properties"][0]["values"], strict=True)) == {
        "0": "inside",
        "1": "membrane",
        "2": "mitochondria",
        "255": "not computed",
    }


@pytest.mark.parametrize(("classes", "seen"), [(CLASSES, ["1", "2"]), (("all",), ["0"])])
def test_what_is_not_computed_is_not_seen_as_a_class(classes: tuple[str, ...], seen: list[str]) -> None:
    """The first class is not shown either: it would cover everything that the others leave free."""
    layer = viewer_state(VOLUME, REGION, classes, SOURCES, None)["layers"][-1]
    assert layer["segments"] == seen
    red, green, blue = bytes.fromhex(layer["segmentColors"]["255"][1:])
    assert red == green == blue


def test_probabilities_are_channels_in_the_colour_of_their_class() -> None:
    for index, name in enumerate(CLASSES):
        layer = LAYERS[f"probability of {name}"]
        assert (layer["source"], layer["localPosition"]) == (SOURCES.probabilities, [index])
        red, green, blue = (value / 255 for value in colour(index))
        assert f"vec3({red:.3f}, {green:.3f}, {blue:.3f})" in layer["shader"]


@given(
    start=st.tuples(*[st.integers(0, 1000)] * 3),
    shape=st.tuples(*[st.integers(1, 5000)] * 3),
    scale=st.tuples(*[st.floats(0.1, 100)] * 3),
    translation=st.tuples(*[st.floats(-1e6, 1e6)] * 3),
)
def test_the_middle_of_the_region_is_looked_at(
    start: tuple[int, ...], shape: tuple[int, ...], scale: tuple[float, ...], translation: tuple[float, ...]
) -> None:
    """The position is in the volume's space, and close enough that images without coarser levels are not loaded in whole."""
    region = Box.of_shape(shape).shift(start)  # type: ignore[arg-type]
    volume = VolumeSpec(region.stop, "uint8", (8, 8, 8), 3, scale, translation, ("nanometer",) * 3)  # type: ignore[arg-type]
    state = viewer_state(volume, region, CLASSES, SOURCES, None)
    seen = np.array(state["position"][::-1]) * scale
    first, last = np.array(volume.crop(region)), np.array(volume.crop(region)) + np.multiply(scale, np.subtract(shape, 1))
    slack = 1e-6 * (1 + np.abs(seen))
    assert (first - slack <= seen).all()
    assert (seen <= last + slack).all()
    assert (np.abs(seen - (first + last) / 2) <= np.array(scale) / 2 + slack).all()
    assert 0 < state["crossSectionScale"] <= MAX_VOXELS_PER_PIXEL


def test_an_address_holds_the_whole_state() -> None:
    written = fragment(STATE)
    assert json.loads(unquote(written)) == STATE
    assert written.isascii()
    assert not set(' "<>{}#') & set(written)
