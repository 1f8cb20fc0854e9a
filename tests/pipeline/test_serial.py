"""Test the reference executor."""

from __future__ import annotations

import numpy as np
from fakes import ArrayVolume, LocalMean, MemoryLabels, context_of, plan_by_hand
from numpy.typing import NDArray

from emseg_core.block import BlockContext, segment_block
from emseg_core.outcome import Outcome
from emseg_core.serial import segment_blocks
from emseg_core.specs.model import ModelSpec

MODEL = ModelSpec.unet(width=1, depth=0)
PLAN = plan_by_hand(MODEL, (5, 11, 13), (2, 4, 8), MODEL.tile_for((2, 4, 4)))


def context(tiny: NDArray[np.uint8]) -> tuple[BlockContext, ArrayVolume, MemoryLabels]:
    volume, labels = ArrayVolume(tiny), MemoryLabels(PLAN, probabilities=True)
    return context_of(volume, LocalMean(MODEL), PLAN, labels=labels), volume, labels


def untimed(outcome: Outcome) -> tuple[int, str, int, str | None]:
    return outcome.block, outcome.status, outcome.voxels, outcome.cause


def test_it_does_each_block_in_order(tiny: NDArray[np.uint8]) -> None:
    here, _, labels = context(tiny)
    outcomes = list(segment_blocks(here, PLAN))
    other, _, expected = context(tiny)
    assert [untimed(outcome) for outcome in outcomes] == [untimed(segment_block(other, block)) for block in PLAN]
    assert labels.labels.tobytes() == expected.labels.tobytes()
    assert labels.probabilities is not None
    assert expected.probabilities is not None
    assert labels.probabilities.tobytes() == expected.probabilities.tobytes()


def test_it_does_a_block_when_its_outcome_is_asked_for(tiny: NDArray[np.uint8]) -> None:
    here, volume, _ = context(tiny)
    outcomes = segment_blocks(here, PLAN)
    assert volume.reads == []
    next(outcomes)
    next(outcomes)
    assert len(volume.reads) == 2


def test_it_does_only_the_blocks_it_is_given(tiny: NDArray[np.uint8]) -> None:
    here, _, labels = context(tiny)
    assert [outcome.block for outcome in segment_blocks(here, [PLAN.block(3), PLAN.block(1)])] == [3, 1]
    assert [labels.is_done(block.write) for block in PLAN][:4] == [False, True, False, True]
    assert list(segment_blocks(here, [])) == []
