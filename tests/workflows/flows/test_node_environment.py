"""Test that settings of users or sites for other programs neither stop a run nor change a byte of its output."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from object_store import object_store
from runs import bytes_of, run_emseg, save_volume, texture
from trainings import TOGETHER

THREADS = {"OMP_NUM_THREADS": "64", "MKL_NUM_THREADS": "64", "KMP_AFFINITY": "compact", "OMP_PROC_BIND": "close"}
OLD_CPU = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}
"""Settings with which libraries compute as on an older CPU, and round otherwise."""
NOBODY = "http://127.0.0.1:9"
"""Address without a proxy."""
PROXIES = {f"{name}_PROXY": NOBODY for name in ("HTTP", "HTTPS", "ALL")}
PROXIES |= {name.lower(): url for name, url in PROXIES.items()}
NO_FOLDER = {"TMPDIR": "/no/such/folder"}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Settings with which Python takes the names of files for ASCII."""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume for the bundled network."""
    return save_volume(tmp_path_factory.mktemp("given") / "v.zarr", texture((8, 64, 64)), voxel_size=[10, 10, 10])


@pytest.fixture(scope="module")
def expected(volume: Path) -> dict[str, str]:
    """Return what a run writes without these settings."""
    return segmented(volume, volume.parent / "plain.zarr", {})


def segmented(volume: Path, output: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return what a run on two workers writes."""
    ran = run_emseg("run", volume, "--output", output, "--workers", 2, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    return bytes_of(output)


@pytest.mark.parametrize("environment", [THREADS, PROXIES, NO_FOLDER], ids=["threads", "proxies", "no temporary folder"])
def test_the_same_bytes(environment: dict[str, str], volume: Path, expected: dict[str, str], tmp_path: Path) -> None:
    assert segmented(volume, tmp_path / "o.zarr", environment) == expected


@pytest.mark.parametrize("environment", [THREADS, OLD_CPU], ids=["threads", "instructions"])
def test_a_resumed_run_has_the_same_bytes_or_is_refused(
    environment: dict[str, str], volume: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "o.zarr"
    segmented(volume, output, {})
    first = min(path for path in (output / "labels" / "classes" / "0" / "c").rglob("*") if path.is_file())
    first.unlink()
    ran = run_emseg("run", volume, "--output", output, "--workers", 2, env={**os.environ, **environment})
    if ran.returncode == 0:
        assert bytes_of(output) == expected
    else:
        assert environment == OLD_CPU
        assert "was started with other settings: numerics.canary was" in ran.stderr
        assert not first.exists()


@contextmanager
def recording_proxy() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """Run a proxy that refuses all requests. Yield the environment that names it, and the first line of each request."""
    asked: list[bytes] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked.append(connection.recv(4096).partition(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=[server], daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield dict.fromkeys(PROXIES, address) | dict.fromkeys(("no_proxy", "NO_PROXY"), ""), asked
        server.shutdown(socket.SHUT_RDWR)


def test_nothing_for_this_machine_goes_through_a_proxy(volume: Path, expected: dict[str, str], tmp_path: Path) -> None:
    """Workers talk to the driver, and read a volume and write an output on a store of this machine."""
    with object_store() as store, recording_proxy() as (proxies, asked):
        there = store.upload(volume, "v.zarr")
        words = ("run", there, "--output", tmp_path / "o.zarr", "--workers", 2)
        ran = run_emseg(*words, env={**os.environ, **proxies})
        assert ran.returncode == 0, ran.stderr
        assert {name: digest for name, digest in bytes_of(tmp_path / "o.zarr").items() if "/c/" in name} == {
            name: digest for name, digest in expected.items() if "/c/" in name
        }
        assert not asked


def test_names_that_the_locale_cannot_show(volume: Path, expected: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **ASCII}
    for words in (
        ("run", volume, "--output", "né.zarr", "--workers", 2),
        ("verify", "né.zarr", "--checksums"),
        ("preview", "né.zarr"),
        ("report", "né.zarr"),
        ("export", "né.zarr", "é.tif"),
        ("export", "né.zarr", "é.zarr"),
    ):
        ran = run_emseg(*words, cwd=tmp_path, env=environment)
        assert ran.returncode == 0, ran.stderr
    assert bytes_of(tmp_path / "né.zarr") == expected
    assert (tmp_path / "é.tif").exists()


def test_a_name_in_a_configuration_that_the_locale_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(TOGETHER.replace("tiny.safetensors", "é.safetensors"), encoding="utf-8")
    ran = run_emseg("train", "train.toml", cwd=tmp_path, env={**os.environ, **ASCII})
    assert ran.returncode == 2
    assert ran.stderr == "error: 'é.safetensors' contains characters that no file name can have: check its spelling\n"
