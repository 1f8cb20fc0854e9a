"""Test that the output of a run has no seams, and that blocks computed separately by other methods have some."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fakes import in_order
from runs import PLANAR, plan_of, run_emseg, save_random_model, save_volume, shards, texture

from emseg.flows.records.run_log import recipe_of
from emseg.flows.seams import _faces, _write_units, evaluate_seams
from emseg.flows.segment import segment
from emseg_core.errors import OutputError
from emseg_core.grid.tiles import tiles_of
from emseg_core.metrics.seams import Planes, excess
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (9, 160, 170)
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a volume, a model, and an output with several blocks along y and x."""
    folder = tmp_path_factory.mktemp("seams")
    save_volume(folder / "volume.zarr", texture(SHAPE))
    save_random_model(folder / "model.safetensors", PLANAR)
    run(folder, folder / "out.zarr")
    return folder


def run(folder: Path, output: Path, **more: Any) -> None:
    segment(folder / "volume.zarr", output, model=folder / "model.safetensors", workers=0, probabilities=True, **more)


def test_a_run_leaves_none(folder: Path) -> None:
    found = evaluate_seams(folder / "out.zarr")
    assert {trace.axis for trace in found.traces} >= {"y", "x"}
    assert (found.found, found.exit_code) == (False, 0)
    assert str(found).endswith("seams      none found")


def test_blocks_that_differ_have_some(folder: Path, tmp_path: Path) -> None:
    """Classes are swapped in every other block, as if each was trained or normalised separately."""
    run(folder, tmp_path / "out.zarr")
    output = open_output(tmp_path / "out.zarr")
    for number, box in enumerate(_write_units(output)):
        if number % 2:
            labels, probabilities = output.read_labels(box), output.read_probabilities(box)
            output.write(box, in_order(1 - labels, np.ascontiguousarray(probabilities[::-1])))
    found = evaluate_seams(tmp_path / "out.zarr")
    assert (found.found, found.exit_code) == (True, 3)
    assert {trace.what for trace in found.traces if trace.excess.suspect} == {"labels", "probabilities"}
    assert all(trace.excess.ratio > 1 for trace in found.traces if trace.excess.suspect)
    assert str(found).endswith("seams      FOUND: faces stand out from other planes")
    json.dumps(found.to_json(), allow_nan=False)


def test_sums_of_units_are_those_of_the_whole(folder: Path) -> None:
    output = open_output(folder / "out.zarr")
    labels = output.read_labels(output.region)
    traces = [trace for trace in evaluate_seams(folder / "out.zarr").traces if trace.what == "labels"]
    assert traces
    for trace in traces:
        axis = "zyx".index(trace.axis)
        shares = np.moveaxis(labels[(slice(None),) * axis + (slice(1, None),)] != np.delete(labels, -1, axis), axis, 0)
        shares = shares.reshape(len(shares), -1).mean(axis=1)
        blocks, tiles = _faces(recipe_of(output).plan, axis)
        at = blocks if trace.faces == "blocks" else tiles
        assert trace.excess.at_faces == pytest.approx(shares[at].mean())
        assert trace.excess.elsewhere == pytest.approx(shares[~(blocks | tiles)].mean())


@pytest.mark.parametrize("shape", [(9, 61, 67), (30, 75, 90)])
def test_faces_against_all_tiles(shape: tuple[int, int, int]) -> None:
    plan = plan_of(shape, PLANAR)
    for axis in range(3):
        starts = {block.write.start[axis] for block in plan} - {0}
        blocks, tiles = _faces(plan, axis)
        assert set(np.flatnonzero(blocks) + 1) == starts
        targets = {tile.target.start[axis] for block in plan for tile in tiles_of(block.write, plan.tile, plan.model)}
        assert set(np.flatnonzero(tiles) + 1) == targets - starts - {0}


def test_an_output_that_is_not_complete(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out.zarr")
    shards(tmp_path / "out.zarr")[0].unlink()
    with pytest.raises(OutputError, match="not computed: finish the run with `emseg run` first"):
        evaluate_seams(tmp_path / "out.zarr")


def test_as_a_command(folder: Path, tmp_path: Path) -> None:
    done = run_emseg("evaluate", folder / "out.zarr", "--seams", "--json", tmp_path / "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{evaluate_seams(folder / 'out.zarr')}\n"
    assert json.loads((tmp_path / "found.json").read_text())["seams"]["found"] is False


def test_patches_of_real_tissue_that_were_segmented_apart_have_some(tmp_path: Path) -> None:
    """Each patch is normalised and mirrored separately, as tiling without neighbours does. A single run has no seams."""
    raw, side = tifffile.imread(EXAMPLES / "fib25-sample" / "raw.tif")[:6, :240, :240], 40
    quilt = np.empty(raw.shape, np.uint8)
    for y, x in itertools.product(range(0, 240, side), repeat=2):
        patch = tmp_path / f"{y}-{x}.zarr"
        save_volume(patch, raw[:, y : y + side, x : x + side])
        segment(patch, tmp_path / f"{y}-{x}-out.zarr", workers=0)
        made = open_output(tmp_path / f"{y}-{x}-out.zarr")
        quilt[:, y : y + side, x : x + side] = made.read_labels(made.region)
    save_volume(tmp_path / "whole.zarr", raw)
    segment(tmp_path / "whole.zarr", tmp_path / "whole-out.zarr", workers=0)
    whole = open_output(tmp_path / "whole-out.zarr")
    at = np.arange(1, 240) % side == 0
    for labels, seamed in ((quilt, True), (whole.read_labels(whole.region), False)):
        for axis in (1, 2):
            planes = Planes(240)
            planes.add(0, axis, labels, None)
            found = excess(planes.changes, planes.pairs, at, ~at)
            assert found is not None
            assert found.suspect == seamed
