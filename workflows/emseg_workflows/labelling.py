"""The work of `emseg label`, in three stages: what workers do to each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from emseg.block import outcome_of
from emseg.errors import BlockError
from emseg.grid.blocks import Block
from emseg.instances.piece import cut, sew
from emseg.model.device import Device
from emseg.outcome import Outcome, Stopwatch
from emseg.specs.labelling import Labelling
from emseg.specs.numerics import Numerics
from emseg.store.lease import Token
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Place
from emseg.store.scratch import Scratch, numbered

Stage = Literal["cut", "sew", "paint"]
"""Cut each block into segments; see which go on across its faces; store their final numbers."""


@dataclass(frozen=True, slots=True)
class LabelWork:
    """One stage of a labelling."""

    name: Stage
    output: Place
    scratch: str
    """Folder of what is made on the way, in the output."""
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
        """What does it to a block."""
        output = open_output(self.output, self.token)
        scratch = Scratch(output.files, self.scratch)
        stage = {"cut": self._cutting, "sew": self._sewing, "paint": self._painting}[self.name](output, scratch)
        yield lambda block: outcome_of(block, partial(stage, block)), None

    def _cutting(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        fragments, whole = scratch.fragments(), output.region

        def act(block: Block, watch: Stopwatch) -> None:
            window = block.write.grow(self.labelling.margin).intersect(whole)
            with watch.phase("read"):
                if self.labelling.method == "components":
                    stored = output.read_labels(window)
                else:
                    stored = output.read_probabilities(window)[self.labelling.channel]
            with watch.phase("predict"):
                window, box = window.relative_to(whole.start), block.write.relative_to(whole.start)
                ids, piece = cut(stored, window, box, whole.shape, self.labelling)
            with watch.phase("write"):
                fragments.write(box, ids)
                scratch.keep_piece(block.index, piece)

        return act

    def _sewing(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        fragments, whole, offsets = scratch.fragments(), output.region, _offsets(scratch)
        grid = offsets.reshape(fragments.grid)

        def act(block: Block, watch: Stopwatch) -> None:
            with watch.phase("predict"):
                box = block.write.relative_to(whole.start)
                piece = scratch.piece(block.index)
                seam = sew(piece, box, whole.shape, self.labelling, partial(numbered, fragments, grid))
            with watch.phase("write"):
                scratch.keep_seam(block.index, seam)

        return act

    def _painting(self, output: Output, scratch: Scratch) -> Callable[[Block, Stopwatch], None]:
        fragments, instances, whole = scratch.fragments(), scratch.instances(), output.region

        def act(block: Block, watch: Stopwatch) -> None:
            box = block.write.relative_to(whole.start)
            with watch.phase("read"):
                ids, numbers = fragments.read(box), scratch.map(block.index)
            with watch.phase("write"):
                instances.write(box, numbers[ids])

        return act


def _offsets(scratch: Scratch) -> NDArray[np.int64]:
    found = scratch.numbers("offsets")
    if found is None:
        raise BlockError(f"{scratch.place} has no offsets: label again", "store")
    return found
