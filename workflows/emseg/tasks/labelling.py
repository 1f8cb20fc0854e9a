"""Work of `emseg label`, in three stages: what workers do to each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emseg_core.block import outcome_of
from emseg_core.errors import BlockError
from emseg_core.grid.blocks import Block
from emseg_core.instances.block_segments import label_block, match_faces
from emseg_core.model.device import Device
from emseg_core.outcome import Outcome, Stopwatch
from emseg_core.specs.labelling import Labelling
from emseg_core.specs.numerics import Numerics
from emseg_core.store.files.lease import Token
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.outputs.scratch import Scratch, read_segment_ids

Stage = Literal["cut", "sew", "paint"]
"""Segment each block into fragments; match fragments across block faces; write their final ids."""


@dataclass(frozen=True, slots=True)
class LabelWork:
    """One stage of instance labelling."""

    name: Stage
    output: Place
    scratch: str
    """Folder of the intermediate files in the output."""
    token: Token
    """The right to write."""
    labelling: Labelling
    device: Device = "cpu"
    workers_per_gpu: int = 1

    @contextmanager
    def opened(
        self,
        turn: AbstractContextManager[object] | None = None,  # noqa: ARG002  no predictor here
    ) -> Iterator[tuple[Callable[[Block], Outcome], Numerics | None]]:
        """Open the output and the intermediate files.

        Parameters
        ----------
        turn
            Has no effect: there is no predictor.

        Yields
        ------
        process : callable
            Processes one block.
        numerics : None
            Results do not depend on the hardware.
        """
        output = open_output(self.output, self.token)
        scratch = Scratch(output.files, self.scratch)
        stage = {"cut": self._segmenter, "sew": self._matcher, "paint": self._relabeller}[self.name](output, scratch)
        yield lambda block: outcome_of(block, partial(stage, block)), None

    def _segmenter(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        """Return the function of stage ``cut``: segment a block into fragments."""
        fragments, whole = scratch.fragments(), output.region

        def process(block: Block, watch: Stopwatch) -> None:
            window = block.write.grow(self.labelling.margin).intersect(whole)
            with watch.phase("read"):
                if self.labelling.method == "components":
                    stored = output.read_labels(window)
                else:
                    stored = output.read_probabilities(window)[self.labelling.channel]
            with watch.phase("predict"):
                window, box = window.relative_to(whole.start), block.write.relative_to(whole.start)
                ids, segments = label_block(stored, window, box, whole.shape, self.labelling)
            with watch.phase("write"):
                fragments.write(box, ids)
                scratch.write_block_segments(block.index, segments)

        return process

    def _matcher(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        """Return the function of stage ``sew``: match the fragments of a block with those across its faces."""
        fragments, whole, offsets = scratch.fragments(), output.region, _offsets(scratch)
        grid = offsets.reshape(fragments.grid)

        def process(block: Block, watch: Stopwatch) -> None:
            with watch.phase("predict"):
                box = block.write.relative_to(whole.start)
                segments = scratch.read_block_segments(block.index)
                matches = match_faces(segments, box, whole.shape, self.labelling, partial(read_segment_ids, fragments, grid))
            with watch.phase("write"):
                scratch.write_face_matches(block.index, matches)

        return process

    def _relabeller(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        """Return the function of stage ``paint``: write the final ids of a block."""
        fragments, instances, whole = scratch.fragments(), scratch.instances(), output.region

        def process(block: Block, watch: Stopwatch) -> None:
            box = block.write.relative_to(whole.start)
            with watch.phase("read"):
                ids, numbers = fragments.read(box), scratch.read_map(block.index)
            with watch.phase("write"):
                instances.write(box, numbers[ids])

        return process


def _offsets(scratch: Scratch) -> NDArray[np.int64]:
    """Read the first id of each block."""
    found = scratch.read_shared("offsets")
    if found is None:
        raise BlockError(f"{scratch.place} has no id offsets: label it again", "store")
    return found
