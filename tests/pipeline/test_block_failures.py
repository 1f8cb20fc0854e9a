"""Test that a failing block is an outcome with its cause, and does not affect the other blocks."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import ArrayVolume, FailingPredictor, FullDisk, LocalMean, MemoryLabels, SayingPredictor, context_of, plan_by_hand
from numpy.typing import NDArray
from oracles import voxels

import emseg_core.block
import emseg_core.outcome
from emseg_core.block import BlockContext, segment_block
from emseg_core.box import Box, Triple
from emseg_core.errors import BlockError
from emseg_core.grid.mirror import reflect
from emseg_core.grid.plan import Plan
from emseg_core.grid.stitch import NOT_COMPUTED, stored_values
from emseg_core.outcome import Outcome, Seconds
from emseg_core.serial import segment_blocks
from emseg_core.specs.heads import StoredImage
from emseg_core.specs.model import ModelSpec

MODEL = ModelSpec.unet(width=1, depth=0, kernel=(3, 3, 3))
SHAPE: Triple = (9, 20, 20)
PLAN: Plan = plan_by_hand(MODEL, SHAPE, (4, 8, 8), MODEL.tile_for((4, 8, 8)))
BIG = float(np.finfo(np.float32).max)


def values(dtype: str = "float32") -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


def run(context: BlockContext) -> list[Outcome]:
    """Run all blocks, and check that the output has exactly those that were computed."""
    outcomes = list(segment_blocks(context, PLAN))
    assert [outcome.block for outcome in outcomes] == list(range(len(PLAN)))
    for block, outcome in zip(PLAN, outcomes, strict=True):
        assert context.output.is_done(block.write) == (outcome.status == "done")
        assert (outcome.cause is None) == (outcome.status == "done")
        assert outcome.voxels == block.write.voxels
        assert min(outcome.seconds.read, outcome.seconds.wait, outcome.seconds.predict, outcome.seconds.write) >= 0
        assert outcome.peak_bytes > 2**20
        if outcome.cause is not None:
            assert outcome.cause.strip()
            assert len(outcome.cause.splitlines()) == 1
        assert len(json.dumps(outcome.to_json())) < 1000
    return outcomes


def failed(outcomes: list[Outcome]) -> list[int]:
    return [outcome.block for outcome in outcomes if outcome.status == "failed"]


def who_sees(voxel: Triple) -> list[int]:
    """Return the blocks that read a voxel, mirrored or not."""
    return [block.index for block in PLAN if voxel in voxels(reflect(PLAN.read_box(block), SHAPE).source)]


def test_a_run_without_failures() -> None:
    outcomes = run(context_of(ArrayVolume(values("uint8")), LocalMean(MODEL), PLAN))
    assert failed(outcomes) == []
    assert len({outcome.worker for outcome in outcomes}) == 1
    assert all(outcome.seconds.read > 0 and outcome.seconds.predict > 0 and outcome.seconds.write > 0 for outcome in outcomes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (4, 8, 8), (8, 19, 19), (1, 7, 11)])
def test_a_voxel_that_is_no_number_fails_the_blocks_that_see_it(voxel: Triple, bad: float) -> None:
    broken = values()
    broken[voxel] = bad
    outcomes = run(context_of(ArrayVolume(broken), LocalMean(MODEL), PLAN))
    assert failed(outcomes) == who_sees(voxel)
    for index in failed(outcomes):
        assert outcomes[index].cause == (
            f"voxel {voxel} (z, y, x) is {bad}, but a network needs finite numbers: replace it, or leave it out with --roi"
        )


def test_what_cannot_be_read_fails_the_blocks_that_read_it() -> None:
    chunk = Box((8, 16, 16), (9, 20, 20))
    outcomes = run(context_of(ArrayVolume(values(), broken=chunk), LocalMean(MODEL), PLAN))
    assert 0 < len(failed(outcomes)) < len(PLAN)
    assert {index for voxel in voxels(chunk) for index in who_sees(voxel)} == set(failed(outcomes))
    assert {outcomes[index].cause for index in failed(outcomes)} == {"the chunk at (8, 16, 16) cannot be decompressed"}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("out of memory\n  tried to allocate\n\t2 GiB"), "RuntimeError: out of memory tried to allocate 2 GiB"),
        (MemoryError(), "MemoryError:"),
        (BlockError("weights\nare broken"), "weights are broken"),
        (BlockError(""), "no reason given"),
        (KeyError("scale"), "KeyError: 'scale'"),
        (ValueError("x" * 10_000), f"ValueError: {'x' * 385}..."),
    ],
)
def test_a_predictor_that_breaks_down_fails_its_block(error: Exception, cause: str) -> None:
    outcomes = run(context_of(ArrayVolume(values()), FailingPredictor(MODEL, at=5, error=error), PLAN))
    assert failed(outcomes) == [5]
    assert outcomes[5].cause == cause
    assert outcomes[5].seconds.read > 0


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (BlockError("weights are broken"), "block"),
        (BlockError("the server does not answer", "store"), "store"),
        (BlockError("the device failed", "device"), "device"),
        (KeyError("scale"), "block"),
    ],
)
def test_an_outcome_says_what_was_at_fault(error: Exception, fault: str) -> None:
    outcomes = run(context_of(ArrayVolume(values()), FailingPredictor(MODEL, at=5, error=error), PLAN))
    assert [outcome.fault for outcome in outcomes] == [fault if index == 5 else None for index in range(len(PLAN))]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_network_that_predicts_no_number_fails(bad: float) -> None:
    outcomes = run(context_of(ArrayVolume(values()), SayingPredictor(MODEL, (0.0, bad)), PLAN))
    assert failed(outcomes) == list(range(len(PLAN)))
    assert outcomes[0].cause == ("the network predicts NaN or infinity in 0:4,0:8,0:8: check its weights and the voxels there")


def test_a_block_that_cannot_be_written_fails() -> None:
    full = FullDisk(PLAN, True, PLAN.block(3).write)
    outcomes = run(context_of(ArrayVolume(values()), LocalMean(MODEL), PLAN, labels=full))
    assert failed(outcomes) == [3]
    assert outcomes[3].cause == "OSError: [Errno 28] No space left on device"
    assert outcomes[3].seconds.predict > 0


@pytest.mark.parametrize("logits", [(BIG, -BIG), (-BIG, BIG), (BIG, BIG), (-BIG, -BIG), (0.0, 0.0), (-1e-45, 1e-45)])
def test_not_computed_is_never_predicted(logits: tuple[float, float]) -> None:
    labels = MemoryLabels(PLAN, probabilities=True)
    assert failed(run(context_of(ArrayVolume(values()), SayingPredictor(MODEL, logits), PLAN, labels=labels))) == []
    first, second = logits
    assert (labels.labels == (1 if second > first else 0)).all()
    assert labels.probabilities is not None
    assert labels.probabilities.max() < NOT_COMPUTED
    expected = (127, 127) if abs(first - second) < 1 else (254, 0) if first > second else (0, 254)
    assert tuple(labels.probabilities[:, 0, 0, 0]) == expected


def test_labels_alone() -> None:
    labels = MemoryLabels(PLAN, probabilities=False)
    both = MemoryLabels(PLAN, probabilities=True)
    assert failed(run(context_of(ArrayVolume(values()), LocalMean(MODEL), PLAN, probabilities=False, labels=labels))) == []
    run(context_of(ArrayVolume(values()), LocalMean(MODEL), PLAN, labels=both))
    np.testing.assert_array_equal(labels.labels, both.labels)


# -- whose turn it is ---------------------------------------------------------------------------------------------------


class Watched(LocalMean):
    """Predictor that records whether the turn is held while it predicts."""

    def __init__(self, turn: threading.Lock) -> None:
        super().__init__(MODEL)
        self.turn = turn
        self.held: list[bool] = []

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""
        self.held.append(self.turn.locked())
        return super().predict(tiles)


class WatchedVolume(ArrayVolume):
    """Volume that must not be read by the block that holds the turn."""

    turn: threading.Lock

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels."""
        assert not self.turn.locked()
        return super().read(box)


class WatchedLabels(MemoryLabels):
    """Output that must not be written by the block that holds the turn."""

    turn: threading.Lock

    def write(self, box: Box, values: Sequence[NDArray[Any]]) -> None:
        """Store a block."""
        assert not self.turn.locked()
        super().write(box, values)


def test_the_turn_is_held_while_predicting_and_only_then() -> None:
    turn = threading.Lock()
    predictor, volume, labels = Watched(turn), WatchedVolume(values()), WatchedLabels(PLAN, probabilities=True)
    volume.turn = labels.turn = turn
    context = replace(context_of(volume, predictor, PLAN, labels=labels), turn=turn)
    assert failed(run(context)) == []
    assert predictor.held == [True] * len(predictor.batches)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(1)])
def test_the_turn_is_given_back_whatever_happens(error: BaseException) -> None:
    """This includes the end of the process, which is not an outcome of a block."""
    turn = threading.Lock()
    context = replace(context_of(ArrayVolume(values()), FailingPredictor(MODEL, 0, error), PLAN), turn=turn)
    if isinstance(error, Exception):
        assert segment_block(context, PLAN.block(0)).status == "failed"
    else:
        with pytest.raises(type(error)):
            segment_block(context, PLAN.block(0))
    assert not turn.locked()


def test_seconds_are_counted_where_they_were_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves only during work."""
    now = [0.0]

    class Turn:
        def __enter__(self) -> None:
            now[0] += 5

        def __exit__(self, *error: object) -> None:
            pass

    def slow(method: Any, seconds: float) -> Any:
        def call(*args: Any) -> Any:
            now[0] += seconds
            return method(*args)

        return call

    monkeypatch.setattr(emseg_core.outcome, "perf_counter", lambda: now[0])
    volume, predictor, labels = ArrayVolume(values()), LocalMean(MODEL), MemoryLabels(PLAN, probabilities=True)
    monkeypatch.setattr(volume, "read", slow(volume.read, 3))
    monkeypatch.setattr(predictor, "predict", slow(predictor.predict, 7))
    monkeypatch.setattr(labels, "write", slow(labels.write, 2))
    context = replace(context_of(volume, predictor, PLAN, labels=labels), turn=Turn())
    seconds = segment_block(context, PLAN.block(0)).seconds
    turns = len(predictor.batches)
    assert seconds == Seconds(read=3, wait=5 * turns, predict=7 * turns, write=2)


def test_a_turn_is_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one block makes labels of its logits, a tile of another may be predicted."""
    turn, held = threading.Lock(), []

    class Watched(LocalMean):
        def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
            held.append(turn.locked())
            return super().predict(tiles)

    def watched(image: StoredImage, logits: NDArray[np.float32]) -> NDArray[Any]:
        if image.content == "labels":
            held.append(turn.locked())
        return stored_values(image, logits)

    monkeypatch.setattr(emseg_core.block, "stored_values", watched)
    plan = plan_by_hand(MODEL, SHAPE, (9, 20, 20), MODEL.tile_for((4, 8, 8)))
    assert (
        segment_block(replace(context_of(ArrayVolume(values()), Watched(MODEL), plan), turn=turn), plan.block(0)).cause is None
    )
    assert held == [True, False] * (len(held) // 2)
    assert len(held) > 2
    assert not turn.locked()


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiles_go_in_batches(batch: int) -> None:
    plan = plan_by_hand(MODEL, SHAPE, (9, 20, 20), MODEL.tile_for((4, 8, 8)), batch=batch)
    predictor, labels = LocalMean(MODEL), MemoryLabels(plan, probabilities=True)
    context = context_of(ArrayVolume(values()), predictor, plan, labels=labels)
    assert segment_block(context, plan.block(0)).cause is None
    tiles = 3 * 3 * 3
    assert predictor.batches == [batch] * (tiles // batch) + [tiles % batch] * (tiles % batch > 0)
