from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emseg_core.store.stacks.stack import StatedVoxelSize
from emseg_core.store.stacks.tiff import open_tiff

IMAGEJ = "the spacing and unit of its ImageJ header"
OME = "the PhysicalSize of its OME-XML"
TAGS = "its resolution tags, in pixels per centimetre"


def stated(path: Path, shape: tuple[int, ...], **options: Any) -> StatedVoxelSize | None:
    tifffile.imwrite(path / "s.tif", np.zeros(shape, np.uint8), photometric="minisblack", **options)
    with open_tiff(path / "s.tif") as stack:
        return stack.stated


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("nm", "nanometer"), ("um", "micrometer"), ("micron", "micrometer"), ("\\u00B5m", "micrometer"), ("mm", "millimeter")],
)
def test_imagej(tmp_path: Path, unit: str, expected: str) -> None:
    options = {"imagej": True, "resolution": (0.25, 0.125), "metadata": {"spacing": 40.0, "unit": unit, "axes": "ZYX"}}
    assert stated(tmp_path, (5, 9, 9), **options) == StatedVoxelSize((40, 8, 4), (expected,) * 3, IMAGEJ)


@pytest.mark.parametrize(
    "metadata", [{"unit": "nm"}, {"spacing": 40.0}, {"spacing": 40.0, "unit": "pixel"}, {"spacing": -1.0, "unit": "nm"}]
)
def test_imagej_in_part_is_nothing(tmp_path: Path, metadata: dict[str, Any]) -> None:
    assert stated(tmp_path, (5, 9, 9), imagej=True, resolution=(0.25, 0.25), metadata={**metadata, "axes": "ZYX"}) is None


def test_ome(tmp_path: Path) -> None:
    sizes = {
        "PhysicalSizeX": 4.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 4.5,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 0.04,
    }
    found = stated(tmp_path, (5, 9, 9), ome=True, metadata={"axes": "ZYX", **sizes})
    assert found == StatedVoxelSize((0.04, 4.5, 4), ("micrometer", "nanometer", "nanometer"), OME)
    del sizes["PhysicalSizeZ"]
    assert stated(tmp_path, (5, 9, 9), ome=True, metadata={"axes": "ZYX", **sizes}) is None


def test_pixels_per_centimetre_of_a_single_slice(tmp_path: Path) -> None:
    options = {"resolution": (2.5e6, 1.25e6), "resolutionunit": "CENTIMETER"}
    found = stated(tmp_path, (9, 9), **options)
    assert found == StatedVoxelSize((1, 8, 4), (None, "nanometer", "nanometer"), TAGS)
    assert stated(tmp_path, (5, 9, 9), **options) is None  # the distance of slices is not known


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resolution": (118.11, 118.11), "resolutionunit": "CENTIMETER"},
        {"resolution": (300, 300), "resolutionunit": "INCH"},
        {"resolution": (2.5e6, 2.5e6), "resolutionunit": "INCH"},
        {"resolution": (2.5e6, 2.5e6), "resolutionunit": "NONE"},
        {"resolution": (1, 1), "resolutionunit": "CENTIMETER"},
    ],
)
def test_resolution_for_printing_is_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    assert stated(tmp_path, (9, 9), **options) is None


def test_slices_of_a_folder_must_agree(tmp_path: Path) -> None:
    told = {"spacing": 40.0, "unit": "nm"}
    for number, r in enumerate((0.25, 0.25, 0.5)):
        plane = np.zeros((9, 9), np.uint8)
        tifffile.imwrite(tmp_path / f"{number}.tif", plane, imagej=True, resolution=(r, r), metadata=told)
    with open_tiff(tmp_path) as stack:
        assert stack.stated is None
    (tmp_path / "2.tif").unlink()
    with open_tiff(tmp_path) as stack:
        assert stack.stated == StatedVoxelSize((40, 4, 4), ("nanometer",) * 3, IMAGEJ)
