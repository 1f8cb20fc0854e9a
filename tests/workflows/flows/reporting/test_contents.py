"""Test that the content of an output is counted correctly, in total and in part."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import PLANAR, save_random_model, save_volume, shards, texture

from emseg.flows.reporting import contents
from emseg.flows.reporting.contents import BINS_PER_DECADE, bin_start, count_classes, read_sizes
from emseg.flows.segment import segment
from emseg_core.store.outputs.lifecycle import open_output

COLUMNS = "id,voxels,touches_edge\n"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contents")
    save_volume(folder / "volume.zarr", texture((9, 61, 67)))
    model = save_random_model(folder / "model.safetensors", PLANAR)
    segment(folder / "volume.zarr", folder / "out.zarr", model=model, workers=0)
    return folder / "out.zarr"


def test_all_of_it(output: Path) -> None:
    stored = open_output(output)
    labels = stored.read_labels(stored.region)
    found = count_classes(stored)
    assert (found.voxels, found.everything, found.unreadable) == (labels.size, True, 0)
    assert found.shares == pytest.approx([(labels == index).mean() for index in range(len(stored.classes))])


def test_some_of_it(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_CHUNKS", len(shards(output)) // 2)
    stored = open_output(output)
    labels = stored.read_labels(stored.region)
    found = count_classes(stored)
    assert not found.everything
    assert 0 < found.voxels < labels.size
    assert found.shares == pytest.approx([(labels == index).mean() for index in range(len(stored.classes))], abs=0.1)
    assert sum(found.shares) == pytest.approx(1)


def test_what_is_not_computed_or_damaged_does_not_count(output: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "out.zarr"))
    first, second, *_ = shards(copy)
    first.unlink()
    second.write_bytes(bytes(second.stat().st_size))
    stored = open_output(copy)
    found = count_classes(stored)
    whole = open_output(output)
    kept = [whole.read_labels(block.write).ravel() for block in whole.levels[0].blocks if block.index > 1]
    labels = np.concatenate(kept)
    assert (found.voxels, found.everything, found.unreadable) == (labels.size, False, 1)
    assert found.shares == pytest.approx([(labels == index).mean() for index in range(len(whole.classes))])


def test_nothing_is_computed(output: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "out.zarr"))
    for file in shards(copy):
        file.unlink()
    found = count_classes(open_output(copy))
    assert (found.voxels, set(found.shares)) == (0, {0.0})


def test_sizes_of_segments(output: Path) -> None:
    table = output / "emseg" / "some.csv"
    table.write_text(COLUMNS + "1,1,0\n2,10,1\n3,12,1\n4,99,0\n5,torn\n6,0,0\n7,100,0\n")
    found = read_sizes(open_output(output), "some")
    assert found is not None
    assert (found.segments, found.voxels, found.largest, found.at_edge, found.unreadable) == (5, 222, 100, 2, 2)
    assert (found.first, found.counts) == (0, (1, 0, 0, 0, 2, 0, 0, 1, 1))


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=30))
def test_each_segment_is_in_the_bin_of_its_size(sizes: list[int]) -> None:
    rows = iter([["id", "voxels", "touches_edge"], *(["1", str(size), "0"] for size in sizes)])
    found = contents._sizes({}, rows)
    for number, count in enumerate(found.counts, found.first):
        low, high = bin_start(number) * (1 - 1e-9), bin_start(number + 1) * (1 + 1e-9)
        assert count <= sum(low <= size <= high for size in sizes)
    assert sum(found.counts) == len(sizes)
    assert found.counts[0] > 0 < found.counts[-1]


@pytest.mark.parametrize("text", [None, "", "id,size\n1,2\n", COLUMNS.replace("voxels", "voxel")])
def test_no_such_table(output: Path, text: str | None) -> None:
    table = output / "emseg" / "other.csv"
    table.unlink(missing_ok=True)
    if text is not None:
        table.write_text(text)
    assert read_sizes(open_output(output), "other") is None


def test_a_power_of_ten_begins_a_bin() -> None:
    assert [bin_start(BINS_PER_DECADE * power) for power in range(4)] == [1, 10, 100, 1000]
