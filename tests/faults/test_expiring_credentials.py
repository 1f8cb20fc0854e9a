"""Test a run whose credentials expire: it renews them, waits while no user is signed in, and writes the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store
from runs import bytes_of, emseg_process, run_emseg, save_volume, texture
from sign_ins import PROFILE, SECRET, SignIn, use_profile

from emseg_core.store.files.files import open_files
from emseg_core.store.files.place import parse_place

LIFETIME = 6.0
"""Lifetime of credentials in seconds."""
REQUEST_SECONDS = 0.15
"""Seconds that the store takes to write an object of the labels, so that a run outlives its first credentials."""
LONG_REQUEST_SECONDS = 2.0
"""The same until credentials have expired, so that a run cannot end before, however fast the machine is."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    """Return the output of a run that writes to disk."""
    save_volume(tmp_path / "volume.zarr", texture((32, 150, 150)), (32, 64, 64))
    output = tmp_path / "undisturbed.zarr"
    assert run_emseg("run", "volume.zarr", "-o", output, "--workers", "0", cwd=tmp_path).returncode == 0
    return output


@pytest.fixture
def sign_in(store: ObjectStore, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignIn:
    """Create a profile; the store accepts only its valid tokens."""
    store.upload(tmp_path / "volume.zarr", "volume.zarr")
    (tmp_path / "aws").mkdir()
    sign_in = use_profile(tmp_path / "aws", monkeypatch)
    store.expired = sign_in.expired

    store.refuse = slowly(REQUEST_SECONDS)
    return sign_in


def slowly(seconds: float) -> Callable[[str, bool], str]:
    """Return what makes the store take so long to write an object of the labels, and refuses nothing."""

    def wait(key: str, signed: bool) -> str:
        time.sleep(seconds if "/labels/classes/0/c/" in key else 0)
        return ""

    return wait


def copied(output: str, into: Path) -> dict[str, str]:
    """Copy an output to disk, check that no object holds a secret, and return the digest of each object."""
    files = open_files(parse_place(output))
    for name in files.names():
        content = files.read(name) or b""
        assert SECRET.encode() not in content
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        (into / name).write_bytes(content)
    return bytes_of(into)


@pytest.mark.parametrize("workers", [0, 2])
def test_signed_out_for_a_while(workers: int, store: ObjectStore, undisturbed: Path, sign_in: SignIn, tmp_path: Path) -> None:
    sign_in.begin(LIFETIME)
    key = f"out-{workers}.zarr"  # moto keeps what the previous test has written
    output = store.address(key)
    command = ("run", store.address("volume.zarr"), "-o", output, "--workers", workers)
    driver = emseg_process(*command, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not any(request.startswith(f"PUT {key}/labels/classes/0/c/") for request in list(store.asked)):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.05)
    store.refuse = slowly(LONG_REQUEST_SECONDS)
    sign_in.end()
    time.sleep(2 * LIFETIME + 6)
    assert driver.poll() is None, driver.communicate()
    store.refuse = slowly(REQUEST_SECONDS)
    sign_in.begin(LIFETIME)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, out + err
    assert "expired): sign in again" in out + err
    assert "Traceback" not in out + err
    assert not [token for token in (SECRET, *sign_in.tokens) if token and token in out + err]
    assert len(sign_in.tokens) > 2
    assert copied(output, tmp_path / "copy") == bytes_of(undisturbed)


@pytest.mark.parametrize("volume", ["remote", "local"])
def test_nobody_is_signed_in(volume: str, store: ObjectStore, sign_in: SignIn, tmp_path: Path) -> None:
    """It is refused within seconds, before anything is written."""
    place = store.address("volume.zarr") if volume == "remote" else "volume.zarr"
    began = time.monotonic()
    done = run_emseg("run", place, "-o", store.address(f"none-{volume}.zarr"), "--workers", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert time.monotonic() < began + 60
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"the AWS profile '{PROFILE}' has no valid credentials" in line
    assert SECRET not in done.stdout + done.stderr
    assert not [request for request in store.asked if request.startswith(f"PUT none-{volume}.zarr")]
