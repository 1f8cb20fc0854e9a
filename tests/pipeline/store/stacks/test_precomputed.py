"""Test where the levels of a precomputed volume are, and what counts as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_core.box import Box, Triple
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.exports.image import ExportImage, ExportLevel
from emseg_core.store.exports.precomputed_export import offsets_of
from emseg_core.store.stacks.precomputed import is_precomputed

SIZES = (30.0, 4.5, 4.0)
triples = st.tuples(*(st.integers(0, 40) for _ in range(3)))


def image(first: tuple[float, ...], start: Triple, factors: list[Triple]) -> ExportImage:
    """Make an image with this many levels, without voxels."""
    volume = VolumeSpec((99, 99, 99), "uint8", (8, 8, 8), 3, SIZES, cast("Any", first))
    region = Box(start, (99, 99, 99))
    levels = tuple(ExportLevel(Path(), cast("Any", None), None, factor) for factor in factors)
    return ExportImage("classes", "classes", "uint8", (), volume, region, levels)


@given(whole=triples, start=triples, part=st.tuples(*(st.sampled_from([0.0, 0.25, 0.375]) for _ in range(3))))
def test_levels_are_moved_by_half_a_voxel_at_most_and_that_is_told(whole: Triple, start: Triple, part: Any) -> None:
    place = [w + p for w, p in zip(whole, part, strict=True)]
    factors = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    said: list[str] = []
    found = offsets_of(image(tuple(p * s for p, s in zip(place, SIZES, strict=True)), start, factors), said.append)
    moved = []
    for number, (offset, factor) in enumerate(zip(found, factors, strict=True)):
        exact = [(p + s) / f for p, s, f in zip(place, start, factor, strict=True)]
        assert all(abs(e - o) <= 0.5 + 1e-6 for e, o in zip(exact, offset, strict=True))
        if tuple(offset) != pytest.approx(exact, abs=1e-6):
            moved.append(str(number))
    assert [f"moved level{'s' if len(moved) > 1 else ''} {', '.join(moved)} by" in line for line in said] == [True] * bool(
        moved
    )


def test_what_is_precomputed(tmp_path: Path) -> None:
    for name, text in (("a", '{"scales": []}'), ("b", " {"), ("c", "scanned on Monday")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "info").write_text(text)
    assert [is_precomputed(tmp_path / name) for name in "abcd"] == [True, True, False, False]
