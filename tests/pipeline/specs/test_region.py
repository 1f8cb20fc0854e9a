"""Test regions as users type them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_core.box import Box
from emseg_core.errors import PlanError
from emseg_core.specs.region import parse_region
from emseg_core.specs.volume import VolumeSpec

FINE = VolumeSpec(
    (40, 60, 80), "uint8", (8, 8, 8), 3, (40.0, 0.004, 5.0), (400.0, -0.1, 7.5), ("nanometer", "micrometer", "angstrom")
)


@given(st.data())
def test_nanometres_mean_the_voxels_whose_centres_they_hold(data: st.DataObject) -> None:
    """Each voxel is checked; ends are at centres, between them, and at none."""
    sizes, ends, kept = (40.0, 4.0, 0.5), [], []
    for length, size, first in zip(FINE.shape, sizes, (400.0, -100.0, 0.75), strict=True):
        quarters = st.integers(0, 4 * (length - 1))
        one, other = sorted((data.draw(quarters), data.draw(quarters)))
        start, stop = first + one * size / 4, first + other * size / 4 + size
        inside = [i for i in range(length) if start - 1e-9 <= first + i * size < stop - 1e-9]
        ends.append(f"{start:.9f}:{stop:.9f}")
        kept.append((inside[0], inside[-1] + 1))
    starts, stops = zip(*kept, strict=True)
    assert parse_region(f"{','.join(ends)}nm", FINE) == Box(starts, stops)


def test_ends_that_are_left_out_are_those_of_the_volume() -> None:
    assert parse_region(":,:,:nm", FINE) == FINE.box
    assert parse_region(" 480:560, :, : nm", FINE) == Box((2, 0, 0), (4, 60, 80))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:1,2:3nm", r"not of the form z0:z1,y0:y1,x0:x1nm \(nanometres\)"),
        ("0:1.5,:,:", r"not of the form z0:z1,y0:y1,x0:x1 \(whole voxels from 0\)"),
        ("0:1,:,:mm", "not of the form"),
        ("401:402,:,:nm", "is empty"),
        ("0:800,:,:nm", "is not inside the volume"),
    ],
)
def test_what_is_no_region_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_region(text, FINE)


def test_a_volume_without_a_unit_has_no_nanometres() -> None:
    bare = replace(FINE, units=("nanometer", None, "parsec"))
    for text, axis in ((":,0:8,:nm", "y is not stated"), (":,:,0:8nm", "x is parsec")):
        with pytest.raises(PlanError, match=rf"unit along {axis}: give it in voxels, without nm"):
            parse_region(text, bare)
    assert parse_region("480:,:,:nm", bare) == Box((2, 0, 0), FINE.shape)
