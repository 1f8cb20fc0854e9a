"""Test which strings are paths, which are addresses, and which are invalid addresses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from emseg_core.errors import VolumeError
from emseg_core.store.files.place import Address, local_path, parse_place, sibling


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
    place = parse_place(given)
    assert isinstance(place, Address)
    assert str(place) == said
    assert parse_place(str(place)) == parse_place(place) == place == pickle.loads(pickle.dumps(place))
    assert str(place / "./0") == f"{said}/0"
    assert [str(parent) for parent in (place / "0").parents][:1] == [said]
    with pytest.raises(VolumeError, match="address of a remote store, but a local path is needed"):
        local_path(given)


def test_what_an_address_lies_in() -> None:
    place = parse_place("s3://bucket/a/v.zarr")
    assert [str(parent) for parent in place.parents] == ["s3://bucket/a", "s3://bucket"]
    assert list(parse_place("s3://bucket").parents) == []
    assert (place.name, parse_place("s3://bucket").name) == ("v.zarr", "bucket")


@pytest.mark.parametrize("given", ["a/b.zarr", "/a/b", "C:", "a:b", "here", "x:/a"])
def test_local_paths_stay_as_they_are(given: str) -> None:
    assert parse_place(given) == parse_place(Path(given)) == Path(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ftp://host/v.zarr", "a ftp:// address, but emseg reads s3://, gs://, https://, http://: copy or mount it"),
        ("s3://key:secret@bucket/v", "contains a user name or a query"),
        ("https://host/v.zarr?X-Amz-Signature=abc", "contains a user name or a query"),
        ("s3://bad bucket/v", "is not a valid address"),
        ("s3://", "is not a valid address"),
        ("s3://bucket/../other", "is not a valid address"),
        ("https://host/a\nb", "is not a valid address"),
    ],
)
def test_what_is_no_address(given: str, why: str) -> None:
    with pytest.raises(VolumeError) as caught:
        parse_place(given)
    message = str(caught.value)
    assert why in message
    assert len(message.splitlines()) == 1
    assert "secret" not in message
    assert "abc" not in message


def test_what_lies_beside_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beside an output are on this machine in any case."""
    monkeypatch.chdir(tmp_path)
    assert sibling(Path("/a/o.zarr"), "o.png") == Path("/a/o.png")
    assert sibling(parse_place("s3://bucket/a/o.zarr"), "o.png") == tmp_path / "o.png"
    assert parse_place("s3://bucket/a").absolute() == parse_place("s3://bucket/a")
