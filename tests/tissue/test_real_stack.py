"""Test the whole workflow on real serial sections, with the bundled network and with that of the paper."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import yaozarrs
import zarr
from PIL import Image

import emseg
from emseg import ingest, preview, segment
from emseg_core.model.file import save_model
from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec

DATA = Path(os.environ.get("EMSEG_DATA", "."))
STACK = DATA / "isbi2012" / "train-volume.tif"
pytestmark = pytest.mark.skipif(not STACK.exists(), reason="EMSEG_DATA names no folder with isbi2012")


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingest the 24 slices as a volume."""
    path = tmp_path_factory.mktemp("isbi") / "isbi.zarr"
    ingest(STACK, path, voxel_size=(50, 4, 4))
    return path


def test_stack_to_picture(volume: Path) -> None:
    """TIFF, ingest, run and preview keep the voxel size, and other programs read the result."""
    report = segment(volume, workers=2, normalise="slice")
    assert report.exit_code == 0
    assert report.voxels == 24 * 512 * 512
    output = volume.with_name("isbi.emseg.zarr")
    labels = zarr.open_array(output / "labels/classes/0", mode="r")[:]
    assert 0.02 < np.mean(labels == 1) < 0.6
    ome: Any = zarr.open_group(output / "labels/classes", mode="r").attrs["ome"]
    steps = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    (scale,) = [step["scale"] for step in steps if step["type"] == "scale"]
    assert scale == [50, 4, 4]
    for image in (output, output / "labels" / "classes"):
        assert yaozarrs.validate_zarr_store(image)
    where = {"driver": "file", "path": str(output / "labels" / "classes" / "0")}
    np.testing.assert_array_equal(tensorstore.open({"driver": "zarr3", "kvstore": where}).result().read().result(), labels)
    with Image.open(preview(output)) as picture:
        assert picture.size[0] > 3 * 512


def test_the_network_of_the_paper_on_one_slice(volume: Path) -> None:
    """It has 31,030,658 random weights: 572 in, 388 out, steps of 384."""
    paper = ModelSpec.unet(width=64, depth=4)
    model = volume.with_name("paper.safetensors")
    save_model(model, UNet(paper), {"name": "random weights"})
    options: dict[str, Any] = {"model": model, "roi": "7:8,:,:", "tile": (1, 572, 572)}
    plan = emseg.plan(volume, **options).plan
    assert plan.model.output_shape(plan.tile) == (1, 388, 388)
    assert plan.model.step(plan.tile) == (1, 384, 384)
    assert plan.model.parameters == 31_030_658
    report = segment(volume, volume.with_name("paper.zarr"), workers=0, threads=2, **options)
    assert (report.done, report.voxels) == (len(plan), 512 * 512)
