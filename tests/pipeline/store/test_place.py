"""Paths and addresses: which is which, and what is no address."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from emseg.errors import VolumeError
from emseg.store.place import Address, beside, local, place_of


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://bucket/a/v.zarr/", "s3://bucket/a/v.zarr"),
        ("S3://bucket//a/./v.zarr", "s3://bucket/a/v.zarr"),
        (Path("s3://bucket/a/v.zarr"), "s3://bucket/a/v.zarr"),
        ("gs://bucket", "gs://bucket"),
        ("https://host:8443/a b/v.zarr", "https://host:8443/a b/v.zarr"),
    ],
)
def test_addresses(given: str | Path, said: str) -> None:
    place = place_of(given)
    assert isinstance(place, Address)
    assert str(place) == said
    assert place_of(str(place)) == place_of(place) == place == pickle.loads(pickle.dumps(place))
    assert str(place / "./0") == f"{said}/0"
    assert [str(parent) for parent in (place / "0").parents][:1] == [said]
    with pytest.raises(VolumeError, match="address of a remote store, but emseg wants a local path"):
        local(given)


def test_what_an_address_lies_in() -> None:
    place = place_of("s3://bucket/a/v.zarr")
    assert [str(parent) for parent in place.parents] == ["s3://bucket/a", "s3://bucket"]
    assert list(place_of("s3://bucket").parents) == []
    assert (place.name, place_of("s3://bucket").name) == ("v.zarr", "bucket")


@pytest.mark.parametrize("given", ["a/b.zarr", "/a/b", "C:", "a:b", "here", "x:/a"])
def test_local_paths_stay_as_they_are(given: str) -> None:
    assert place_of(given) == place_of(Path(given)) == Path(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ftp://host/v.zarr", "an address of ftp://, but emseg reads s3://, gs://, https://, http://: copy or mount it"),
        ("s3://key:secret@bucket/v", "has a name or a query in it"),
        ("https://host/v.zarr?X-Amz-Signature=abc", "has a name or a query in it"),
        ("s3://bad bucket/v", "is not an address"),
        ("s3://", "is not an address"),
        ("s3://bucket/../other", "is not an address"),
        ("https://host/a\nb", "is not an address"),
    ],
)
def test_what_is_no_address(given: str, why: str) -> None:
    with pytest.raises(VolumeError) as caught:
        place_of(given)
    message = str(caught.value)
    assert why in message
    assert len(message.splitlines()) == 1
    assert "secret" not in message
    assert "abc" not in message


def test_what_lies_beside_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine in any case."""
    monkeypatch.chdir(tmp_path)
    assert beside(Path("/a/o.zarr"), "o.png") == Path("/a/o.png")
    assert beside(place_of("s3://bucket/a/o.zarr"), "o.png") == tmp_path / "o.png"
    assert place_of("s3://bucket/a").absolute() == place_of("s3://bucket/a")
