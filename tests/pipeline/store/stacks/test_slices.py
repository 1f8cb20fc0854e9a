"""Test which file of a folder is which slice, and which slices are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_core.errors import VolumeError
from emseg_core.store.stacks.slices import slice_files


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def order(folder: Path) -> list[str]:
    return [file.name for file in slice_files(folder).files]


def error(folder: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        slice_files(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_slice_2_comes_before_slice_10(tmp_path: Path) -> None:
    touch(tmp_path, *(f"slice{number}.tif" for number in range(1, 13)))
    assert order(tmp_path) == [f"slice{number}.tif" for number in range(1, 13)]


@settings(max_examples=50)
@given(first=st.integers(0, 2000), count=st.integers(1, 30), width=st.integers(0, 5), data=st.data())
def test_numbers_decide_however_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int, width: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("slices")
    names = [f"run7_z{number:0{width}d}_2024.TIFF" for number in range(first, first + count)]
    touch(folder, *data.draw(st.permutations(names)))
    assert order(folder) == names


def test_other_numbers_may_change(tmp_path: Path) -> None:
    names = [
        f"{date}_s{number:03d}_z={number * 0.008:.4f}um.tif" for number, date in ((1, 20240101), (2, 20240101), (3, 20240102))
    ]
    touch(tmp_path, *names)
    assert order(tmp_path) == names


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    touch(tmp_path, "a1.tif", "a2.tif", ".a3.tif", "a4.png", "notes.txt", "a3")
    (tmp_path / "a9.tif").mkdir()
    assert order(tmp_path) == ["a1.tif", "a2.tif"]


@pytest.mark.parametrize("name", ["stack.tif", "a7.tif"])
def test_a_single_slice_needs_no_number(tmp_path: Path, name: str) -> None:
    assert order(touch(tmp_path, name)) == [name]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "contains no file .tif or .tiff"),
        (["a.txt"], "contains no file .tif or .tiff"),
        (["a1.tif", "a2.tif", "a4.tif"], "slice 3 is missing in {} between a2.tif and a4.tif"),
        (["a8.tif", "a9.tif", "a11.tif", "a13.tif"], "slices 10, 12 are missing in {} between a9.tif and a13.tif"),
        (["a0.tif", "a10.tif", "a20.tif"], "slices 1 to 9, 11 to 19 are missing in {} between a0.tif and a20.tif"),
        ([f"a{number:07d}.tif" for number in range(0, 40, 2)], "slices 1, 3, 5, 7, 9, 11, 13, 15, ... are missing in {}"),
        (["a1.tif", "a9000000000.tif"], "slices 2 to 10001 are missing"),
        (["x5_1.tif", "x9_2.tif", "x1_4.tif"], "slice 3 is missing in {} between x9_2.tif and x1_4.tif"),
        (["a1.tif", "a01.tif"], "a01.tif and a1.tif in {} both have slice number 1: keep only one"),
        (["a1.tif", "a1.tiff"], "a1.tif and a1.tiff in {} both have slice number 1: keep only one"),
        (["a1.tif", "a2.tif", "a2.TIF"], "both have slice number 2: keep only one"),
        (["a.tif", "a.tiff"], "contain no slice number"),
        (["a1.tif", "b2.tif"], "the names a1.tif and b2.tif in {} differ in more than a number"),
        (["a1.tif", "a1_2.tif"], "differ in more than a number"),
    ],
)
def test_what_is_not_a_stack(tmp_path: Path, names: list[str], message: str) -> None:
    assert message.format(tmp_path) in error(touch(tmp_path, *names))


@settings(max_examples=50)
@given(first=st.integers(0, 2000), there=st.sets(st.integers(0, 30), min_size=2, max_size=31))
def test_gaps_are_filled_if_they_are_allowed(tmp_path_factory: pytest.TempPathFactory, first: int, there: set[int]) -> None:
    folder, start = tmp_path_factory.mktemp("slices"), min(there)
    touch(folder, *(f"em2_{first + place}.tif" for place in there))
    missing = set(range(start, max(there))) - there
    if missing:
        assert "--allow-missing" in error(folder)
    if len(missing) >= len(there):
        with pytest.raises(VolumeError, match="number the files by slice"):
            slice_files(folder, allow_missing=True)
        return
    found = slice_files(folder, allow_missing=True)
    assert [file.name for file in found.files] == [f"em2_{first + place}.tif" for place in sorted(there)]
    assert (set(found.places), set(found.missing)) == ({z - start for z in there}, {z - start for z in missing})
    assert found.depth == max(there) - start + 1
    assert found.within(1, 4) == [(z - 1, f) for z, f in zip(found.places, found.files, strict=True) if 1 <= z < 4]
