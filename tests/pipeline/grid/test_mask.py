"""Test which blocks a mask excludes, by looking at each voxel."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ArrayVolume
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emseg_core.box import Box, Triple
from emseg_core.errors import VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.grid.mask import outside
from emseg_core.specs.volume import VolumeSpec

NM = ("nanometer",) * 3


class Mask(ArrayVolume):
    """A mask in memory with an offset."""

    def __init__(self, values: NDArray[np.uint8], scale: tuple[float, ...], translation: tuple[float, ...], units=NM) -> None:  # type: ignore[no-untyped-def]
        super().__init__(values)
        self.spec = VolumeSpec(values.shape, "uint8", (8, 8, 8), 3, scale, translation, units)  # type: ignore[arg-type]


def by_voxel(blocks: Blocks, volume: VolumeSpec, mask: Mask) -> NDArray[np.bool_]:
    """Compare each block with each voxel of the mask, as intervals that share more than a point."""
    found = np.ones(blocks.grid, bool)
    for index in np.argwhere(mask.values):
        for block in blocks:
            shared = True
            for axis in range(3):
                size, other = volume.scale[axis], mask.spec.scale[axis]
                low = volume.translation[axis] + size * (block.write.start[axis] - 0.5)
                high = volume.translation[axis] + size * (block.write.stop[axis] - 0.5)
                left = mask.spec.translation[axis] + other * (index[axis] - 0.5)
                shared &= left < high - 1e-6 and left + other > low + 1e-6
            if shared:
                found.flat[block.index] = False
    return found


@given(st.data())
def test_blocks_are_left_out_that_no_voxel_touches(data: st.DataObject) -> None:
    sizes, places = st.tuples(*[st.sampled_from([1.0, 2.0, 3.5, 8.0])] * 3), st.tuples(*[st.integers(-12, 12)] * 3)
    shapes = st.tuples(*[st.integers(1, 12)] * 3)
    shape: Triple = data.draw(shapes)
    volume = VolumeSpec(shape, "uint8", (4, 4, 4), 3, data.draw(sizes), data.draw(places), NM)
    start = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    stop = tuple(data.draw(st.integers(a + 1, length)) for a, length in zip(start, shape, strict=True))
    blocks = Blocks(Box(start, stop), data.draw(st.tuples(*[st.integers(1, 5)] * 3)))  # type: ignore[arg-type]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = (rng.random(data.draw(shapes)) < data.draw(st.sampled_from([0.02, 0.2, 1.0]))).astype(np.uint8)
    mask = Mask(values, data.draw(sizes), data.draw(places))
    truth = by_voxel(blocks, volume, mask)
    if truth.all():
        with pytest.raises(VolumeError, match="no block of the region lies within the mask"):
            outside(blocks, volume, mask)
    else:
        np.testing.assert_array_equal(outside(blocks, volume, mask), truth)


def test_a_mask_without_units_covers_the_volume() -> None:
    values = np.zeros((2, 2, 4), np.uint8)
    values[1, 0, 2] = 7
    volume = VolumeSpec((10, 20, 40), "uint8", (4, 4, 4), 3, (50.0, 4.0, 4.0), (3.0, 0.0, 0.0), NM)
    found = outside(Blocks(volume.box, (5, 10, 10)), volume, Mask(values, (1.0,) * 3, (0.0,) * 3, (None,) * 3))
    assert np.argwhere(~found).tolist() == [[1, 0, 2]]


def test_a_mask_elsewhere_is_refused() -> None:
    volume = VolumeSpec((10, 20, 40), "uint8", (4, 4, 4), 3, (4.0,) * 3, (0.0,) * 3, NM)
    for values, place in ((np.ones((2, 2, 2), np.uint8), 1e6), (np.zeros((10, 20, 40), np.uint8), 0.0)):
        with pytest.raises(VolumeError, match="no block of the region lies within the mask: check the mask's voxel size"):
            outside(Blocks(volume.box, (5, 10, 10)), volume, Mask(values, (4.0,) * 3, (place,) * 3))
