"""Test that files missing because a disk or store is briefly unavailable are never treated as never written."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from object_store import ObjectStore, object_store
from runs import texture
from zarr.storage import _local

from emseg_core.box import Box
from emseg_core.errors import BlockError, OutputError, VolumeError
from emseg_core.store.exports.image import ExportLevel
from emseg_core.store.files.faults import StoreError
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.outputs.level import Level
from emseg_core.store.outputs.scratch import Scratch
from emseg_core.store.stacks import tensor
from emseg_core.store.stacks.formats import open_stack
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.arrays import Shards, create_array, create_group, open_shards

SHAPE, CHUNK = (4, 24, 16), (4, 8, 8)
VALUES = texture(SHAPE) | 1
"""Values without 0, the value of missing voxels."""


KINDS: list[dict[str, Any]] = [{"zarr_format": 3}, {"zarr_format": 2}, {"shards": (4, 24, 16)}]


class Blink:
    """A folder that vanishes during each lookup, and returns at once."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.left = folder, times
        self._one = Lock()

    def __enter__(self) -> None:
        self._one.acquire()
        if self.left:
            self.folder.rename(self.folder.with_name("away"))

    def __exit__(self, *_: object) -> None:
        if self.left:
            self.folder.with_name("away").rename(self.folder)
            self.left -= 1
        self._one.release()


@pytest.fixture
def blinking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a folder vanish this many times when Zarr or emseg reads a file about voxels."""

    def begin(folder: Path, times: int = 1) -> None:
        blink, get, read, sizes = Blink(folder, times), _local._get, LocalFiles.read, LocalFiles.sizes

        def away_get(*some: Any) -> Any:
            with blink:
                return get(*some)

        def away_read(self: LocalFiles, name: str) -> bytes | None:
            with blink:
                return read(self, name)

        def away_sizes(self: LocalFiles, *some: Any, **more: Any) -> Iterator[tuple[str, int]]:
            with blink:
                return iter(list(sizes(self, *some, **more)))

        monkeypatch.setattr(_local, "_get", away_get)
        monkeypatch.setattr(LocalFiles, "read", away_read)
        monkeypatch.setattr(LocalFiles, "sizes", away_sizes)

    return begin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", [0, 2**20])
def test_a_volume(kind: dict[str, Any], cache: int, tmp_path: Path, blinking: Callable[..., None]) -> None:
    array = zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8", **kind)
    array[...] = VALUES
    volume = open_volume(tmp_path / "v", cache)
    blinking(tmp_path / "v")
    with pytest.raises(BlockError, match=r"unavailable for a moment.: mount or restore it") as caught:
        volume.read(volume.spec.box)
    assert caught.value.fault == "store"
    np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_that_comes_and_goes_all_the_time(kind: dict[str, Any], tmp_path: Path) -> None:
    """At any moment, the voxels are right or there is an error."""
    array = zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8", **kind)
    array[...] = VALUES
    volume, end, ended = open_volume(tmp_path / "v"), Event(), Counter[str]()
    rng = random.Random(0)

    def come_and_go() -> None:
        while not end.is_set():
            with Blink(tmp_path / "v", 1):
                time.sleep(rng.uniform(0, 1e-3))
            time.sleep(rng.uniform(0, 1e-2))

    coming = Thread(target=come_and_go)
    coming.start()
    try:
        for _ in range(100):
            try:
                np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)
                ended["right"] += 1
            except BlockError as error:
                ended[error.fault] += 1
    finally:
        end.set()
        coming.join()
    assert set(ended) == {"right", "store"}
    assert min(ended.values()) > 3


def test_the_voxel_size_of_a_volume(tmp_path: Path, blinking: Callable[..., None]) -> None:
    array = zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8", zarr_format=2)
    array.attrs["voxel_size"] = [40.0, 4.0, 4.0]
    for times in range(1, 9):  # more lookups than an array has files
        blinking(tmp_path / "v", times)
        try:
            assert open_volume(tmp_path / "v").spec.scale == (40.0, 4.0, 4.0)
        except VolumeError:
            continue
        break
    else:
        pytest.fail("it was never read")


def test_what_was_never_written_is_still_the_fill_value(tmp_path: Path, blinking: Callable[..., None]) -> None:
    zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8", fill_value=7)
    volume = open_volume(tmp_path / "v")
    blinking(tmp_path / "v")
    assert (volume.read(volume.spec.box) == 7).all()


@pytest.fixture
def stored(tmp_path: Path) -> Shards:
    """Make a fully written array, as in an output."""
    (tmp_path / "o").mkdir()
    files = LocalFiles(tmp_path / "o")
    create_group(files, "", {})
    create_array(files, "a", shape=SHAPE, shard=CHUNK, chunk=CHUNK, dtype="uint8", fill_value=255, axes=("z", "y", "x"))
    found = open_shards(files, "a", 0)
    for place in np.ndindex(found.grid):
        box = Box.at(tuple(place), CHUNK)
        found.write(box, VALUES[box.slices()])
    return found


def test_the_voxels_of_an_output(stored: Shards, tmp_path: Path, blinking: Callable[..., None]) -> None:
    level, whole = ExportLevel(tmp_path / "o", stored, None, (1, 1, 1)), Box.of_shape(SHAPE)
    blinking(tmp_path / "o")
    with pytest.raises(BlockError, match="unavailable for a moment") as caught:
        level.read(whole)
    assert caught.value.fault == "store"
    np.testing.assert_array_equal(level.read(whole), VALUES)


@pytest.mark.parametrize("times", [1, 2])
def test_what_an_output_has(times: int, stored: Shards, tmp_path: Path, blinking: Callable[..., None]) -> None:
    blinking(tmp_path / "o", times)
    assert bool(Level(tmp_path / "o", (stored,), ("mode",)).done().all()) is (times == 1)


def test_a_folder_that_goes_while_it_is_listed(stored: Shards, tmp_path: Path) -> None:
    listing = LocalFiles(tmp_path / "o").sizes("a/c")
    next(listing)
    (tmp_path / "o").rename(tmp_path / "away")
    with pytest.raises(StoreError, match="no longer there"):
        list(listing)
    with pytest.raises(OutputError, match=r"cannot be listed .it is no longer there.: mount or restore it, and run again"):
        Level(tmp_path / "o", (stored,), ("mode",)).done()


def test_a_file_that_goes_while_it_is_listed(tmp_path: Path) -> None:
    """Files vanish when a writer renames them to their final names."""
    files = LocalFiles(tmp_path)
    for number in range(3):
        files.put(f"a/{number}", b"%d" % number)
    listing = files.sizes("a")
    listed = {next(listing)[0]}
    gone = min({"0", "1", "2"} - listed)
    files.remove(f"a/{gone}")
    assert {name for name, _ in listing} | listed == {"0", "1", "2"} - {gone}


def test_what_a_block_knows_of_its_segments(tmp_path: Path, blinking: Callable[..., None]) -> None:
    """Without it, its segments would silently stay separate from all others."""
    (tmp_path / "o").mkdir()
    files = LocalFiles(tmp_path / "o")
    scratch = Scratch(files, "emseg/s")
    files.put("emseg/s/labelling.json", b"{}")
    files.put("zarr.json", b"{}")
    scratch.write_map(3, np.arange(9, dtype=np.uint64))
    scratch.write_shared("offsets", np.arange(4))
    for look in (lambda: scratch.read_map(3), lambda: scratch.read_shared("offsets")):
        blinking(tmp_path / "o")
        with pytest.raises((BlockError, StoreError), match="unavailable for a moment"):
            look()
        assert look() is not None
    assert scratch.read_shared("segments") is None
    assert len(scratch.read_block_segments(4).segments) == 0
    (tmp_path / "o").rename(tmp_path / "away")
    with pytest.raises(BlockError, match="no longer there"):
        scratch.read_block_segments(3)
    with pytest.raises(StoreError, match="no longer there"):  # and not a holder that has lost it
        scratch.check()


@pytest.mark.parametrize("driver", ["n5", "neuroglancer_precomputed"])
def test_a_stack_whose_chunks_may_be_missing(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorstore cannot check which other files must exist, so empty results are read again."""
    folder = tmp_path / driver
    spec: dict[str, Any] = {"driver": driver, "kvstore": f"file://{folder}/", "create": True}
    if driver == "n5":
        metadata: dict[str, Any] = {
            "dimensions": SHAPE[::-1],
            "blockSize": CHUNK[::-1],
            "dataType": "uint8",
            "compression": {"type": "raw"},
        }
        voxels = tensorstore.open({**spec, "metadata": metadata}).result()
        voxels.write(VALUES.T).result()
    else:
        scale = {"size": SHAPE[::-1], "chunk_size": CHUNK[::-1], "encoding": "raw", "resolution": [4, 4, 40]}
        metadata = {"data_type": "uint8", "num_channels": 1, "type": "image"}
        voxels = tensorstore.open({**spec, "multiscale_metadata": metadata, "scale_metadata": scale}).result()
        voxels[..., 0].write(VALUES.T).result()
    blink, read = Blink(folder, 0), tensor.TensorStack._read

    def away_read(self: tensor.TensorStack, box: Box) -> Any:
        with blink:
            return read(self, box)

    monkeypatch.setattr(tensor.TensorStack, "_read", away_read)
    with open_stack(folder, allow_missing=True) as stack:
        np.testing.assert_array_equal(stack.read(0, 4), VALUES)
        blink.left = 1
        with pytest.raises(VolumeError, match="was unavailable for a moment"):
            stack.read(0, 4)
        np.testing.assert_array_equal(stack.read(1, 3), VALUES[1:3])
        next(
            path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json" and path.name != "info"
        ).unlink()
        lost = stack.read(0, 4)
        assert 0 < np.count_nonzero(lost == 0) == np.prod(CHUNK)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.mark.parametrize("kind", KINDS)
def test_a_remote_volume(kind: dict[str, Any], store: ObjectStore, tmp_path: Path) -> None:
    """A web server whose disk is unavailable answers like this."""
    array = zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8", **kind)
    array[...] = VALUES
    volume = open_volume(store.upload(tmp_path / "v", "v" + "-".join(map(str, kind.items()))))
    asked: list[str] = []

    def first(key: str, signed: bool) -> str:
        asked.append(key)
        return "404 Not Found" if len(asked) == 1 else ""

    store.refuse = first
    with pytest.raises(BlockError, match="unavailable for a moment") as caught:
        volume.read(volume.spec.box)
    assert caught.value.fault == "store"
    store.willing()
    np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)
