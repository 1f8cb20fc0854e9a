"""Test that any sequence of runs, kills, overwrites and takeovers ends in the right bytes or a refusal, never in a mixture."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import in_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from runs import PLANAR, save_random_model, save_volume, texture

from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event
from emseg_core.errors import OutputError
from emseg_core.grid.stitch import NOT_COMPUTED
from emseg_core.store.files import lease
from emseg_core.store.files.files import open_writable_files
from emseg_core.store.files.lease import Token
from emseg_core.store.files.ownership import IDENTITY
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output

MODELS = (0, 1)
Labels = NDArray[np.uint8]


class Killed(BaseException):
    """The driver has died. None of its code after this point runs."""


class World:
    """One volume, two models, one output, and workers that outlive their runs."""

    def __init__(self, folder: Path) -> None:
        self.volume = save_volume(folder / "volume.zarr", texture((4, 40, 40)))
        self.models = [save_random_model(folder / f"{seed}.safetensors", PLANAR, seed) for seed in MODELS]
        self.truth = [self._truth(folder / f"truth{seed}.zarr", model) for seed, model in enumerate(self.models)]
        self.folder = folder
        assert (self.truth[0] != self.truth[1]).any()

    def _truth(self, output: Path, model: Path) -> Labels:
        segment(self.volume, output, model=model, workers=0)
        stored = open_output(output)
        return stored.read_labels(stored.region)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@contextmanager
def dead_holders() -> Iterator[None]:
    """Treat every holder of a lease as dead, as a killed driver would be. Here the holder is this process itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.Holder, "dead", lambda self, age: True)
        patch.setattr(lease.Lease, "held", _unreleased)
        yield


@contextmanager
def _unreleased(self: lease.Lease) -> Iterator[lease.Lease]:
    """Replace `Lease.held` by a version that, like a killed driver, does not release the lease."""
    try:
        yield self
    except Killed:
        self._stop()
        raise
    else:
        self._stop()
        self._put(released=True)


KINDS = ["run", "kill", "run otherwise", "overwrite", "kill overwriting", "orphan", "run among orphans"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(MODELS), st.integers(0, 9)), min_size=1, max_size=7)
OTHERWISE = (1, 52, 48)
"""A tile shape that the planner does not choose."""


def perform(world: World, output: Path, kind: str, model: int, number: int, orphans: list[tuple[Output, Labels]]) -> None:
    """Perform one step. If it is refused, the error is an `OutputError`."""
    if kind == "orphan":
        write_as_orphans(orphans, number)
        return
    ended = 0

    def watch(event: Event) -> None:
        nonlocal ended
        if isinstance(event, BlockEnded):
            ended += 1
            if kind == "run among orphans":
                write_as_orphans(orphans, number + ended)
            if kind.startswith("kill") and ended > number:
                runs = len(list((output / "emseg").glob("run-*")))
                token = Token(Records(open_writable_files(output, (output / IDENTITY).read_bytes())), runs)
                orphans.append((open_output(output, token), world.truth[model]))
                raise Killed

    with suppress(Killed):
        segment(
            world.volume,
            output,
            model=world.models[model],
            workers=0,
            tile=OTHERWISE if kind == "run otherwise" else None,
            overwrite="overwrit" in kind,
            on_event=watch,
        )


def write_as_orphans(orphans: list[tuple[Output, Labels]], number: int) -> None:
    """Let workers of killed runs write what those runs computed."""
    for orphan, labels in orphans:
        block = segment_box(orphan, number)
        part = labels[block.relative_to(orphan.region.start).slices()]
        with suppress(Exception):  # any error may stop it: its arrays may be gone
            orphan.write(block, in_order(part, None))


def segment_box(output: Output, number: int) -> Any:
    """Draw a write unit."""
    plan_blocks = [
        (z, y, x)
        for z in range(0, output.region.shape[0], output.unit[0])
        for y in range(0, output.region.shape[1], output.unit[1])
        for x in range(0, output.region.shape[2], output.unit[2])
    ]
    start = plan_blocks[number % len(plan_blocks)]
    return type(output.region).of_shape(output.unit).shift(start).shift(output.region.start).intersect(output.region)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STEPS)
def test_any_sequence_ends_in_the_right_bytes_or_a_refusal(world: World, steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=world.folder) as folder, dead_holders():
        output, owner, otherwise = Path(folder, "out.zarr"), None, False
        orphans: list[Any] = []
        for kind, model, number in steps:
            refusal = ""
            try:
                perform(world, output, kind, model, number, orphans)
            except OutputError as error:
                refusal = str(error)
            if refusal:
                assert "run" in kind or kind == "kill"
                other_tiles = kind == "run otherwise" and not otherwise  # none of the requested tiles is the stored one
                assert owner != model or other_tiles
                assert owner == model or "model_digest" in refusal
                assert not other_tiles or "plan.tile" in refusal
            elif kind != "orphan" and (owner is None or "overwrit" in kind):
                owner, otherwise = model, kind == "run otherwise"
            if output.exists() and owner is not None:
                check(open_output(output), world.truth[owner])
        if owner is not None:
            tile = OTHERWISE if otherwise else None
            assert segment(world.volume, output, model=world.models[owner], workers=0, tile=tile).exit_code == 0
            stored = open_output(output)
            np.testing.assert_array_equal(stored.read_labels(stored.region), world.truth[owner])


def check(stored: Output, truth: Labels) -> None:
    """Check that all content belongs to the model that the output names."""
    labels = stored.read_labels(stored.region)
    np.testing.assert_array_equal(labels[labels != NOT_COMPUTED], truth[labels != NOT_COMPUTED])
