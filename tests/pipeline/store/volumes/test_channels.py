"""Test reading one channel at one timepoint of an array as if it were a separate array."""

from __future__ import annotations

import pickle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from object_store import object_store
from ome_zarr_models.v04 import Image as Image04
from ome_zarr_models.v05 import Image as Image05
from strategies import boxes_in

from emseg_core.box import Box
from emseg_core.errors import VolumeError
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT, cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.reading import CACHE_BYTES
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import Selection, VolumeSpec
from emseg_core.store.volumes.chunk_cache import MAX_READ_BYTES
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.ome import channel_labels

SHAPE = (2, 3, 9, 21, 17)
"""Timepoints, channels, z, y, x."""
CHUNK = (4, 8, 8)
VALUES = np.random.default_rng(7).integers(0, 250, SHAPE).astype(np.uint16)
LAYOUTS: dict[str, dict[str, Any]] = {
    "each": {"chunks": (1, 1, *CHUNK)},
    "v2": {"chunks": (1, 1, *CHUNK), "zarr_format": 2},
    "v2-together": {"chunks": (2, 3, *CHUNK), "zarr_format": 2, "order": "F"},
    "together": {"chunks": (1, 3, *CHUNK)},
    "longer": {"chunks": (2, 4, *CHUNK)},
    "sharded": {"chunks": (1, 1, *CHUNK), "shards": (2, 3, 8, 16, 16)},
    "sharded-together": {"chunks": (1, 3, *CHUNK), "shards": (2, 3, 8, 16, 16)},
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store the same voxels in each layout."""
    folder = tmp_path_factory.mktemp("layouts")
    for name, options in LAYOUTS.items():
        zarr.create_array(folder / name, shape=SHAPE, dtype="uint16", **options)[:] = VALUES
    return folder


def together(name: str) -> int:
    """Return the number of channels, times timepoints, in a chunk."""
    return prod(map(min, LAYOUTS[name]["chunks"][:2], SHAPE[:2]))


@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    at=st.tuples(st.integers(0, 1), st.integers(0, 2)),
    boxes=st.lists(boxes_in(SHAPE[2:]), min_size=1, max_size=3),
    cache_bytes=st.sampled_from([0, 600, 10**6]),
)
def test_any_box_of_any_channel(layouts: Path, name: str, at: tuple[int, int], boxes: list[Box], cache_bytes: int) -> None:
    volume = open_volume(layouts / name, cache_bytes, part=Selection(at[1], at[0]))
    for box in boxes:
        np.testing.assert_array_equal(volume.read(box), VALUES[(*at, *box.slices())])
    assert volume.spec == VolumeSpec(SHAPE[2:], "uint16", CHUNK, channel=at[1], timepoint=at[0], together=together(name))
    again = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(again.read(boxes[0]), VALUES[(*at, *boxes[0].slices())])


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_that_is_decompressed_counts(layouts: Path, name: str) -> None:
    for cache_bytes in (0, 10**6):
        volume = open_volume(layouts / name, cache_bytes, part=Selection(1, 0))
        volume.read(volume.spec.box)
        volume.read(volume.spec.box)
        once = VALUES[0, 0].nbytes * together(name)
        assert volume.decoded_bytes == (once if cache_bytes else 2 * once)
    model = ModelSpec.unet(width=2, depth=1)
    spec, alone = volume.spec, open_volume(layouts / "each", part=Selection(1, 0)).spec
    plan = plan_volume(spec, model)
    assert plan == plan_volume(alone, model), "a channel is cut as a volume of its own"
    cost, least = cost_of(plan, spec, probabilities=False), cost_of(plan, alone, probabilities=False)
    assert cost.bytes_read == together(name) * least.bytes_read
    others = BLOCKS_IN_FLIGHT * (together(name) - 1) * prod(CHUNK) * 2
    assert cost.bytes_per_worker == least.bytes_per_worker + others


def test_a_call_decompresses_no_more_because_channels_lie_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "v", shape=(16, 1, 64, 1024), chunks=(16, 1, 64, 64), dtype="uint8", fill_value=3)
    volume = open_volume(tmp_path / "v", CACHE_BYTES, part=Selection(5))
    loads: list[Box] = []
    load = volume._chunks._load

    def noting(box: Box) -> NDArray[Any]:
        loads.append(box)
        return load(box)

    monkeypatch.setattr(volume._chunks, "_load", noting)
    monkeypatch.setattr("emseg_core.store.volumes.chunk_cache.MAX_READ_BYTES", MAX_READ_BYTES // 128)
    assert (volume.read(volume.spec.box) == 3).all()
    assert len(loads) == 8
    assert max(load.voxels * 16 for load in loads) == MAX_READ_BYTES // 128


def test_shards_of_a_remote_store(layouts: Path) -> None:
    """If all chunks of a channel are needed, those of the others are not read."""
    with object_store() as store:
        for name in ("sharded", "sharded-together"):
            volume = open_volume(store.upload(layouts / name, name), part=Selection("2", 1))
            with store.counting() as asked:
                np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES[1, 2])
            ends = [request for request in asked if "bytes=-" in request]
            assert (len(ends), len(asked)) == (8, 8 + 27), "the index of each shard once, each chunk once"
            assert len(set(asked)) == len(asked)


def labelled(version: str, labels: list[Any]) -> dict[str, Any]:
    """Return attributes of an image with channels."""
    kinds = {"t": "time", "c": "channel"}
    scale = {"type": "scale", "scale": [2, 1, 40, 4, 4]}
    multiscales = {
        "axes": [{"name": name, "type": kinds.get(name, "space")} for name in "tczyx"],
        "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
    }
    colours = {"color": "FFFFFF", "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
    told = {"channels": [{"label": label, **colours} for label in labels]}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscales}], "omero": told}
    return {"ome": {"version": "0.5", "multiscales": [multiscales], "omero": told}}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_names_of_channels(version: str, tmp_path: Path) -> None:
    """Both OME-Zarr versions have names, also if the path is that of a level's array."""
    zarr_format = 2 if version == "0.4" else 3
    attributes = labelled(version, ["DAPI", "EM", "0"])
    group = zarr.create_group(tmp_path / "v", zarr_format=zarr_format, attributes=attributes)  # type: ignore[arg-type]
    names: dict[str, Any] = {} if version == "0.4" else {"dimension_names": [*"tczyx"]}
    group.create_array("s0", data=VALUES, chunks=(1, 1, *CHUNK), **names)
    (Image04 if version == "0.4" else Image05).from_zarr(group)
    for path in (tmp_path / "v", tmp_path / "v" / "s0"):
        volume = open_volume(path, part=Selection("EM", 1))
        assert (volume.spec.channel, volume.spec.timepoint, volume.spec.scale) == (1, 1, (40, 4, 4))
        np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES[1, 1])
        assert volume.spec == open_volume(path, part=Selection(1, 1)).spec == open_volume(path, part=Selection("1", 1)).spec
        with pytest.raises(VolumeError, match=r"2 channels named '0': .*, 0 \(DAPI\), 1 \(EM\), 2 \(0\)$"):
            open_volume(path, part=Selection("0", 1))


@pytest.mark.parametrize("omero", [None, 7, {}, {"channels": 3}, {"channels": [3, {"label": 4}]}, {"channels": [{}, None]}])
def test_metadata_of_channels_that_say_nothing(omero: Any) -> None:
    assert set(channel_labels({"omero": omero})) <= {""}
    assert set(channel_labels({"ome": {"omero": omero}})) <= {""}


def test_long_lists_of_channels_are_cut(tmp_path: Path) -> None:
    attributes = labelled("0.5", [f"stain {number}" for number in range(12)])
    zarr.create_group(tmp_path / "v", attributes=attributes).create_array("s0", shape=(1, 12, 4, 4, 4), dtype="uint8")
    with pytest.raises(VolumeError, match=r"12 channels.* --channel, 0 \(stain 0\), .*, 7 \(stain 7\), \.\.\. to 11$"):
        open_volume(tmp_path / "v", part=Selection())
    assert open_volume(tmp_path / "v", part=Selection("stain 11")).spec.channel == 11


def test_an_only_channel_is_no_choice(tmp_path: Path) -> None:
    """The volume is the same whether it is named or not."""
    zarr.create_array(tmp_path / "v", data=VALUES[:1, :1], chunks=(1, 1, *CHUNK))
    specs = {open_volume(tmp_path / "v", part=part).spec for part in (None, Selection(), Selection(0, 0), Selection("0"))}
    assert specs == {VolumeSpec(SHAPE[2:], "uint16", CHUNK)}


def test_metadata_that_speak_of_no_end_of_channels(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v", shape=(2**40, 4, 4, 4), chunks=(1, 4, 4, 4), dtype="uint8")
    with pytest.raises(VolumeError, match=r"1099511627776 channels.*, 0 to 1099511627775"):
        open_volume(tmp_path / "v", part=Selection())
    assert open_volume(tmp_path / "v", part=Selection("99999999")).spec.channel == 99999999
    for wrong in (2**40, -1, "9" * 5000, "\u0663"):
        with pytest.raises(VolumeError, match="no channel"):
            open_volume(tmp_path / "v", part=Selection(wrong))


def test_two_axes_of_channels(tmp_path: Path) -> None:
    """At most one of them may be longer than 1."""
    zarr.create_array(tmp_path / "v", data=VALUES[:, :1], attributes={"axis_names": ["angle", "c", *"zyx"]})
    volume = open_volume(tmp_path / "v", part=Selection(1))
    np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES[1, 0])
    zarr.create_array(tmp_path / "w", data=VALUES, attributes={"axis_names": ["angle", "c", *"zyx"]})
    with pytest.raises(VolumeError, match=r"\(angle, c, z, y, x\) have shape .*: copy the part you want into a volume where"):
        open_volume(tmp_path / "w", part=Selection(1))
    zarr.create_array(tmp_path / "none", shape=(0, 4, 4, 4), chunks=(1, 4, 4, 4), dtype="uint8")
    with pytest.raises(VolumeError, match=r"\(c, z, y, x\) have shape \(0, 4, 4, 4\)"):
        open_volume(tmp_path / "none", part=Selection(0))


def test_channels_of_images(tmp_path: Path) -> None:
    """An image has two axes, (y, x)."""
    zarr.create_array(tmp_path / "v", data=VALUES[0, :, 0], attributes={"axis_names": [*"cyx"]})
    volume = open_volume(tmp_path / "v", part=Selection(2))
    assert volume.spec.shape == (1, *SHAPE[3:])
    np.testing.assert_array_equal(volume.read(volume.spec.box)[0], VALUES[0, 2, 0])
