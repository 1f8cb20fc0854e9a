"""Test that a place that vanishes at any call of a read gives the right voxels or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from runs import texture
from zarr.abc.store import RangeByteRequest, Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import _local

from emseg_core.box import Box
from emseg_core.errors import BlockError
from emseg_core.store.files.faults import StoreError, classify_fault, leading_error
from emseg_core.store.files.files import ArrayFiles, LocalFiles
from emseg_core.store.volumes.volume import ZarrVolume, open_volume

SHAPE, CHUNK, SHARD = (6, 32, 32), (3, 8, 8), (6, 16, 16)
VALUES = texture(SHAPE) | 1
"""Values without 0, the value of missing voxels."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2, "chunks": CHUNK},
    "v3": {"zarr_format": 3, "chunks": CHUNK},
    "sharded": {"zarr_format": 3, "chunks": CHUNK, "shards": SHARD},
    "sharded, index first": {
        "zarr_format": 3,
        "chunks": SHARD,
        "compressors": None,
        "filters": None,
        "serializer": zarr.codecs.ShardingCodec(chunk_shape=CHUNK, index_location="start"),
    },
}
BOXES = {
    "all": Box.of_shape(SHAPE),
    "a shard": Box.of_shape(SHARD),
    "part of a chunk": Box((1, 9, 17), (2, 12, 20)),
    "chunks of a shard": Box((0, 0, 0), (6, 16, 8)),
    "parts of all shards": Box((1, 5, 5), (5, 27, 27)),
}
PROTOTYPE = default_buffer_prototype()


class Vanishing:
    """Counts the files that Zarr reads, and moves the folder away before one of them, for good or for that call."""

    def __init__(self, folder: Path, moment: int, *, comes_back: bool) -> None:
        self.folder, self.moment, self.comes_back = folder, moment, comes_back
        self.away = folder.with_name("away")
        self.calls = 0
        self._one = Lock()

    def around(self, get: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that reads a file."""

        def counted(*arguments: Any, **more: Any) -> Any:
            if not Path(arguments[0]).is_relative_to(self.folder):
                return get(*arguments, **more)  # requested by an earlier read, which has failed meanwhile
            with self._one:
                self.calls += 1
                now = self.calls == self.moment
                if now:
                    self.folder.rename(self.away)
                try:
                    return get(*arguments, **more)
                finally:
                    if now and self.comes_back:
                        self.away.rename(self.folder)

        return counted


def read_or_fault(volume: ZarrVolume, box: Box) -> NDArray[Any] | str:
    """Return the voxels, or the fault if reading fails."""
    try:
        return volume.read(box)
    except BlockError as error:
        return error.fault


@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_each_call(layout: str, box: str, comes_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "0"
    zarr.create_array(folder, shape=SHAPE, dtype="uint8", **LAYOUTS[layout])[...] = VALUES
    get, refused = _local._get, 0
    for moment in range(1, 100):
        folder = folder.rename(tmp_path / str(moment))
        volume, vanishing = open_volume(folder), Vanishing(folder, moment, comes_back=comes_back)
        monkeypatch.setattr(_local, "_get", vanishing.around(get))
        found = read_or_fault(volume, BOXES[box])
        monkeypatch.setattr(_local, "_get", get)
        if isinstance(found, str):
            assert found == "store"
            refused += 1
        else:
            np.testing.assert_array_equal(found, VALUES[BOXES[box].slices()])
        if vanishing.away.exists():
            vanishing.away.rename(folder)
        if vanishing.calls < moment:
            break
    else:
        pytest.fail("a read takes more calls than were tried")
    assert refused == moment - 1 >= 1


async def _partial(store: Store) -> Any:
    return await store.get_partial_values(PROTOTYPE, [("c/0/0/0", RangeByteRequest(0, 4))])


async def _many(store: Store) -> Any:
    return [found async for found in store._get_many([("c/0/0/0", PROTOTYPE, None)])]


async def _ranges(store: Any) -> Any:
    if not hasattr(store, "get_ranges"):
        pytest.skip("this zarr has no such call")
    asked = [RangeByteRequest(0, 4), RangeByteRequest(8, 12)]
    return [found async for found in store.get_ranges("c/0/0/0", asked, prototype=PROTOTYPE)]


WAYS: dict[str, Callable[[Store], Awaitable[Any]]] = {
    "get": lambda store: store.get("c/0/0/0", PROTOTYPE),
    "range": lambda store: store.get("c/0/0/0", PROTOTYPE, RangeByteRequest(0, 4)),
    "partial values": _partial,
    "many": _many,
    "ranges": _ranges,
    "size": lambda store: store.getsize("c/0/0/0"),
    "existence": lambda store: store.exists("c/0/0/0"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_reading(way: str, tmp_path: Path) -> None:
    """Existing files are found, unwritten ones are missing, and while the place is away none is reported as missing."""
    zarr.create_array(tmp_path / "v", shape=SHAPE, chunks=CHUNK, dtype="uint8")[...] = VALUES
    store = ArrayFiles(LocalFiles(tmp_path / "v"), "zarr.json")
    assert asyncio.run(_awaited(WAYS[way](store)))
    (tmp_path / "v").rename(tmp_path / "away")
    with pytest.raises((StoreError, ExceptionGroup)) as caught:
        asyncio.run(_awaited(WAYS[way](store)))
    assert isinstance(leading_error(caught.value), StoreError)
    assert classify_fault(caught.value) == "store"


async def _awaited(asked: Awaitable[Any]) -> Any:
    return await asked


def test_there_are_no_other_ways(tmp_path: Path) -> None:
    """A store with other methods could be read without the guard."""
    store: Any = ArrayFiles(LocalFiles(tmp_path), "zarr.json")
    reading = {name for name in dir(store) if "get" in name and not name.startswith("__")}
    known = {"get", "get_partial_values", "get_ranges", "get_ranges_sync", "getsize", "getsize_prefix", "_get_many"}
    of_metadata = {f"_get_{kind}{sync}" for kind in ("bytes", "json") for sync in ("", "_sync")}  # they call `get`
    assert reading - known - of_metadata == set(), "try it in WAYS"
    assert not hasattr(store, "get_sync"), "without it, Zarr does not read synchronously"
    for listing in (store.list, lambda: store.list_prefix(""), lambda: store.list_dir("")):
        with pytest.raises(NotImplementedError):
            listing()
    assert not any((store.supports_listing, store.supports_writes, store.supports_deletes))
    for change in (store.set("a", None), store.delete("a")):
        with pytest.raises(NotImplementedError):
            asyncio.run(change)
