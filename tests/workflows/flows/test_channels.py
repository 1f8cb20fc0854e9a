"""Test a run on one of several channels and timepoints: it gives the bytes of a run on that channel alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import PLANAR, bytes_of, run_emseg, save_random_model, shards, texture

import emseg
from emseg import preview, repair, segment, verify, view
from emseg.dashboard.board import RunDescription
from emseg.dashboard.drawing import draw_slice
from emseg.flows.records.run_log import recipe_of, volume_of
from emseg.flows.repair import verify_checksums
from emseg_core.box import Box
from emseg_core.errors import OutputError
from emseg_core.grid.cost import cost_of
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume

SHAPE = (6, 50, 58)
VALUES = np.stack([[texture(SHAPE, seed=3 * time + channel) for channel in range(3)] for time in range(2)])
"""Voxels ``(t, c, z, y, x)``."""
CHUNK = (4, 16, 16)
LABELS = ["DAPI", "EM", ""]


def save_image(path: Path, zarr_format: int, chunk: tuple[int, int], shard: tuple[int, int] | None = None) -> Path:
    """Save an OME-Zarr image of the whole array: version 0.4 in Zarr v2, or 0.5 in v3."""
    scale = {"type": "scale", "scale": [1, 1, 40, 4, 4]}
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    multiscales = {
        "axes": [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}, *axes],
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    omero = {"channels": [{"label": label} for label in LABELS]}
    if zarr_format == 2:
        attributes: dict[str, Any] = {"multiscales": [{"version": "0.4", **multiscales}], "omero": omero}
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [multiscales], "omero": omero}}
    group = zarr.create_group(path, zarr_format=zarr_format, attributes=attributes)  # type: ignore[arg-type]
    shards = {} if shard is None else {"shards": (*shard, 8, 32, 32)}
    group.create_array("0", data=VALUES, chunks=(*chunk, *CHUNK), **shards)  # type: ignore[arg-type]
    return path


IMAGES: dict[str, dict[str, Any]] = {
    "v2.zarr": {"zarr_format": 2, "chunk": (1, 1)},
    "v2-together.zarr": {"zarr_format": 2, "chunk": (2, 3)},
    "together.zarr": {"zarr_format": 3, "chunk": (1, 3)},
    "sharded.zarr": {"zarr_format": 3, "chunk": (1, 1), "shard": (2, 3)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make images of the same voxels, a network, and for each channel and timepoint a separate volume with its output."""
    folder = tmp_path_factory.mktemp("channels")
    for name, layout in IMAGES.items():
        save_image(folder / name, **layout)
    save_random_model(folder / "model.safetensors", PLANAR)
    placed: dict[str, Any] = {"voxel_size": [40, 4, 4], "units": "nanometer"}
    for time, channel in np.ndindex(2, 3):
        alone = folder / f"alone-{time}-{channel}.zarr"
        zarr.create_array(alone, data=VALUES[time, channel], chunks=CHUNK, attributes=placed)
        run(folder, alone, folder / f"truth-{time}-{channel}.zarr")
    return folder


def run(folder: Path, volume: Path, output: Path, **options: Any) -> Path:
    """Run all blocks and return the output."""
    report = segment(volume, output, model=folder / "model.safetensors", probabilities=True, **{"workers": 0, **options})
    assert (report.exit_code, report.left) == (0, 0)
    return output


def stored(output: Path) -> dict[str, str]:
    """Return the bytes of an output except its recipe, which names the channel."""
    return {name: digest for name, digest in bytes_of(output).items() if name not in ("zarr.json", "emseg/zarr.json")}


@settings(max_examples=5)
@given(name=st.sampled_from(sorted(IMAGES)), time=st.integers(0, 1), channel=st.integers(0, 2), array=st.booleans())
def test_the_bytes_of_a_volume_of_its_own(
    name: str, time: int, channel: int, array: bool, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output, truth = tmp_path_factory.mktemp("out") / "out.zarr", folder / f"truth-{time}-{channel}.zarr"
    run(folder, folder / name / ("0" if array else ""), output, channel=LABELS[channel] or channel, timepoint=time)
    assert stored(output) == stored(truth)
    found, alone = (recipe_of(open_output(place)) for place in (output, truth))
    assert {each.partition(" was ")[0] for each in alone.differences(found)} <= {
        *("volume.channel", "volume.timepoint", "volume.together"),
    }
    assert (found.volume.channel, found.volume.timepoint) == (channel, time)


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    """Make an output of the second channel at the second timepoint."""
    return run(folder, folder / "together.zarr", folder / "em.zarr", channel="EM", timepoint=1)


@pytest.fixture
def damaged(output: Path, tmp_path: Path) -> Path:
    """Make a copy with one damaged shard and one missing."""
    copy = Path(shutil.copytree(output, tmp_path / "out.zarr"))
    first, second, *_ = shards(copy)
    first.write_bytes(first.read_bytes()[:-9] + b"\0" * 9)
    second.unlink()
    return copy


def test_it_is_verified_and_repaired(damaged: Path, output: Path) -> None:
    """Each command reads the channel that the run has read."""
    assert verify(output, boxes=3).holds
    assert len(verify_checksums(damaged).damaged) == 1
    assert repair(damaged, workers=0).repaired == 2
    assert bytes_of(damaged) == bytes_of(output)


def test_two_workers_go_on(damaged: Path, output: Path, folder: Path) -> None:
    """They use the original channel, whether it is named again or not."""
    shards(damaged)[0].unlink()
    run(folder, folder / "together.zarr", damaged, channel=1, workers=2)
    assert bytes_of(damaged) == bytes_of(output)


def test_another_channel_is_refused(output: Path, folder: Path) -> None:
    before = bytes_of(output)
    with pytest.raises(
        OutputError, match=r"started with other settings: .*volume\.channel was 1, now 0; .*use the original settings"
    ):
        run(folder, folder / "together.zarr", output, channel="DAPI")
    with pytest.raises(OutputError, match=r"volume\.timepoint was 1, now 0"):
        run(folder, folder / "together.zarr", output, timepoint=0)
    assert bytes_of(output) == before


def test_what_is_shown_of_it(output: Path, folder: Path, tmp_path: Path) -> None:
    """It is shown like the volume of that channel alone."""
    truth = folder / "truth-1-1.zarr"
    pictures = [preview(place, tmp_path / f"{place.name}.png", z=2).read_bytes() for place in (output, truth)]
    assert pictures[0] == pictures[1]
    page = emseg.report(output, tmp_path / "page.html").read_text()
    assert re.search(r"<th[^>]*>channel</th>\s*<td>1</td>", page)
    assert np.array_equal(volume_of(open_output(output), None).read(Box.of_shape(SHAPE)), VALUES[1, 1])
    drawn = []
    for place in (output, truth):
        found = open_output(place)
        volume, part = str(volume_of(found, None).path), recipe_of(found).volume.selection
        description = RunDescription("run", volume, str(place), found.region, (1, 1, 1), found.unit, (1, 1, 1), b"", part)
        drawn.append(draw_slice(description, found.region))
    assert all(map(np.array_equal, *[each[:2] for each in drawn]))


def test_a_viewer_is_told_which(output: Path) -> None:
    with view(output) as shown:
        assert shown.notes == ()
        state = json.loads(unquote(shown.link.partition("#!")[2]))
    assert list(state["dimensions"]) == ["x", "y", "z", "t"]
    assert state["position"][3] == 1
    raw = state["layers"][0]
    assert (raw["localDimensions"], raw["localPosition"]) == ({"c'": [1, ""]}, [1])


def test_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    """It is planned, submitted and run. The plan reports what is decompressed in addition."""
    model = folder / "model.safetensors"
    asked = ["--channel", "EM", "--timepoint", "1", "--model", model]
    told = json.loads(run_emseg("plan", folder / "together.zarr", *asked, "--json", cwd=tmp_path).stdout)
    alone = emseg.plan(folder / "alone-1-1.zarr", model=model)
    assert told["plan"] == json.loads(json.dumps(alone.plan.to_json()))
    assert emseg.plan(folder / "together.zarr", channel="EM", timepoint=1, model=model).plan == alone.plan
    assert told["cost"]["bytes_read"] == 3 * cost_of(alone.plan, alone.volume, probabilities=False).bytes_read
    script = run_emseg("submit", folder / "together.zarr", *asked, "--workers", 2, "--dry-run", cwd=tmp_path).stdout
    assert 'channel = "EM"\ntimepoint = 1\n' in script
    words = [folder / "together.zarr", "-o", tmp_path / "out.zarr", *asked, "--probabilities", "--workers", 0]
    assert run_emseg("run", *words, cwd=tmp_path).returncode == 0
    assert stored(tmp_path / "out.zarr") == stored(folder / "truth-1-1.zarr")
    assert open_volume(folder / "alone-1-1.zarr").spec.selection is None
