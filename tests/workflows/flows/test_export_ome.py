"""Test `emseg export` to OME-Zarr: other readers find the voxels of each level at their positions."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import tifffile
import zarr
from exported import STEPS, WHAT, levels_in, make_output, place_of
from numpy.typing import NDArray
from ome_zarr_models import v04, v05
from runs import PLANAR, run_emseg, save_random_model, snapshot, texture

from emseg.flows.export import export
from emseg.flows.ingest import ingest
from emseg.flows.segment import segment
from emseg_core.box import Box
from emseg_core.errors import BlockError, InputError, OutputError
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.arrays import Shards

FORMATS = ("ome-zarr-0.4", "ome-zarr-0.5")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("exported"))


def attributes_of(made: Path) -> dict[str, Any]:
    """Return the OME metadata after validation."""
    group = zarr.open_group(made, mode="r")
    version = v05 if group.metadata.zarr_format == 3 else v04
    image = version.Image.from_zarr(group)
    attributes: Any = group.attrs["ome"] if version is v05 else dict(group.attrs)
    if "image-label" in attributes:
        version.ImageLabel.from_zarr(group)
    assert image.members
    return dict(attributes)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("what", WHAT)
def test_each_level_is_what_and_where_it_is_in_the_output(output: Path, tmp_path: Path, what: str, file_format: Any) -> None:
    made = export(output, tmp_path / "made.zarr", file_format=file_format, **WHAT[what])
    assert [path.name for path in tmp_path.iterdir()] == ["made.zarr"]
    (multiscale,) = attributes_of(made)["multiscales"]
    assert [axis["unit"] for axis in multiscale["axes"]] == ["nanometer"] * 3
    driver = "zarr" if file_format.endswith("4") else "zarr3"
    for level, (expected, factor) in enumerate(zip(levels_in(output, what), STEPS, strict=True)):
        stored = tensorstore.open({"driver": driver, "kvstore": f"file://{made}/{level}/"}).result()
        np.testing.assert_array_equal(stored.read().result(), expected)
        assert stored.dtype.name == ("uint8" if expected.max() < 256 else "uint16")
        scale, shift = multiscale["datasets"][level]["coordinateTransformations"]
        assert (scale["scale"], shift["translation"]) == place_of(factor)
    assert len(multiscale["datasets"]) == len(STEPS)
    volume = open_volume(made)
    np.testing.assert_array_equal(volume.read(volume.spec.box), levels_in(output, what)[0])
    before = snapshot(tmp_path)
    export(output, made, file_format=file_format, overwrite=True, **WHAT[what])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("file_format", FORMATS)
def test_viewers_are_told_names_and_colours(output: Path, tmp_path: Path, file_format: Any) -> None:
    found = {
        what: attributes_of(export(output, tmp_path / f"{what}.zarr", file_format=file_format, **options))
        for what, options in WHAT.items()
    }
    named = found["classes"]["image-label"]
    assert [each["name"] for each in named["properties"]] == list(PLANAR.classes)
    assert len({tuple(each["rgba"]) for each in named["colors"]}) == len(PLANAR.classes)
    assert found["instances"]["image-label"] == {"version": file_format[-3:]}
    assert "image-label" not in found["inside"]
    (channel,) = found["inside"]["omero"]["channels"]
    assert (channel["label"], channel["window"]["end"]) == ("inside", 254)


@pytest.mark.parametrize("file_format", FORMATS)
def test_an_image_of_two_axes_without_units(tmp_path: Path, file_format: Any) -> None:
    zarr.create_array(tmp_path / "raw.zarr", data=texture((1, 60, 70))[0], chunks=(32, 32))
    model = save_random_model(tmp_path / "m.safetensors", PLANAR)
    segment(tmp_path / "raw.zarr", tmp_path / "o.out", model=model, workers=0)
    made = export(tmp_path / "o.out", tmp_path / "made.zarr", file_format=file_format)
    (multiscale,) = attributes_of(made)["multiscales"]
    assert multiscale["axes"] == [{"name": axis, "type": "space"} for axis in "yx"]
    expected = zarr.open_array(tmp_path / "o.out" / "labels" / "classes" / "0", mode="r")
    np.testing.assert_array_equal(zarr.open_array(made / "0", mode="r")[...], expected[...])


def test_what_is_missing_is_said(output: Path, tmp_path: Path) -> None:
    holed = Path(shutil.copytree(output, tmp_path / "holed"))
    next(path for path in (holed / "labels" / "classes" / "1" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(OutputError, match=r"level 1 of .* lacks 1 of \d+ parts: finish it .*--allow-incomplete"):
        export(holed, tmp_path / "made.zarr")
    assert not (tmp_path / "made.zarr").exists()
    export(holed, tmp_path / "made.tif")
    made = export(holed, tmp_path / "made.zarr", allow_incomplete=True)
    found, whole = (np.asarray(zarr.open_array(path / "1", mode="r")) for path in (made, output / "labels" / "classes"))
    assert (found == 255).any()
    assert np.array_equal(found[found != 255], whole[found != 255])


@pytest.mark.parametrize("file_format", FORMATS)
def test_only_an_export_and_nothing_else_is_replaced(output: Path, tmp_path: Path, file_format: Any) -> None:
    more = export(output, tmp_path / "more.zarr", file_format=file_format)
    (more / "notes.txt").touch()
    made = export(output, tmp_path / "real.zarr", file_format=file_format)
    (tmp_path / "link.zarr").symlink_to(made)
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").touch()
    tifffile.imwrite(tmp_path / "raw.tif", texture((2, 20, 20)))
    ingest(tmp_path / "raw.tif", tmp_path / "volume.zarr")
    before = snapshot(tmp_path)
    for name in ("more", "link", "empty", "file", "volume"):
        with pytest.raises(OutputError, match="is not an export of emseg, or contains other files"):
            export(output, tmp_path / f"{name}.zarr", file_format=file_format, overwrite=True)
    with pytest.raises(OutputError, match="already exists: choose another name, or replace it with --overwrite"):
        export(output, made, file_format=file_format)
    assert snapshot(tmp_path) == before
    other = next(each for each in FORMATS if each != file_format)
    export(output, made, file_format=other, overwrite=True)  # type: ignore[arg-type]
    assert attributes_of(made)


def test_refusals(output: Path, tmp_path: Path) -> None:
    for target, options, message in (
        (tmp_path / "made", {}, r"end it with .tif or .zarr, or choose one with --format"),
        (tmp_path / "no" / "made.zarr", {}, "is not a folder"),
        (tmp_path / "a\0b.zarr", {}, "no file name can have"),
        (output / "made.zarr", {}, "lies inside the output"),
        (output, {"file_format": "ome-zarr-0.5", "overwrite": True}, "lies inside the output"),
    ):
        with pytest.raises(InputError, match=message):
            export(output, target, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", FORMATS)
def test_what_cannot_be_read_or_written_leaves_nothing(output: Path, tmp_path: Path, file_format: Any) -> None:
    damaged = Path(shutil.copytree(output, tmp_path / "damaged"))
    shard = next(path for path in (damaged / "labels" / "instances" / "2" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(BlockError, match=r"of a level of .* cannot be read"):
        export(damaged, tmp_path / "made.zarr", file_format=file_format, instances="instances")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # no file may grow beyond this, as if the disk were full
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            export(output, tmp_path / "made.zarr", file_format=file_format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_more_than_a_write_unit_is_read_at_once(
    output: Path, tmp_path: Path, file_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[Box] = []
    read = Shards.read

    def noting(self: Shards, box: Box) -> NDArray[np.generic]:
        boxes.append(box)
        return read(self, box)

    monkeypatch.setattr(Shards, "read", noting)
    export(output, tmp_path / "made.zarr", file_format=file_format)
    units = json.loads((output / "labels" / "classes" / "0" / "zarr.json").read_bytes())
    unit = units["chunk_grid"]["configuration"]["chunk_shape"]
    assert all(length <= most for box in boxes for length, most in zip(box.shape, unit, strict=True))
    assert len(boxes) > len(STEPS)


def test_the_command(output: Path, tmp_path: Path) -> None:
    done = run_emseg("export", output, tmp_path / "made", "--format", "ome-zarr-0.4", "--probability", "membrane")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'made'}\n"), done.stderr
    assert (tmp_path / "made" / "2" / ".zarray").is_file()
