"""Test runs with coarser levels: the same bytes however they are made, and correct metadata for viewers."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from runs import PLANAR, bytes_of, save_random_model, save_volume, shards, texture

from emseg import label, segment
from emseg.flows.repair import repair, verify_checksums
from emseg.flows.status import status
from emseg.flows.verify import verify
from emseg.runs.events import BlockEnded, Event
from emseg_core.errors import OutputError
from emseg_core.grid import pyramid
from emseg_core.grid.pyramid import coarsened
from emseg_core.outcome import Stopwatch
from emseg_core.store.outputs.level import Level
from emseg_core.store.outputs.lifecycle import open_output

SMALL = 32
"""Maximum level length, in place of what viewers can show at once."""
SHAPE = (6, 50, 90)
STEPS = ((1, 2, 2), (1, 2, 2))
"""Steps for voxels that are 30 nm thick and 4 nm wide."""
SIZES = {"scale": (30.0, 4.0, 4.0), "translation": (90.0, 0.0, -8.0)}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyramid, "MAX_COARSEST_LENGTH", SMALL)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Make a volume larger than a viewer shows at once, and a network."""
    folder = tmp_path_factory.mktemp("inputs")
    group = zarr.create_group(folder / "volume.zarr", attributes={"ome": {"version": "0.5", "multiscales": [_multiscale()]}})
    group.create_array("0", data=texture(SHAPE), chunks=(5, 16, 16))
    return {
        "volume": folder / "volume.zarr",
        "model": save_random_model(folder / "m.safetensors", PLANAR),
        "probabilities": True,
    }


@pytest.fixture(scope="module")
def whole(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run in one process, with instances, and return the output."""
    output = tmp_path_factory.mktemp("whole") / "o.zarr"
    assert segment(output=output, workers=0, **inputs).exit_code == 0
    assert label(output, class_name="membrane", workers=0).exit_code == 0
    return output


def _multiscale() -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    steps = [{"type": kind, kind: list(values)} for kind, values in SIZES.items()]
    return {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}


def levels_of(image: Path) -> list[np.ndarray]:
    return [np.asarray(zarr.open_array(image / str(level), mode="r")[...]) for level in range(len(STEPS) + 1)]


def test_each_level_is_made_of_the_one_below(whole: Path) -> None:
    for image, rule in (("labels/classes", "mode"), ("probabilities", "mean"), ("labels/instances", "mode")):
        levels = levels_of(whole / image)
        for step, (finer, level) in zip(STEPS, itertools.pairwise(levels), strict=True):
            np.testing.assert_array_equal(level, coarsened(finer, step, rule))  # type: ignore[arg-type]
        assert len(np.unique(levels[-1])) > 1


def test_viewers_are_told_where_levels_lie(whole: Path) -> None:
    root = zarr.open_group(whole, mode="r")
    for image in (
        Image.from_zarr(root),
        Image.from_zarr(zarr.open_group(whole / "probabilities", mode="r")),
        ImageLabel.from_zarr(zarr.open_group(whole / "labels" / "classes", mode="r")),
        ImageLabel.from_zarr(zarr.open_group(whole / "labels" / "instances", mode="r")),
    ):
        (multiscale,) = image.ome_attributes.multiscales
        datasets: Any = multiscale.datasets
        scales = [dataset.coordinateTransformations[0].scale[-3:] for dataset in datasets]
        shifts = [dataset.coordinateTransformations[1].translation[-3:] for dataset in datasets]
        assert scales == [[30, 4, 4], [30, 8, 8], [30, 16, 16]]
        assert shifts == [[90, 0, -8], [90, 2, -6], [90, 6, -2]]


@pytest.mark.parametrize("image", ["", "labels/classes", "labels/instances", "probabilities"])
def test_others_find_nothing_wrong(whole: Path, image: str) -> None:
    """They check the metadata, and the arrays against the metadata."""
    assert yaozarrs.validate_zarr_store(whole / image)


def test_workers_write_the_same_levels(inputs: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=2, **inputs).exit_code == 0
    assert label(output, class_name="membrane", workers=3).exit_code == 0
    assert bytes_of(output) == bytes_of(whole)


KILLED = f"""
import os, signal, sys
from emseg_core.grid import pyramid
from emseg_core.store.outputs.level import Level
from emseg import segment

pyramid.MAX_COARSEST_LENGTH = {SMALL}
left, known = int(sys.argv[4]), Level.build

def build(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    known(*arguments)

Level.build = build
segment(sys.argv[1], sys.argv[2], model=sys.argv[3], probabilities=True, workers=0)
"""


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_killed_run_goes_on(inputs: dict[str, Any], whole: Path, tmp_path: Path, share: float) -> None:
    """It is killed before a unit of a level. Its blocks are not computed again."""
    output, units = tmp_path / "o.zarr", sum(len(level.blocks) for level in open_output(whole).levels[1:])
    words = [inputs["volume"], output, inputs["model"], 1 + round(share * (units - 1))]
    died = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    found = status(output)
    assert (found.done, found.built, found.exit_code) == (found.blocks, words[-1] - 1, 3)
    report = segment(output=output, workers=0, **inputs)
    assert (report.done, report.unbuilt, report.exit_code) == (0, 0, 0)
    assert label(output, class_name="membrane", workers=0).exit_code == 0
    assert bytes_of(output) == bytes_of(whole)
    assert status(output).exit_code == 0


def test_what_is_repaired_is_repaired_on_each_level(inputs: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """Repairing a damaged block also replaces the units made from it. A damaged unit of a level is rebuilt."""
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, **inputs).exit_code == 0
    assert verify_checksums(output).holds
    sound = bytes_of(output)
    for array in ("labels/classes/0", "probabilities/1"):
        file = shards(output, array)[-1]
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 4
        file.write_bytes(damaged)
    shards(output, "labels/classes/2")[0].unlink()
    found = verify_checksums(output)
    assert (len(found.damaged), len(found.units_damaged), found.units_missing, found.holds) == (1, 1, 1, False)
    assert found.units_damaged[0].box.startswith("level 1, ")
    mended = repair(output, workers=0)
    assert (mended.repaired, mended.units_repaired, mended.holds) == (1, 2, True), mended
    assert bytes_of(output) == sound


def test_a_deleted_block_takes_what_is_made_of_it_along(inputs: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, **inputs).exit_code == 0
    sound = bytes_of(output)
    stored = open_output(output)
    first = stored.levels[0].blocks.block(0).write
    stored.levels[0].remove(first)
    built: list[Level] = []
    with pytest.MonkeyPatch.context() as patch:
        known = Level.build

        def build(self: Level, *others: Any) -> None:
            built.append(self)
            known(self, *others)

        patch.setattr(Level, "build", build)
        assert segment(output=output, workers=0, **inputs).done == 1
    assert len(built) == len(STEPS)
    assert bytes_of(output) == sound


def test_verify_finds_a_unit_of_something_else(inputs: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, **inputs).exit_code == 0
    verdict = verify(output, boxes=2)
    assert (verdict.wrong_units, verdict.holds) == (0, True)
    assert verdict.units >= len(STEPS)
    finer, level = open_output(output).levels[:2]
    box = level.blocks.block(0).write
    made = level.coarsen(finer, box, Stopwatch())
    made[-1][0, 0, 0] ^= 1
    level.arrays[-1].write(box, made[-1])
    verdict = verify(output, boxes=20)
    assert verdict.wrong_units in (1, 2)  # it, and perhaps units made from it
    assert not verdict.holds


def test_a_run_without_levels_goes_on_without(inputs: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, pyramid=False, **inputs).exit_code == 0
    assert segment(output=output, workers=0, **inputs).skipped > 0
    assert not (output / "labels" / "classes" / "1").exists()
    with pytest.raises(OutputError, match=r"levels was not set, now \[\[1, 2, 2\], \[1, 2, 2\]\]"):
        segment(output=output, workers=0, pyramid=True, **inputs)


def test_levels_above_a_failed_block_are_not_built(inputs: dict[str, Any], tmp_path: Path) -> None:
    """The others are. The exit code and the status report that something is missing."""
    output = tmp_path / "o.zarr"
    assert segment(output=output, workers=0, **inputs).exit_code == 0
    shard = shards(output)[0]
    shard.unlink()
    (shard / "in the way").mkdir(parents=True)
    report = segment(output=output, workers=0, **inputs)
    stored = open_output(output)
    assert report.failed
    assert report.exit_code == 3
    assert report.unbuilt == sum(int((~level.done()).sum()) for level in stored.levels[1:]) > 0
    assert status(output).built == status(output).units - report.unbuilt
    assert json.loads(json.dumps(report.to_json()))["unbuilt"] == report.unbuilt


def test_a_small_volume_has_one_level(tmp_path: Path, inputs: dict[str, Any]) -> None:
    volume = save_volume(tmp_path / "v.zarr", texture((3, 30, SMALL)))
    assert segment(volume, tmp_path / "o.zarr", model=inputs["model"], workers=0).exit_code == 0
    assert len(open_output(tmp_path / "o.zarr").levels) == 1


def test_what_a_worker_that_died_has_left_half_written_does_not_stay(
    inputs: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Half-written files of blocks, levels and instance labels are removed, without another run to clean up."""
    output, planted = tmp_path / "o.zarr", list[str]()

    def die(event: Event) -> None:
        if isinstance(event, BlockEnded):
            for folder in list(output.rglob("c/0")):
                place = folder.relative_to(output).as_posix()
                if place not in planted and "fragments" not in place:
                    planted.append(place)
                    (folder / ".0.0123456789ab.partial").write_bytes(b"half")

    assert segment(output=output, workers=0, on_event=die, **inputs).exit_code == 0
    assert label(output, class_name="membrane", workers=0, on_event=die).exit_code == 0
    assert {place.partition("/c/")[0].rpartition("/")[2] for place in planted} >= {"0", "1"}
    assert any("/image/0/" in place for place in planted)
    assert bytes_of(output) == bytes_of(whole)
