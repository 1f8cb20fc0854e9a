"""Test that everything `emseg view` shows exists and is what is stored, and that other arguments are refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import zarr
from numcodecs import BZ2
from runs import PLANAR, emseg_process, free_port, run_emseg, save_random_model, save_volume, shards, texture

from emseg.flows.label import label
from emseg.flows.segment import segment
from emseg.flows.view import View, view
from emseg_core.errors import InputError
from emseg_core.installation import install_hint
from emseg_core.store.zarrs.ome import levels, multiscales_of

SHAPE = (6, 90, 300)
SIZED: dict[str, Any] = {"voxel_size": [30, 8, 4], "offset": [60, 0, -8], "units": "nm"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a realistic volume, and outputs: of all of it with all optional parts, and of a part."""
    folder = tmp_path_factory.mktemp("viewed")
    zarr.create_array(folder / "volume.zarr", data=texture(SHAPE), chunks=(3, 64, 64), zarr_format=2, attributes=SIZED)
    model = save_random_model(folder / "model.safetensors", PLANAR)
    segment(folder / "volume.zarr", folder / "whole.zarr", model=model, probabilities=True, workers=0)
    for name in ("other", "instances"):
        label(folder / "whole.zarr", class_name="membrane", name=name, workers=0)
    segment(folder / "volume.zarr", folder / "part.zarr", model=model, roi="2:5,10:70,40:200", workers=0)
    return folder


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return bytes(answer.read())


def state_of(shown: View) -> dict[str, Any]:
    """Return what the link tells the viewer."""
    start, _, written = shown.link.partition("#!")
    assert start.startswith(shown.url)
    return dict(json.loads(unquote(written)))


def sources(shown: View) -> dict[str, str]:
    """Return the address of each layer's group."""
    found = {}
    for layer in state_of(shown)["layers"]:
        source = layer["source"]
        found[layer["name"]] = (source if isinstance(source, str) else source[0]).partition("|")[0]
    return found


def test_all_that_is_stored_is_served(folder: Path) -> None:
    output = folder / "whole.zarr"
    with view(output) as shown:
        assert shown.notes == ()
        found = sources(shown)
        assert list(found) == ["raw", "probability of inside", "probability of membrane", "instances", "other", "classes"]
        for name, stored in (
            ("raw", folder / "volume.zarr"),
            ("probability of membrane", output / "probabilities" / "0"),
            ("instances", output / "labels" / "instances" / "0"),
            ("classes", output / "labels" / "classes" / "0"),
        ):
            files = [path for path in stored.rglob("*") if path.is_file()]
            assert len(files) > 1
            for file in files:
                assert fetched(f"{found[name]}0/{file.relative_to(stored).as_posix()}") == file.read_bytes()
        (names,) = [layer["source"][1] for layer in state_of(shown)["layers"] if layer["name"] == "classes"]
        told = json.loads(fetched(f"{names.removeprefix('precomputed://')}info"))
        assert told["inline"]["properties"][0]["values"] == ["inside", "membrane", "not computed"]


def test_raw_and_labels_of_a_part_lie_on_each_other(folder: Path) -> None:
    """The viewer gets the same voxel size for both. The labels start where the part does."""
    with view(folder / "part.zarr") as shown:
        found, state = sources(shown), state_of(shown)
        raw, classes = (
            json.loads(fetched(f"{found[name]}{file}")) for name, file in (("raw", ".zattrs"), ("classes", "zarr.json"))
        )
    (_, whole), *_ = levels(multiscales_of(raw))
    (_, part), *_ = levels(multiscales_of(classes["attributes"]))
    assert (whole.scale, whole.translation) == ((30, 8, 4), (60, 0, -8))
    assert (part.scale, part.translation) == ((30, 8, 4), (60 + 2 * 30, 10 * 8, -8 + 40 * 4))
    assert whole.units == part.units == ("nanometer",) * 3
    assert state["position"] == [-8 / 4 + 120, 40, 60 / 30 + 3]


def test_contrast_is_that_of_the_middle(folder: Path) -> None:
    with view(folder / "whole.zarr") as shown:
        raw = state_of(shown)["layers"][0]
    values = texture(SHAPE)[2]
    low, high = np.percentile(values, (0.5, 99.5))
    assert raw["shaderControls"]["normalized"]["range"] == [low, high]


def test_a_level_that_is_not_built_yet_is_not_shown(folder: Path, tmp_path: Path) -> None:
    """Levels made from it are not shown either: zoomed out, it would look as if nothing was computed."""
    output = shutil.copytree(folder / "whole.zarr", tmp_path / "out.zarr")
    assert built(output) == [2, 2]
    shards(output, "labels/classes/1")[0].unlink()
    assert built(output) == [1, 1]


def test_a_block_that_is_missing_does_not_keep_levels_from_being_shown(folder: Path, tmp_path: Path) -> None:
    output = shutil.copytree(folder / "whole.zarr", tmp_path / "out.zarr")
    for array in ("labels/classes/1", "labels/classes/0"):
        shards(output, array)[0].unlink()
    assert built(output) == [2, 2]


def built(output: Path) -> list[int]:
    """Return how many levels of probabilities and classes are shown."""
    with view(output) as shown:
        found = sources(shown)
        documents = [json.loads(fetched(f"{found[name]}zarr.json")) for name in ("probability of inside", "classes")]
        return [len(list(levels(multiscales_of(document["attributes"])))) for document in documents]


def test_a_volume_that_is_gone_is_noted(folder: Path, tmp_path: Path) -> None:
    """If its new path is given, it is shown from there."""
    volume = Path(shutil.copytree(folder / "volume.zarr", tmp_path / "volume.zarr"))
    output = tmp_path / "out.zarr"
    segment(volume, output, model=folder / "model.safetensors", workers=0)
    volume.rename(tmp_path / "moved.zarr")
    with view(output) as shown:
        (note,) = shown.notes
        assert "the volume is not shown: " in note
        assert "--volume" in note
        assert list(sources(shown)) == ["classes"]
    with view(output, volume=tmp_path / "moved.zarr") as shown:
        assert shown.notes == ()
        assert list(sources(shown)) == ["raw", "classes"]
    with pytest.raises(InputError, match="--volume"):
        view(output, volume=save_volume(tmp_path / "smaller.zarr", texture((6, 90, 110))))


def test_a_volume_that_browsers_cannot_decode_is_noted(folder: Path, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "volume.zarr", data=texture((3, 60, 60)), zarr_format=2, compressors=BZ2())
    segment(tmp_path / "volume.zarr", tmp_path / "out.zarr", model=folder / "model.safetensors", workers=0)
    with view(tmp_path / "out.zarr") as shown:
        assert "bz2, which browsers do not decode" in shown.notes[0]
        assert list(sources(shown)) == ["classes"]


def test_an_image(folder: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "image.zarr", texture((1, 60, 70))[0])
    segment(tmp_path / "image.zarr", tmp_path / "out.zarr", model=folder / "model.safetensors", workers=0)
    with view(tmp_path / "out.zarr") as shown:
        state = state_of(shown)
        assert (list(state["dimensions"]), state["layout"]) == (["x", "y"], "xy")
        assert json.loads(fetched(f"{sources(shown)['classes']}0/zarr.json"))["shape"] == [60, 70]


def test_without_the_viewer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    with pytest.raises(InputError, match=re.escape(f"shown with neuroglancer, which is not installed: {install_hint('view')}")):
        view(folder / "whole.zarr")


def test_no_browser_without_a_screen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with view(folder / "whole.zarr") as shown:
        assert not shown.open_browser()


@pytest.mark.parametrize(
    ("hub", "words", "shown", "said"),
    [
        (None, ["--public-url", "https://gate.example.org/{port}"], "https://gate.example.org/PORT/", ""),
        ("https://hub.example.org/user/me/", [], "https://hub.example.org/user/me/proxy/PORT/", ""),
        ("", [], "/user/me/proxy/PORT/", "note: open this path at the address of your JupyterHub; --public-url "),
    ],
)
def test_behind_a_proxy_its_address_is_printed(hub: str | None, words: list[str], shown: str, said: str, folder: Path) -> None:
    """The short address is printed, and the start of the long one. The tunnel still leads to this machine."""
    env = {} if hub is None else {"JUPYTERHUB_SERVICE_PREFIX": "/user/me/", "JUPYTERHUB_PUBLIC_URL": hub}
    for more, end in (([], "/"), (["--link"], "%7D")):
        port = free_port()
        call = ("view", folder / "whole.zarr", "--no-browser", "--port", port, *words, *more)
        with emseg_process(*call, env={**os.environ, **env}) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            address = process.stdout.readline().strip()
            note = process.stderr.readline() if said else ""
            tunnel = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
        assert address.startswith(shown.replace("PORT", str(port)))
        assert address.endswith(end)
        assert note.startswith(said)
        assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel


@pytest.mark.parametrize(("number", "code", "link"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)])
def test_it_is_served_until_a_signal(number: int, code: int, link: bool, folder: Path) -> None:
    """It listens at the requested port. Only the address is printed to stdout."""
    port, words = free_port(), ["--link"] if link else []
    with emseg_process("view", folder / "whole.zarr", "--no-browser", "--port", port, *words) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert urlsplit(address).netloc == f"127.0.0.1:{port}"
        assert ("#!" in address) == link
        assert b"<title>neuroglancer</title>" in fetched(address)
        refused = run_emseg("view", folder / "part.zarr", "--no-browser", "--port", port)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    tunnel, end = err.splitlines()
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in tunnel
    named = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert end == f"stopped{named}. The output is no longer served"
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(
        f"error: port {port} of 127.0.0.1 is not available (address already in use): choose another with --port"
    )
