"""Test that a digest of voxels depends on their type, shape and values, but not on their memory layout."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from fakes import ArrayVolume, LocalMean, context_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from emseg_core.block import reread_block, segment_block
from emseg_core.digest import voxel_digest
from emseg_core.grid.layout import plan_volume
from emseg_core.grid.mirror import reflect
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec

FORMS = {"uint8": "B", "uint16": "<H", "float32": "<f"}
ARRAYS = st.sampled_from(list(FORMS)).flatmap(
    lambda dtype: hnp.arrays(
        dtype, st.tuples(*[st.integers(1, 5)] * 3), elements={"allow_nan": False} if "f" in dtype else None
    )
)


def oracle(voxels: NDArray[np.generic]) -> str:
    """Hash voxel by voxel, x fastest, the lowest byte first."""
    found = hashlib.sha256(f"{voxels.dtype.name} {tuple(voxels.shape)} ".encode())
    for value in voxels.ravel().tolist():
        found.update(struct.pack(FORMS[voxels.dtype.name], value))
    return found.hexdigest()[:16]


@given(ARRAYS)
def test_it_is_that_of_the_voxels_however_they_lie_in_memory(voxels: NDArray[np.generic]) -> None:
    truth = oracle(voxels)
    assert voxel_digest(voxels) == truth
    assert voxel_digest(np.asfortranarray(voxels)) == truth
    assert voxel_digest(np.flip(np.flip(voxels).copy())) == truth
    assert voxel_digest(voxels.astype(voxels.dtype.newbyteorder(">"))) == truth


@given(ARRAYS, st.data())
def test_any_other_voxel_gives_another_one(voxels: NDArray[np.generic], data: st.DataObject) -> None:
    changed = voxels.copy()
    place = tuple(data.draw(st.integers(0, length - 1)) for length in voxels.shape)
    changed.view(f"u{voxels.dtype.itemsize}")[place] ^= 1 << data.draw(st.integers(0, 8 * voxels.dtype.itemsize - 1))
    assert voxel_digest(changed) != voxel_digest(voxels)


@pytest.mark.parametrize("other", [(2, 3, 1), (1, 6, 1), (6, 1, 1)])
def test_shape_and_type_count(other: tuple[int, int, int]) -> None:
    voxels = np.zeros((1, 2, 3), np.uint8)
    assert voxel_digest(voxels.reshape(other)) != voxel_digest(voxels)
    assert voxel_digest(np.zeros((1, 1, 3), np.uint16)) != voxel_digest(voxels)


def test_a_block_tells_what_it_has_read_and_reads_the_same_again(tiny: NDArray[np.uint8]) -> None:
    """This holds for any chunks, even though the block is mirrored at the faces."""
    model = ModelSpec.unet(width=1, depth=1)
    plan = plan_volume(VolumeSpec(tiny.shape, "uint8", (2, 4, 4)), model)
    context = context_of(ArrayVolume(tiny, (2, 4, 4)), LocalMean(model), plan)
    for block in plan:
        done = segment_block(context, block)
        seen = reflect(plan.read_box(block), plan.shape).source
        assert done.read == oracle(tiny[seen.slices()])
        assert reread_block(ArrayVolume(tiny, (3, 5, 7)), plan, block).read == done.read
        changed = tiny.copy()
        changed[tuple(stop - 1 for stop in seen.stop)] ^= 1
        assert reread_block(ArrayVolume(changed), plan, block).read != done.read
