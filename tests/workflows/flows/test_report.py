"""Test that a report is correct for an output in any state, and opens without a network."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from observed import Observed
from PIL import Image
from runs import PLANAR, run_emseg, save_random_model, save_volume, shards, snapshot, texture

from emseg import label, report, segment
from emseg.flows.records.run_log import volume_of
from emseg.flows.reporting.panels import MAX_SLICE_VOXELS, panels_of, slice_box
from emseg_core.errors import OutputError, VolumeError
from emseg_core.specs.model import ModelSpec
from emseg_core.store.files.lease import Holder, take_lease
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (9, 61, 67)
HOSTILE = "a<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, a model, and an output with probabilities and instances."""
    folder = tmp_path_factory.mktemp("report")
    size: dict[str, Any] = {"voxel_size": [30.0, 8.0, 8.0], "units": ["nanometer"] * 3}
    save_volume(folder / "volume.zarr", texture(SHAPE), **size)
    card = {"licence": "CC BY", "name": "mine", "data": HOSTILE}
    save_random_model(folder / "model.safetensors", PLANAR, card=card)
    segment(folder / "volume.zarr", folder / "ended.zarr", model=folder / "model.safetensors", workers=0, probabilities=True)
    label(folder / "ended.zarr", workers=0)
    return folder


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output."""
    return Path(shutil.copytree(folder / "ended.zarr", tmp_path / "out.zarr"))


def seen(page: Path) -> Observed:
    """Return a page as a browser parses it. It must fetch nothing."""
    found = Observed(page.read_text())
    for name, attributes in found.elements:
        assert name not in {"script", "link", "iframe", "img", "object", "base"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in {"href", "src", "xlink:href", "srcset", "action"}:
                assert (value or "").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\(", page.read_text())
    return found


def pictures(page: Path) -> list[np.ndarray]:
    """Return the pixels of each picture, ``(y, x, 3)``."""
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", page.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in encoded]


def table_after(text: str, start: str, stop: str) -> str:
    return text.partition(start)[2].partition(stop)[0]


def test_a_run_that_has_ended(folder: Path, output: Path) -> None:
    page = report(output)
    assert page == output.with_name("out.zarr.report.html")
    text = seen(page).text
    stored = open_output(output)
    blocks = len(shards(output))
    for said in (
        f"{blocks} of {blocks}blocks done",
        "complete no run in progress",
        str(folder / "volume.zarr"),
        "9 x 61 x 67 voxels (z, y, x), uint8",
        "30 x 8 x 8 nanometer",
        "namemine",
        "licenceCC BY",
        stored.attributes["fingerprint"],
        "stored with the labels",
        "once per volume",
        "all blocks done",
    ):
        assert said in text
    start = json.loads((output / "emseg" / "run-0001" / "00000.jsonl").read_text().splitlines()[0])
    assert f"1{start['emseg']}{start['python']}{start['host']}none (in the driver)" in text
    whole = stored.read_labels(stored.region)
    for index, name in enumerate(stored.classes):
        assert f"{name}{(whole == index).mean():.2%}" in text
    segments = np.max(zarr.open_array(output / "labels" / "instances" / "0", mode="r")[:])
    assert f"segments{segments:,}, of which" in text
    assert "Mvoxel/s" in text
    assert "predict " in text


def test_pictures_are_those_of_a_preview(output: Path) -> None:
    drawn = pictures(report(output))
    stored = open_output(output)
    source = volume_of(stored, None)
    expected = [panel.pixels for z in (2, 4, 6) for panel in panels_of(stored, source, slice_box(stored.region, z))]
    assert len(drawn) == len(expected) == 12
    for picture, pixels in zip(drawn, expected, strict=True):
        assert picture.shape == pixels.shape
        assert np.abs(picture.astype(int) - pixels).mean() < 8, "256 colours are near enough"
    np.testing.assert_array_equal(drawn[1], expected[1])


def test_what_is_not_there_is_said(folder: Path, output: Path, tmp_path: Path) -> None:
    """The output is unfinished, with a failed block, no volume, a damaged record, and tables of segments lost or absent."""
    gone = shutil.copytree(folder / "volume.zarr", tmp_path / "moved.zarr")
    record = output / "emseg" / "run-0001" / "00000.jsonl"
    lines = record.read_text().replace(str(folder / "volume.zarr"), str(tmp_path / "gone.zarr")).splitlines()
    failed = {**json.loads(lines[2]), "status": "failed", "cause": f"corrupt {HOSTILE}", "block": 1, "fault": "block"}
    retried = {"event": "retried", "at": failed["at"], "block": 2, "cause": "a worker died", "delay": 1.0}
    done = {**json.loads(lines[2]), "block": 2, "worker": "vm:7"}
    odd = [{"event": "block", "at": failed["at"], "block": 0}, {**done, "block": 10**9}, {**done, "seconds": "long"}]
    record.write_text("\n".join([*lines[:-1], *map(json.dumps, (failed, retried, done, *odd)), '{"torn']))
    (output / "emseg" / "instances.csv").write_text("id,voxels\n1,2\n")
    for number in (3, 1):
        shards(output)[number].unlink()
    text = seen(report(output)).text
    stored = open_output(output)
    box = volume_of(stored, gone).spec.box and stored.levels[0].blocks.block(1).write
    assert "not complete" in text
    assert f"1{box}corrupt {HOSTILE}" in table_after(text, "Failed blocks", "Retried blocks")
    assert "a worker diedvm:7" in text
    assert "Without raw voxels" in text
    assert "which no longer exists: give its new place with --volume" in text
    assert "4 lines of the record of run 1 cannot be read" in text
    assert "not recorded: killed, or its record is lost" in text
    assert "emseg/instances.csv is missing or cannot be read" in text
    assert len(pictures(output.with_name("out.zarr.report.html"))) == 6, "labels and instances"
    with_volume = report(output, volume=gone)
    assert len(pictures(with_volume)) == 12
    with pytest.raises(VolumeError, match="nothing at"):
        report(output, volume=tmp_path / "missing.zarr")


def test_no_record_at_all(output: Path) -> None:
    shutil.rmtree(output / "emseg" / "run-0001")
    text = seen(report(output)).text
    assert "The run records are lost: it is not known when and where" in text
    assert "No block has finished yet, or the run records are lost" in text


def test_nothing_computed_yet(output: Path) -> None:
    for file in shards(output):
        file.unlink()
    text = seen(report(output)).text
    assert "No block can be counted yet" in text


def test_while_a_run_goes_on(output: Path) -> None:
    shards(output)[0].unlink()
    stored = open_output(output)
    with take_lease(stored.records, output).held() as lease:
        folder = output / f"emseg/run-{lease.run:04d}"
        line = {"event": "started", "at": "2024-05-01T12:00:00+00:00", "fingerprint": stored.attributes["fingerprint"]}
        (folder / "00000.jsonl").write_text(json.dumps(line) + "\n")
        before = snapshot(output)
        text = seen(report(output)).text
        assert snapshot(output) == before
    assert "not complete run in progress" in text
    assert str(Holder.here()) in text
    assert f"{lease.run}2024-05-01 12:00:002024-05-01 12:00:00running" in text


def test_a_run_that_has_died(output: Path) -> None:
    dead = {"holder": {**asdict(Holder.here()), "born": "long ago"}, "beats": 1, "released": False}
    (output / "emseg/run-0003").mkdir()  # the labelling was the second
    (output / "emseg/run-0003" / "lease.json").write_text(json.dumps(dead))
    line = {"event": "started", "at": "2024-05-01T12:00:00+00:00", "fingerprint": "another"}
    (output / "emseg/run-0003" / "00000.jsonl").write_text(json.dumps(line) + "\n")
    text = seen(report(output)).text
    assert "complete the run has died" in text
    assert "not recorded; the output was restarted since" in text


def test_a_damaged_shard_takes_its_slice_alone(output: Path) -> None:
    file = shards(output)[0]
    data = bytearray(file.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    file.write_bytes(data)
    text = seen(report(output)).text
    assert "could not be read: see `emseg verify --checksums`" in text
    assert "Not drawn: the block" in text


def test_names_are_text(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a<b>&'x'"
    place.mkdir()
    output = Path(shutil.copytree(folder / "ended.zarr", place / '<i>"out".zarr'))
    text = seen(report(output)).text
    assert str(output) in text
    assert HOSTILE in text


def test_a_large_slice_is_drawn_in_its_middle_and_as_a_whole(tmp_path: Path) -> None:
    side = MAX_SLICE_VOXELS + 300
    save_volume(tmp_path / "volume.zarr", texture((1, side, side)), (1, 256, 256))
    model = save_random_model(tmp_path / "model.safetensors", ModelSpec.unet(width=1, depth=0))
    segment(tmp_path / "volume.zarr", tmp_path / "out.zarr", model=model, workers=0)
    page = report(tmp_path / "out.zarr")
    assert f"The middle {MAX_SLICE_VOXELS} x {MAX_SLICE_VOXELS} of {side} x {side} voxels" in seen(page).text
    drawn = pictures(page)
    assert [picture.shape[:2] for picture in drawn] == [(512, 512)] * 4
    assert page.stat().st_size < 5_000_000 / 3


def test_what_somebody_else_has_made_stays(output: Path) -> None:
    theirs = output.with_name("thesis.html")
    theirs.write_text("<!DOCTYPE html><p>years of work</p>")
    with pytest.raises(OutputError, match=r"is no page of `report\(\)`.*overwrite=True"):
        report(output, theirs)
    assert "years" in theirs.read_text()
    assert "years" not in report(output, theirs, overwrite=True).read_text()
    again = theirs.stat().st_mtime_ns
    assert report(output, theirs).stat().st_mtime_ns > again, "a page of ours is replaced"


def test_the_command(output: Path, tmp_path: Path) -> None:
    done = run_emseg("report", output, "-o", tmp_path / "page.html")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'page.html'}\n")
    assert "out.zarr" in (tmp_path / "page.html").read_text()
