"""Test that `emseg export` writes the output's voxels and their position to TIFF."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from runs import PLANAR, run_emseg, save_random_model, save_volume, texture

from emseg.flows.export import export
from emseg.flows.ingest import ingest
from emseg.flows.label import label
from emseg.flows.segment import segment
from emseg_core.errors import InputError, OutputError
from emseg_core.specs.volume import TRUTH_DTYPES
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.stacks.tiff import open_tiff

SIZE = (30.0, 8.5, 8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make outputs with probabilities and instances: of a whole volume, of a part with a block missing, and of an image."""
    folder = tmp_path_factory.mktemp("exported")
    model = save_random_model(folder / "model.safetensors", PLANAR)
    tifffile.imwrite(folder / "raw.tif", texture((6, 90, 110)))
    tifffile.imwrite(folder / "image.tif", texture((1, 90, 110))[0])
    for name in ("raw", "image"):
        ingest(folder / f"{name}.tif", folder / f"{name}.zarr", voxel_size=SIZE)
        segment(folder / f"{name}.zarr", folder / f"{name}.out", model=model, probabilities=True, workers=0)
        label(folder / f"{name}.out", workers=0)
    segment(folder / "raw.zarr", folder / "part.out", model=model, workers=0, roi="1:5,:,7:")
    bare = save_volume(folder / "bare.zarr", texture((6, 90, 110)))
    segment(bare, folder / "bare.out", model=model, workers=0)
    shutil.copytree(folder / "part.out", folder / "holed.out")
    next(path for path in (folder / "holed.out" / "labels" / "classes" / "0" / "c").rglob("*") if path.is_file()).unlink()
    return folder


@pytest.mark.parametrize(
    ("name", "what"), [("part", "classes"), *itertools.product(("raw", "image"), ("classes", "instances", "inside"))]
)
def test_the_voxels_and_their_size(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    output = folder / f"{name}.out"
    options = {"classes": {}, "instances": {"instances": "instances"}, "inside": {"probability": "inside"}}[what]
    made = export(output, tmp_path / "made.tif", **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["made.tif"]
    stored = zarr.open_group(output, mode="r")
    path = {"classes": "labels/classes/0", "instances": "labels/instances/0", "inside": "probabilities/0"}[what]
    expected = np.asarray(stored[path])
    expected = expected[open_output(output).classes.index("inside")] if what == "inside" else expected
    with open_tiff(made, (*TRUTH_DTYPES, "uint32")) as stack:
        np.testing.assert_array_equal(stack.read(0, stack.shape[0]), expected.reshape(stack.shape))
        assert stack.stated is not None
        assert (stack.stated.scale, stack.stated.units) == (SIZE, ("nanometer",) * 3)
        assert stack.dtype == ("uint8" if what != "instances" or expected.max() < 256 else "uint16")
    with tifffile.TiffFile(made) as tif:
        assert tif.is_bigtiff
    before = made.read_bytes()
    assert export(output, made, overwrite=True, **options).read_bytes() == before  # type: ignore[arg-type]


def test_without_a_unit_no_size_is_stated(folder: Path, tmp_path: Path) -> None:
    with open_tiff(export(folder / "bare.out", tmp_path / "made.tif")) as stack:
        assert stack.stated is None


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"lacks 1 of \d+ blocks.*--allow-incomplete"):
        export(folder / "holed.out", tmp_path / "made.tif")
    assert not list(tmp_path.iterdir())
    found = tifffile.imread(export(folder / "holed.out", tmp_path / "made.tif", allow_incomplete=True))
    whole = tifffile.imread(export(folder / "part.out", tmp_path / "whole.tif"))
    assert (found == 255).any()
    assert np.array_equal(found[found != 255], whole[found != 255])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.tif").write_bytes(b"mine")
    for output, tiff, options, message in (
        ("raw", "there.tif", {}, "already exists.*--overwrite"),
        ("raw", "made.png", {}, "end it with .tif"),
        ("raw", "no/made.tif", {}, "is not a folder"),
        ("raw", "made.tif", {"probability": "vesicle"}, "no class 'vesicle': choose one of inside, membrane"),
        ("bare", "made.tif", {"probability": "inside"}, "stores labels only.*--probabilities"),
        ("bare", "made.tif", {"instances": "instances"}, "has no instance labels 'instances'.*emseg label"),
        ("raw", "made.tif", {"instances": "instances", "probability": "inside"}, "cannot be exported together: choose one"),
    ):
        with pytest.raises(InputError, match=message):
            export(folder / f"{output}.out", tmp_path / tiff, **options)  # type: ignore[arg-type]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made.tif").touch()
    done = run_emseg("export", folder / "raw.out", tmp_path / "made.tif", "--instances", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'made.tif'}\n"
    expected = zarr.open_array(folder / "raw.out" / "labels" / "instances" / "0", mode="r")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "made.tif"), np.asarray(expected))
