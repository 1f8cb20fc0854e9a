"""Test HDF5 spread over several files: it is read if complete and in the same folder, else refused by name."""

from __future__ import annotations

import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from bombs import PACKED
from h5py import ExternalLink, SoftLink, VirtualLayout, VirtualSource, h5d, h5p, h5s, h5t
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emseg.flows.ingest import ingest
from emseg.flows.running import limits
from emseg_core.errors import OutputError, VolumeError
from emseg_core.store.stacks.formats import open_stack
from emseg_core.store.stacks.hdf5_voxels import MAX_COVERAGE_STEPS, _first_gap, _Hyperslab
from emseg_core.store.stacks.stack import KnownStack
from emseg_core.store.volumes.volume import open_volume

SHAPE = (4, 10, 12)


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "u1", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def save(path: Path, data: NDArray[Any], name: str = "raw", **how: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=data, **how)
    return path


def mosaic(path: Path, parts: list[tuple[Any, Any]], shape: tuple[int, ...], dtype: str = "u1", name: str = "raw") -> Path:
    """Make a virtual dataset of selections, each with its source."""
    layout = VirtualLayout(shape, dtype)
    for where, source in parts:
        layout[where] = source
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(name, layout, fillvalue=0)
    return path


def read(source: Path, **options: Any) -> NDArray[Any]:
    with open_stack(source, **options) as stack:
        return stack.read(0, stack.shape[0])


def refused(source: Path, **options: Any) -> str:
    folder = source.parent.parent if source.parent.name == "in" else source.parent
    before = {entry.name for entry in folder.iterdir()}
    with pytest.raises(VolumeError) as caught:
        ingest(source, folder / "v.zarr", **options)
    assert {entry.name for entry in folder.iterdir()} == before
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- virtual datasets -------------------------------------------------------------------------------------------


def two_parts(folder: Path) -> tuple[Path, NDArray[Any]]:
    """Make a volume whose halves are in files beside it."""
    halves = [voxels(seed=number) for number in range(2)]
    parts: list[tuple[Any, Any]] = []
    for number, half in enumerate(halves):
        save(folder / f"part{number}.h5", half, "a/raw", chunks=(2, 4, 5), compression="gzip")
        parts.append((slice(4 * number, 4 * number + 4), VirtualSource(f"part{number}.h5", "a/raw", SHAPE)))
    return mosaic(folder / "whole.h5", parts, (8, *SHAPE[1:])), np.concatenate(halves)


def test_a_virtual_dataset_that_is_whole(tmp_path: Path) -> None:
    source, data = two_parts(tmp_path)
    ingest(source, tmp_path / "v.zarr")
    volume = open_volume(tmp_path / "v.zarr")
    np.testing.assert_array_equal(volume.read(volume.spec.box), data)
    with open_stack(source) as stack:
        np.testing.assert_array_equal(stack.read(3, 6), data[3:6])


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    source, _ = two_parts(tmp_path)
    with open_stack(source) as stack:
        known = KnownStack(stack.shape, stack.dtype)
    (tmp_path / "part1.h5").unlink()
    assert f"reads voxels from the file 'part1.h5', which does not exist: copy it into {tmp_path}" in refused(source)
    with open_stack(source, known=known) as stack, pytest.raises(VolumeError, match=r"'part1\.h5', which does not exist"):
        stack.read(0, 8)
    save(tmp_path / "part1.h5", voxels(), "other")
    assert "from the dataset 'a/raw' of" in refused(source)


@pytest.mark.parametrize("kind", ["shape", "dtype"])
def test_a_source_that_is_another_one(tmp_path: Path, kind: str) -> None:
    source, _ = two_parts(tmp_path)
    (tmp_path / "part1.h5").unlink()
    save(tmp_path / "part1.h5", voxels((3, 10, 12)) if kind == "shape" else voxels(dtype="u2"), "a/raw")
    assert {"shape": "to (4, 10, 12) voxels: write both again", "dtype": "is uint8, but its source"}[kind] in refused(source)


def test_parts_that_leave_a_gap(tmp_path: Path) -> None:
    save(tmp_path / "part.h5", voxels())
    source = mosaic(tmp_path / "v.h5", [(slice(0, 4), VirtualSource("part.h5", "raw", SHAPE))], (5, *SHAPE[1:]))
    assert "has no source for the voxel (4, 0, 0)" in refused(source)
    half = VirtualSource("part.h5", "raw", SHAPE)[:, :, :6]
    assert "has no source for the voxel (0, 0, 6)" in refused(mosaic(tmp_path / "w.h5", [(np.s_[:, :, :6], half)], SHAPE))


def test_parts_of_any_regular_kind(tmp_path: Path) -> None:
    """The parts are images of a stack, every other slice, parts of a source, the file itself, absolute paths, big-endian."""
    image, odd, large = voxels((10, 12), ">u2"), voxels((2, 10, 12), "u2", 1), voxels((9, 14, 30), "u2", 2)
    save(tmp_path / "image.h5", image)
    save(tmp_path / "v.h5", odd, "odd", chunks=(1, 3, 5), compression="lzf", shuffle=True)
    save(tmp_path / "large.h5", large, chunks=(2, 5, 7), compression="gzip", shuffle=True, fletcher32=True)
    parts: list[tuple[Any, Any]] = [
        (0, VirtualSource(str(tmp_path / "image.h5"), "raw", (10, 12))),
        (np.s_[1:5:2], VirtualSource(".", "odd", odd.shape)),
        (np.s_[2, :, :5], VirtualSource("large.h5", "raw", large.shape)[8, 2:12, 3:18:3]),
        (np.s_[2, :, 5:], VirtualSource("large.h5", "raw", large.shape)[0, 2:12, 3:10]),
        (4, VirtualSource("large.h5", "raw", large.shape)[4, 4:, 18:]),
    ]
    source = mosaic(tmp_path / "v.h5", parts, (5, 10, 12), "u2")
    expected = np.empty((5, 10, 12), "u2")
    expected[0], expected[1:5:2] = image, odd
    expected[2, :, :5], expected[2, :, 5:], expected[4] = large[8, 2:12, 3:18:3], large[0, 2:12, 3:10], large[4, 4:, 18:]
    np.testing.assert_array_equal(read(source, dataset="raw"), expected)
    with h5py.File(source) as file:
        np.testing.assert_array_equal(file["raw"][...], expected)  # the library's own result
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    np.testing.assert_array_equal(read(moved / "v.h5", dataset="raw"), expected)  # where absolute names do not exist
    moved.rename(tmp_path)


def test_sources_of_sources(tmp_path: Path) -> None:
    source, data = two_parts(tmp_path)
    outer = mosaic(tmp_path / "outer.h5", [(np.s_[:], VirtualSource("whole.h5", "raw", data.shape))], data.shape)
    np.testing.assert_array_equal(read(outer), data)
    (tmp_path / "part0.h5").unlink()
    assert "raw of" in (said := refused(outer))
    assert "whole.h5 reads voxels from the file 'part0.h5', which does not exist" in said
    assert source.exists()


def test_a_circle_of_virtual_datasets(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        mosaic(tmp_path / f"{name}.h5", [(np.s_[:], VirtualSource(f"{other}.h5", "raw", SHAPE))], SHAPE)
    assert "is a virtual dataset of itself" in refused(tmp_path / "a.h5")
    mosaic(tmp_path / "c.h5", [(np.s_[:], VirtualSource(".", "raw", SHAPE))], SHAPE)
    assert "is a virtual dataset of itself" in refused(tmp_path / "c.h5")


@pytest.mark.parametrize("way", ["up", "absolute", "symlink"])
def test_a_source_outside_of_the_folder(tmp_path: Path, way: str) -> None:
    outside = save(tmp_path / "out" / "secret.h5", voxels())
    (tmp_path / "in").mkdir()
    name = {"up": "../out/secret.h5", "absolute": str(outside), "symlink": "link.h5"}[way]
    (tmp_path / "in" / "link.h5").symlink_to(outside)
    source = mosaic(tmp_path / "in" / "v.h5", [(np.s_[:], VirtualSource(name, "raw", SHAPE))], SHAPE)
    assert f"reads voxels from the file {name!r}, which is outside {tmp_path / 'in'}" in refused(source)


def test_selections_that_are_not_regular(tmp_path: Path) -> None:
    """These are selections of points, and an unlimited number of numbered files."""
    save(tmp_path / "part.h5", voxels())
    points = VirtualSource("part.h5", "raw", SHAPE)[[0, 1, 3]]
    assert "source 0 of /raw of" in refused(mosaic(tmp_path / "w.h5", [(np.s_[:], points)], (3, *SHAPE[1:])))
    space, source = (h5s.create_simple(SHAPE, (h5s.UNLIMITED, *SHAPE[1:])), h5s.create_simple((1, *SHAPE[1:])))
    space.select_hyperslab((0, 0, 0), (h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, *SHAPE[1:]))
    save(tmp_path / "part0.h5", voxels((1, *SHAPE[1:])))  # the existing files determine the length of the dataset
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_virtual(space, b"part%b.h5", b"raw", source)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        h5d.create(file.id, b"raw", h5t.NATIVE_UINT8, h5s.create_simple(SHAPE, (h5s.UNLIMITED, *SHAPE[1:])), properties)
    assert "is not a regular selection of fixed size" in refused(tmp_path / "v.h5")


Axis = tuple[int, int, int, int]


@given(
    st.lists(
        st.tuples(*[st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))] * 2), max_size=6
    )
)
def test_a_gap_is_found_where_there_is_one(parts: list[tuple[Axis, Axis]]) -> None:
    shape = (6, 7)
    runs = []
    covered = np.zeros(shape, bool)
    for axes in parts:
        part = tuple(
            _Hyperslab(start, block if count == 1 else max(stride, block), count, block) for start, stride, count, block in axes
        )
        if all(run.stop <= length for run, length in zip(part, shape, strict=True)):
            runs.append(part)
            covered[np.ix_(*(run.indices(0, run.length) for run in part))] = True
    gap = _first_gap(runs, shape, [MAX_COVERAGE_STEPS])
    assert (gap is None) == covered.all()
    assert gap is None or not covered[gap]


def test_parts_that_are_too_many_to_be_looked_at() -> None:
    with pytest.raises(RecursionError):
        _first_gap([(_Hyperslab(0, 2, 1000, 1),)], (2000,), [999])


# -- links, external storage, types -----------------------------------------------------------------------------


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    source = save(tmp_path / "s.h5", voxels(), "a/b/raw")
    with h5py.File(source, "a") as file:
        file["a/soft"] = SoftLink("b")
        file["top"] = SoftLink("/a/soft/raw")
    for name in ("top", "a/soft/raw", "/a/b/raw", "a//b/./raw"):
        np.testing.assert_array_equal(read(source, dataset=name), voxels())
    np.testing.assert_array_equal(read(source), voxels())


def test_links_out_of_a_file(tmp_path: Path) -> None:
    save(tmp_path / "other.h5", voxels(), "group/raw")
    source = tmp_path / "s.h5"
    with h5py.File(source, "w") as file:
        file["raw"] = ExternalLink("other.h5", "/group/raw")
        file["inner/group"] = ExternalLink("other.h5", "/group")
        file["soft"] = SoftLink("/inner/group")
    assert "is a link to '/group/raw' in another file, 'other.h5'" in refused(source, dataset="raw")
    for name in ("inner/group/raw", "soft/raw"):
        assert "'/inner/group' in" in refused(source, dataset=name)
    assert "in another file, 'other.h5'" in refused(source)  # nothing else is there
    outer = mosaic(tmp_path / "v.h5", [(np.s_[:], VirtualSource("s.h5", "inner/group/raw", SHAPE))], SHAPE)
    assert "in another file, 'other.h5'" in refused(outer)


def test_links_in_a_circle(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["a"] = SoftLink("/b")
        file["b"] = SoftLink("/a")
        file["group/self"] = SoftLink("/group")
    for name in ("a", "a/raw"):
        assert "lead back to themselves" in refused(tmp_path / "s.h5", dataset=name)
    assert "no dataset 'group/self/self/raw'" in refused(tmp_path / "s.h5", dataset="group/self/self/raw")


def test_external_storage(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(480))
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("raw", SHAPE, "u1", external=[(str(tmp_path / "secret"), 0, 480)])
    assert f"are stored in another file, '{tmp_path / 'secret'}'" in refused(tmp_path / "s.h5")


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.create_dataset("raw", data=np.zeros((3, 4, 5), [("a", "u1")])),
        lambda file: file.create_dataset("raw", (3, 4, 5), h5py.vlen_dtype(np.uint8)),
        lambda file: file.create_dataset("raw", (3, 4, 5), h5py.ref_dtype),
        lambda file: file.create_dataset("raw", (3, 4, 5), h5py.regionref_dtype),
        lambda file: file.create_dataset("raw", (3, 4, 5), h5py.string_dtype()),
        lambda file: file.create_dataset("raw", (3, 4, 5), np.dtype(("u1", (2,)))),
        lambda file: file.create_dataset("raw", data=np.zeros((3, 4, 5), complex)),
        lambda file: file.create_dataset("raw", dtype="u1", shape=None),
        lambda file: file.create_dataset("raw", data=np.uint8(3)),
        lambda file: file.create_dataset("raw", (3, 0, 5), "u1", maxshape=(3, None, 5)),
        lambda file: file.create_group("raw"),
    ],
)
def test_what_is_no_volume(tmp_path: Path, make: Callable[[h5py.File], Any]) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        make(file)
    assert "raw" in refused(tmp_path / "s.h5", dataset="raw")


# -- chunks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": (2, 4, 5)},
        {"chunks": (3, 10, 7), "compression": "gzip"},
        {"chunks": (2, 4, 5), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (2, 4, 5), "compression": "lzf"},
        {"chunks": (1, 10, 12), "compression": "lzf", "shuffle": True},
        {"chunks": (2, 4, 5), "fletcher32": True},
    ],
    ids=str,
)
def test_each_way_to_store(tmp_path: Path, how: dict[str, Any], dtype: str) -> None:
    data = voxels(dtype=dtype)
    data[1:3] = 7
    source = save(tmp_path / "s.h5", data, **how)
    with open_stack(source) as stack:
        np.testing.assert_array_equal(stack.read(0, 4), data)
        np.testing.assert_array_equal(stack.read(1, 2), data[1:2])


def test_filters_that_need_a_plugin(tmp_path: Path) -> None:
    source = save(tmp_path / "s.h5", voxels(), chunks=SHAPE, scaleoffset=0)
    assert "use the filter 'scaleoffset', but emseg supports only gzip" in refused(source)


def claim(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...] | None, first: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("raw", shape, "u1", chunks=chunks)
        if first:
            stored[:1, :1, :1] = 1
    return path


@pytest.mark.parametrize("chunks", [(64,) * 3, None])
@pytest.mark.parametrize("allow_missing", [False, True])
def test_a_claim_without_anything_in_it(tmp_path: Path, chunks: tuple[int, ...] | None, allow_missing: bool) -> None:
    said = refused(claim(tmp_path / "s.h5", (2**20,) * 3, chunks), allow_missing=allow_missing)
    assert "/raw of" in said
    assert (
        f"has {2**42} chunks, but only 0 were written" if chunks else f"has {2**60} voxels, but none was ever written"
    ) in said
    if chunks:
        said = refused(claim(tmp_path / "s.h5", (2**20,) * 3, chunks, first=True), allow_missing=allow_missing)
        assert "but only 1 were written, not the one at (0, 0, 64)" in said
    assert "an axis has 1 to" in refused(claim(tmp_path / "s.h5", (2**30, 1, 1), (64, 1, 1)))


def test_chunks_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        stored = file.create_dataset("raw", (4, 4, 4), "u1", chunks=(1, 4, 4), fillvalue=9)
        stored[:3] = 5
    said = refused(tmp_path / "s.h5")
    assert "has 4 chunks, but only 3 were written, not the one at (3, 0, 0)" in said
    assert said.endswith("--allow-missing")
    np.testing.assert_array_equal(read(tmp_path / "s.h5", allow_missing=True)[:, 0, 0], [5, 5, 5, 9])


def test_voxels_behind_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads them as zeros, because it checks only the end that the file states."""
    source = save(tmp_path / "s.h5", voxels())
    told = source.stat()
    size = SimpleNamespace(st_size=told.st_size - 1, st_mode=told.st_mode)
    usual = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **how: size if self == source else usual(self, **how))
    with pytest.raises(VolumeError, match="should end at byte"):
        read(source)


@pytest.mark.parametrize(
    "packed", [PACKED["zlib"], b"\0a" + b"\xe0\xff\0" * (2**16), zlib.compress(bytes(10)), b"none"], ids=len
)
def test_a_chunk_that_is_not_what_it_should_be(tmp_path: Path, packed: bytes) -> None:
    lzf = packed.startswith(b"\0a")
    source = save(tmp_path / "s.h5", voxels((16, 64, 64)), chunks=(16, 64, 64), compression="lzf" if lzf else "gzip")
    with h5py.File(source, "a") as file:
        file["raw"].id.write_direct_chunk((0, 0, 0), packed)
    tracemalloc.start()
    try:
        said = refused(source)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "(the chunk at (0, 0, 0): " in said
    assert said.endswith("copy it again")
    if len(packed) > 10**4 and not lzf:
        assert "it should have 65536 bytes, but decompresses to more than that" in said


# -- what other sources claim -----------------------------------------------------------------------------------


def test_more_than_the_memory_or_the_disk_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "s.h5", voxels())
    monkeypatch.setattr(limits, "usable_memory", lambda: 900)
    assert "4 x 10 x 12 voxels are read at once" in refused(source)
    monkeypatch.setattr(limits, "usable_memory", lambda: 2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4))
    assert "4 x 10 x 12 voxels, 0.0 GiB, but 0.0 GiB are free in" in refused(source)


def test_nothing_stays_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise MemoryError

    source = save(tmp_path / "s.h5", voxels())
    monkeypatch.setattr("emseg_core.store.exports.new_volume.SlabWriter.done", without)
    with pytest.raises(MemoryError):
        ingest(source, tmp_path / "v.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5"]


def test_the_place_is_looked_at_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        ingest(save(tmp_path / "s.h5", voxels()), tmp_path / "none" / "v.zarr")
