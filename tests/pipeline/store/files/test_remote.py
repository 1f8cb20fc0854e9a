"""Test volumes on object stores and web servers: the voxels of a local copy, few requests, one clear line for each error."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from object_store import BUCKET, DENIED, ObjectStore, object_store
from runs import free_port, texture

from emseg_core.box import Box
from emseg_core.errors import BlockError, VolumeError
from emseg_core.installation import install_hint
from emseg_core.normalise import survey
from emseg_core.store.files import remote
from emseg_core.store.files.place import Address
from emseg_core.store.volumes import volume
from emseg_core.store.volumes.volume import level_path, open_volume, open_volume_patiently

SHAPE = (6, 24, 24)
CHUNK = (3, 8, 8)
VALUES = texture(SHAPE)
PART = Box((1, 5, 9), (5, 19, 23))
PLAIN: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v3": {"zarr_format": 3, "attributes": {"voxel_size": [50, 4, 4], "units": "nm"}},
    "sharded": {"zarr_format": 3, "shards": (6, 16, 16)},
    "sharded, index first": {
        "zarr_format": 3,
        "chunks": SHAPE,
        "compressors": None,
        "filters": None,
        "serializer": zarr.codecs.ShardingCodec(chunk_shape=CHUNK, index_location="start"),
    },
}
IMAGES = {"0.4": 2, "0.5": 3}


def multiscales(version: str) -> list[dict[str, Any]]:
    """Return metadata of two levels, with voxels of 50 x 4 x 4 nm and twice that."""
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    levels = [
        {"path": f"s{n}", "coordinateTransformations": [{"type": "scale", "scale": [50, 4 * 2**n, 4 * 2**n]}]} for n in range(2)
    ]
    return [{"axes": axes, "datasets": levels, **({"version": version} if version == "0.4" else {})}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make volumes of each kind."""
    folder = tmp_path_factory.mktemp("volumes")
    for name, options in PLAIN.items():
        array = zarr.create_array(folder / name, shape=SHAPE, dtype="uint8", **{"chunks": CHUNK, **options})
        array[:] = VALUES
    for version, zarr_format in IMAGES.items():
        found = multiscales(version)
        attributes = {"multiscales": found} if version == "0.4" else {"ome": {"version": version, "multiscales": found}}
        group = zarr.create_group(folder / version, zarr_format=zarr_format, attributes=attributes)  # type: ignore[arg-type]
        for level in range(2):
            group.create_array(f"s{level}", data=VALUES[:, :: 2**level, :: 2**level], chunks=CHUNK)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[ObjectStore]:
    """Start a store with copies of them."""
    with object_store() as store:
        store.upload(folder, "em data")
        yield store


@pytest.fixture(autouse=True)
def _willing(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(remote.SHORT_RETRIES["backoff"], "max_backoff", remote.SHORT_RETRIES["backoff"]["init_backoff"])
    yield
    store.willing()


def error(place: str | Path) -> str:
    """Return the error for a place that cannot be read, on one line."""
    with pytest.raises(VolumeError) as caught:
        open_volume(place)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *((name, "s3") for name in (*PLAIN, *IMAGES, "0.4/s1", "0.5/s1")),
        *((name, scheme) for name in ("v2", "sharded", "0.5/s1") for scheme in ("gs", "http")),
    ],
)
def test_a_remote_volume_is_its_local_copy(
    name: str, scheme: str, folder: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spec and the digest of its voxels, which identify it in a run, are the same."""
    monkeypatch.setenv("GOOGLE_BASE_URL", store.url)
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    here, there = open_volume(folder / name), open_volume(store.address(f"em data/{name}", scheme))
    assert there.spec == here.spec
    assert survey(there, "volume") == survey(here, "volume")
    part = here.spec.box.intersect(PART)
    np.testing.assert_array_equal(there.read(there.spec.box), here.read(here.spec.box))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).read(part), here.read(part))


OPENED = {"v2": 7, "v3": 4, "sharded": 4, "0.4": 8, "0.5": 3, "0.4/s1": 7, "0.5/s1": 3}
"""Number of requests to open a volume whose folder is in the root of a bucket."""


@pytest.mark.parametrize("name", OPENED)
def test_opening_takes_a_handful_of_requests_and_no_listing(name: str, store: ObjectStore) -> None:
    with store.counting() as asked:
        open_volume(store.address(f"em data/{name}"))
    assert len(asked) == OPENED[name], asked
    assert all(request.startswith("GET ") and "?" not in request for request in asked)


def test_a_chunk_is_one_request_whole_or_within_a_shard(store: ObjectStore) -> None:
    plain, sharded = (open_volume(store.address(f"em data/{name}")) for name in ("v3", "sharded"))
    box = Box((0, 0, 0), (3, 16, 24))
    with store.counting() as asked:
        plain.read(box)
    assert sorted(asked) == [f"GET em data/v3/c/0/{y}/{x}" for y in range(2) for x in range(3)]
    with store.counting() as asked:
        sharded.read(box)
        sharded.read(box)
    ends = [request for request in asked if "bytes=-" in request]
    assert (len(ends), len(asked)) == (2, 2 + 2 * 6)
    assert all("bytes=" in request for request in asked)
    with store.counting() as asked:
        sharded.read(Box((0, 0, 0), (6, 16, 16)))
    assert asked == ["GET em data/sharded/c/0/0/0"]


def test_chunks_within_a_shard_are_asked_for_at_once(store: ObjectStore) -> None:
    sharded = open_volume(store.address("em data/sharded"))
    sharded.read(Box((0, 0, 0), (1, 1, 1)))
    together = threading.Barrier(2, timeout=10)
    store.refuse = lambda key, signed: "" * together.wait()
    np.testing.assert_array_equal(sharded.read(Box((0, 0, 0), (3, 8, 16))), VALUES[:3, :8, :16])


def test_a_chunk_that_was_never_written_is_the_fill_value(store: ObjectStore) -> None:
    """Reading the metadata proves that the volume is available, and reading the chunk again that it was available before."""
    store.put("sparse/zarr.json", store.get("em data/v3/zarr.json"))
    store.put("sparse/c/0/0/1", store.get("em data/v3/c/0/0/1"))
    found = open_volume(store.address("sparse"))
    with store.counting() as asked:
        voxels = found.read(Box((0, 0, 0), (3, 16, 24)))
    assert len(asked) == 6 + 2 * 5
    assert asked.count("GET sparse/zarr.json") == 5
    np.testing.assert_array_equal(voxels[:, :8, 8:16], VALUES[:3, :8, 8:16])
    assert not voxels[:, 8:].any()
    store.remove("sparse/zarr.json")
    with pytest.raises(BlockError, match="no longer there") as caught:
        found.read(Box((0, 0, 0), (3, 16, 24)))
    assert caught.value.fault == "store"


@pytest.mark.parametrize(
    ("name", "status"), [("v3", "503 Slow Down"), ("sharded", "500 Internal Server Error"), ("v2", DENIED), ("sharded", DENIED)]
)
def test_what_a_store_refuses_for_a_while_is_its_own_fault(name: str, status: str, store: ObjectStore) -> None:
    found = open_volume(store.address(f"em data/{name}"))
    store.refuse = lambda key, signed: status
    with pytest.raises(BlockError, match=f"of s3://{BUCKET}/em data/{name} cannot be read .{status[:3]}") as caught:
        found.read(PART)
    assert caught.value.fault == "store"
    assert len(str(caught.value).splitlines()) == 1
    store.willing()
    np.testing.assert_array_equal(found.read(PART), VALUES[PART.slices()])


@pytest.mark.parametrize("left", [0, 5, 100])
@pytest.mark.parametrize(("name", "key"), [("v3", "c/0/0/0"), ("sharded", "c/0/0/0"), ("sharded, index first", "c/0/0/0")])
def test_an_object_that_was_cut_short_is_the_block_s_fault(name: str, key: str, left: int, store: ObjectStore) -> None:
    whole = store.get(f"em data/{name}/{key}")
    store.put("cut/zarr.json", store.get(f"em data/{name}/zarr.json"))
    store.put(f"cut/{key}", whole[:left])
    found = open_volume(store.address("cut"))
    for box in (Box((0, 0, 0), (2, 7, 7)), Box((0, 0, 0), (6, 16, 16))):
        with pytest.raises(BlockError, match="cannot be read") as caught:
            found.read(box)
        assert caught.value.fault == "block"


def test_nothing_there(store: ObjectStore) -> None:
    assert f"none of zarr.json, .zarray, .zgroup at s3://{BUCKET}/missing, so it is not a Zarr" in error(
        f"s3://{BUCKET}/missing/"
    )
    assert "s3://no-such-bucket/v.zarr cannot be read (there is no such bucket): check its spelling" in error(
        "s3://no-such-bucket/v.zarr"
    )
    group = error(store.address("em data"))
    assert "none of zarr.json" in group
    store.put("group/zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    assert error(store.address("group")).endswith("is a Zarr group without multiscales: name an array inside it")
    with pytest.raises(VolumeError, match="has no level 2, its coarsest is 1"):
        level_path(store.address("em data/0.5"), 2)
    assert level_path(store.address("em data/0.5"), 1) == Address("s3", BUCKET, "em data/0.5/s1")


def test_who_may_read(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access uses the credentials of the environment, is anonymous without any, or follows the settings."""
    place = store.address("em data/v3")
    signatures: set[bool] = set()
    store.refuse = lambda key, signed: signatures.add(signed) or ""  # type: ignore[func-returns-value]
    open_volume(place)
    assert signatures == {True}
    store.refuse = lambda key, signed: "" if signed else DENIED
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert "cannot be read (403 forbidden, accessdenied): set credentials" in error(place).lower()
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    open_volume(place)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "accessdenied" in error(place).lower()
    store.refuse = lambda key, signed: DENIED if signed else ""
    open_volume(place)


def test_a_store_that_refuses_what_is_not_there(store: ObjectStore) -> None:
    """S3 does this for users without permission to list. Zarr v2 and parent folders involve names that do not exist."""
    present = {f"em data/v2/{name}" for name in (".zarray", ".zattrs")}
    store.refuse = lambda key, signed: "" if key in present or "/v2/0" in key or "/v2/1" in key else DENIED
    found = open_volume(store.address("em data/v2"))
    np.testing.assert_array_equal(found.read(PART), VALUES[PART.slices()])


def test_a_store_that_cannot_be_reached(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert "cannot be read (Connection refused): check the address, the network" in error(f"{nowhere}/v.zarr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", nowhere)
    assert "cannot be read (Connection refused)" in error("s3://bucket/v.zarr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "set AWS_ALLOW_HTTP=true" in error(store.address("em data/v3"))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    store.refuse = lambda key, signed: "301 Moved Permanently"
    assert "set AWS_REGION" in error(store.address("em data/v3"))
    store.refuse = lambda key, signed: "503 Slow Down"
    assert "cannot be read (503 Service Unavailable)" in error(store.address("em data/v3"))
    monkeypatch.setattr(remote, "REQUEST_TIMEOUT", timedelta(milliseconds=100))
    hold = threading.Event()
    store.refuse = lambda key, signed: str(hold.wait(1) or "")
    assert "it does not answer" in error(store.address("em data/v3"))


def test_a_level_whose_image_cannot_be_reached_is_not_taken_for_a_plain_array(store: ObjectStore) -> None:
    """It would have another voxel size, and be another volume."""
    store.refuse = lambda key, signed: "503 Slow Down" if key == "em data/0.5/zarr.json" else ""
    assert "em data/0.5 cannot be read (503" in error(store.address("em data/0.5/s1"))


def test_a_worker_waits_for_a_store_that_is_away(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "RETRY_PAUSES_SECONDS", (0.1,) * 100)
    store.refuse = lambda key, signed: "503 Slow Down"
    back = threading.Timer(1.0, store.willing)
    back.start()
    assert open_volume_patiently(store.address("em data/v3")).spec.shape == SHAPE
    with store.counting() as asked, pytest.raises(VolumeError, match="is not a Zarr"):
        open_volume_patiently(store.address("missing"))
    assert len(asked) == 3
    back.join()


class Simple(SimpleHTTPRequestHandler):
    """Python's own web server, which ignores ranges."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Patient(ThreadingHTTPServer):
    """Server that lets more than five connections wait."""

    request_queue_size = 64


def test_a_web_server_that_gives_no_parts_of_files(folder: Path) -> None:
    with Patient(("127.0.0.1", 0), partial(Simple, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name in ("v2", "v3", "0.4", "0.5"):
            np.testing.assert_array_equal(open_volume(f"{url}/{name}").read(PART), VALUES[PART.slices()])
        with pytest.raises(BlockError, match="does not support range requests") as caught:
            open_volume(f"{url}/sharded").read(PART)
        assert caught.value.fault == "block"
        server.shutdown()


def test_obstore_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    assert install_hint("remote") in error("s3://bucket/v.zarr")
