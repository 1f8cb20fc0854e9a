"""Test that everything emseg reads is shown as one image, with the same levels, voxel size and offset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr
from numcodecs import BZ2, Blosc, Delta, GZip
from runs import texture

from emseg_core.errors import VolumeError
from emseg_core.store.volumes.shown import ShownImage, shown_image
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.ome import Space, levels, multiscales, multiscales_of

SHAPE = (4, 20, 30)
PLACED: dict[str, Any] = {"voxel_size": [40, 4, 4.5], "offset": [80, 0, -9], "units": "nm"}
SPACE = Space(("z", "y", "x"), (40.0, 4.0, 4.5), (80.0, 0.0, -9.0), ("nanometer",) * 3)


def copied(shown: ShownImage, folder: Path) -> zarr.Group:
    """Return the group as a viewer finds it."""
    folder.mkdir()
    for name, content in shown.metadata.items():
        (folder / name).write_bytes(content)
    for number, array in enumerate(shown.arrays):
        assert isinstance(array, Path)
        (folder / str(number)).symlink_to(array)
    return zarr.open_group(folder, mode="r")


def spaces(shown: ShownImage) -> list[Space]:
    """Return the extent of each level's voxels, as in the viewer's metadata."""
    document = json.loads(shown.metadata.get("zarr.json") or shown.metadata[".zattrs"])
    attributes = document.get("attributes", document)
    return [space for _, space in levels(multiscales_of(attributes))]


def pyramid(path: Path, **attributes: Any) -> Path:
    """Make an image with three levels."""
    named = [(name, SPACE.coarser((1, step, step))) for name, step in (("full", 1), ("half", 2), ("quarter", 4))]
    group = zarr.create_group(
        path, attributes={"ome": {"version": "0.5", "multiscales": multiscales(named, "raw")}, **attributes}
    )
    for (name, _), step in zip(named, (1, 2, 4), strict=True):
        group.create_array(name, data=texture(SHAPE)[:, ::step, ::step], chunks=(2, 10, 10), dimension_names=["z", "y", "x"])
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("codec", [Blosc("lz4"), Blosc("zstd", shuffle=Blosc.BITSHUFFLE), GZip(), None], ids=str)
def test_an_array_of_version_2(codec: Any, dtype: str, tmp_path: Path) -> None:
    """Its own attributes state voxel size and offset."""
    array = zarr.create_array(
        tmp_path / "v.zarr",
        data=texture(SHAPE).astype(dtype),
        chunks=(2, 10, 10),
        zarr_format=2,
        order="F",
        compressors=codec,
        attributes=PLACED,
    )
    shown = shown_image(tmp_path / "v.zarr")
    assert (shown.zarr_format, shown.arrays, spaces(shown)) == (2, (tmp_path / "v.zarr",), [SPACE])
    group = copied(shown, tmp_path / "seen.zarr")
    ome_zarr_models.v04.Image.from_zarr(group)
    seen = open_volume(tmp_path / "seen.zarr")
    np.testing.assert_array_equal(seen.read(seen.spec.box), array[:])
    assert seen.spec == open_volume(tmp_path / "v.zarr").spec


@pytest.mark.parametrize("shards", [None, (4, 20, 20)])
def test_an_array_of_version_3(shards: tuple[int, ...] | None, tmp_path: Path) -> None:
    zarr.create_array(
        tmp_path / "v.zarr",
        data=texture(SHAPE),
        chunks=(2, 10, 10),
        shards=shards,
        dimension_names=["z", "y", "x"],
        attributes=PLACED,
    )
    shown = shown_image(tmp_path / "v.zarr")
    assert (shown.zarr_format, spaces(shown)) == (3, [SPACE])
    ome_zarr_models.v05.Image.from_zarr(copied(shown, tmp_path / "seen.zarr"))


def test_all_levels_of_an_image(tmp_path: Path) -> None:
    image = pyramid(tmp_path / "v.zarr")
    shown = shown_image(image)
    assert shown.arrays == tuple(image / name for name in ("full", "half", "quarter"))
    assert spaces(shown) == [SPACE, SPACE.coarser((1, 2, 2)), SPACE.coarser((1, 4, 4))]
    ome_zarr_models.v05.Image.from_zarr(copied(shown, tmp_path / "seen.zarr"))
    assert shown_image(image, max_levels=2).arrays == shown.arrays[:2]


def test_a_level_that_is_named_by_itself(tmp_path: Path) -> None:
    """It has the voxel size that the image gives it."""
    assert spaces(shown_image(pyramid(tmp_path / "v.zarr") / "half")) == [SPACE.coarser((1, 2, 2))]


def damage(folder: Path) -> None:
    (folder / "zarr.json").write_text("{")


def change_type(folder: Path) -> None:
    zarr.create_array(folder, data=texture(SHAPE).astype(np.uint16), overwrite=True)


def encode_oddly(folder: Path) -> None:
    document = json.loads((folder / "zarr.json").read_bytes())
    document["codecs"][-1] = {"name": "numcodecs.bz2", "configuration": {"level": 1}}
    (folder / "zarr.json").write_text(json.dumps(document))


@pytest.mark.parametrize("spoil", [damage, change_type, encode_oddly])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_a_coarser_level_that_cannot_be_shown_ends_them(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    image = pyramid(tmp_path / "v.zarr")
    spoil(image / "quarter")
    assert len(shown_image(image).arrays) == 2
    spoil(image / "half")
    assert len(shown_image(image).arrays) == 1


@pytest.mark.parametrize(
    ("codecs", "named"),
    [({"compressors": BZ2()}, "bz2"), ({"filters": [Delta(dtype="u1")], "compressors": None}, "delta")],
)
def test_codecs_that_browsers_do_not_have(codecs: dict[str, Any], named: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v.zarr", data=texture(SHAPE), zarr_format=2, **codecs)
    with pytest.raises(VolumeError, match=f"stored with {named}, which browsers do not decode"):
        shown_image(tmp_path / "v.zarr")


def test_a_unit_that_viewers_do_not_know_is_left_out(tmp_path: Path) -> None:
    """Otherwise viewers would not show the image."""
    zarr.create_array(tmp_path / "v.zarr", data=texture(SHAPE), attributes={**PLACED, "units": "px"})
    (space,) = spaces(shown_image(tmp_path / "v.zarr"))
    assert (space.scale, space.units) == (SPACE.scale, (None, None, None))


def test_axes_in_front(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v.zarr", data=texture(SHAPE)[None], dimension_names=["C", "Z", "Y", "X"], attributes=PLACED)
    shown = shown_image(tmp_path / "v.zarr")
    (space,) = spaces(shown)
    assert (space.names, space.scale[1:]) == (("c", "z", "y", "x"), SPACE.scale)
    assert json.loads(shown.metadata["zarr.json"])["attributes"]["ome"]["multiscales"][0]["axes"][0]["type"] == "channel"


@pytest.mark.parametrize(
    ("names", "shape", "shown_as"),
    [
        (("time", "c^", "z", "y", "x"), (3, 2, *SHAPE), ("t", "c", "z", "y", "x")),
        (("t", "angle", "c", "y", "x"), (1, 4, 1, 20, 30), ("t", "c", "axis2", "y", "x")),
    ],
)
def test_channels_and_timepoints_have_the_names_that_the_viewer_is_told(
    names: tuple[str, ...], shape: tuple[int, ...], shown_as: tuple[str, ...], tmp_path: Path
) -> None:
    """They are counted, whatever their stated size is."""
    size = [8, 4, 4.5][-sum(name in "zyx" for name in names) :]
    attributes: dict[str, Any] = {"axis_names": list(names), "voxel_size": size}
    zarr.create_array(tmp_path / "v.zarr", shape=shape, dtype="uint8", attributes=attributes)
    shown = shown_image(tmp_path / "v.zarr")
    (space,) = spaces(shown)
    front = len(names) - len(size)
    assert (space.names, space.scale) == (shown_as, (1,) * front + tuple(size))
    document = json.loads(shown.metadata["zarr.json"])["attributes"]["ome"]["multiscales"][0]
    kinds = {axis["name"]: axis["type"] for axis in document["axes"]}
    assert (kinds["t"], kinds["c"]) == ("time", "channel")
