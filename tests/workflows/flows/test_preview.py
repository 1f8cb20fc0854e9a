"""Test that the picture shows the stored labels in the colours of the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import PLANAR, save_random_model, save_volume, shards, texture

from emseg.flows.preview import CAPTION_PIXELS, GAP_PIXELS, preview
from emseg.flows.segment import segment
from emseg.pages.colours import NOT_COMPUTED_COLOUR
from emseg_core.errors import OutputError
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.zarrs.omero import colour

SHAPE = (3, 90, 130)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_volume(tmp_path / "volume.zarr", texture(SHAPE))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    segment(tmp_path / "volume.zarr", tmp_path / "out.zarr", model=model, workers=0)
    return tmp_path / "out.zarr"


def panels(picture: Path) -> tuple[int, list[np.ndarray]]:
    """Return the width of a voxel in pixels, and the three panels with one pixel per voxel."""
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    zoom = (pixels.shape[0] - CAPTION_PIXELS) // SHAPE[1]
    width = zoom * SHAPE[2]
    return zoom, [pixels[CAPTION_PIXELS::zoom, n * (width + GAP_PIXELS) :][:, :width:zoom] for n in range(3)]


def test_labels_in_their_colours(output: Path) -> None:
    zoom, (_, labels, _) = panels(preview(output, z=1))
    assert zoom > 1
    stored = open_output(output)
    membrane = stored.read_labels(stored.region)[1] == 1
    assert membrane.any()
    assert (labels[membrane] == colour(1)).all()
    assert (labels[~membrane] == 0).all()


def test_what_is_not_computed_is_grey(output: Path) -> None:
    shards(output)[0].unlink()
    _, (_, labels, _) = panels(preview(output, output.with_name("p.png"), z=0))
    stored = open_output(output)
    missing = stored.read_labels(stored.region)[0] == 255
    assert missing.any()
    assert (labels[missing] == NOT_COMPUTED_COLOUR).all()


def test_no_such_slice(output: Path) -> None:
    with pytest.raises(OutputError, match="slices 0 to 2, not 3"):
        preview(output, z=3)


def test_a_picture_that_cannot_be_written(output: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        preview(output, output.with_name("missing") / "p.png")
