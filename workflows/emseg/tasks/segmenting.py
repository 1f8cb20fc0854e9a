"""Work of `emseg run`: read from Zarr, predict, write to Zarr. The one place that chooses the implementations."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from emseg.tasks.port import Process, Turn
from emseg.tasks.trial import numerics_of, take_predictor
from emseg_core.block import BlockContext, segment_block
from emseg_core.errors import ModelError, NumericsError
from emseg_core.grid.blocks import Block
from emseg_core.grid.reading import CACHE_BYTES
from emseg_core.grid.symmetry import SymmetricPredictor
from emseg_core.model.device import Device
from emseg_core.model.model_place import ModelPlace, load
from emseg_core.outcome import Outcome
from emseg_core.ports import Predictor
from emseg_core.recipe import Recipe
from emseg_core.specs.numerics import Numerics
from emseg_core.store.files.lease import Token
from emseg_core.store.files.place import Place

MALLOPT_BYTES = {-1: 2**24, -3: 2**20}
"""Parameters of glibc, in bytes: free memory at the heap's end to return to the kernel; buffers that get pages of their own."""


@dataclass(frozen=True, slots=True)
class SegmentWork:
    """Segments blocks."""

    recipe: Recipe
    volume: Place
    model: ModelPlace
    output: Place
    token: Token
    """The right to write."""
    mixed_hardware: bool = False
    """Whether workers may compute with other numerics than the recipe's."""
    device: Device = "cpu"
    """Device that predictors compute on."""
    workers_per_gpu: int = 1
    """Maximum number of workers that may share a GPU."""
    name = "segment"

    @contextmanager
    def opened(self, turn: Turn | None = None) -> Iterator[tuple[Process, Numerics]]:
        """Load the model and open the arrays.

        Parameters
        ----------
        turn
            Held while the network runs; None if there is only one block at a time.

        Yields
        ------
        process : callable
            Segments one block.
        numerics : Numerics
            How this process computes.

        Raises
        ------
        ModelError
            If the model file is not the one that the run was planned with.
        NumericsError
            If this process computes other bytes than the run, and that is not allowed.
        DeviceError
            If this process cannot compute on the run's device.
        """
        from emseg_core.store.outputs.lifecycle import open_output
        from emseg_core.store.volumes.volume import open_volume_patiently

        recipe = self.recipe
        model = load(self.model, recipe.plan.model)
        if model.digest != recipe.model_digest:
            raise ModelError(
                f"the model {self.model} has the digest {model.digest[:12]}, but the run started with "
                f"{recipe.model_digest[:12]}: restore the original model, or start over with --overwrite"
            )
        expected = recipe.numerics
        predictor = take_predictor(model, expected.library, expected.precision, expected.threads, self.device)
        numerics = numerics_of(model, predictor, recipe.plan.tile, expected.threads, expected.precision, self.device)
        if numerics != recipe.numerics and not self.mixed_hardware:
            raise NumericsError(
                f"the run computes with {recipe.numerics}, but this worker with {numerics}: use the same hardware and "
                "versions, or allow results that differ in the last bits with --mixed-hardware"
            )
        output = open_output(self.output, self.token)
        volume = open_volume_patiently(self.volume, CACHE_BYTES, recipe.volume.selection)
        context = BlockContext(recipe, volume, with_augmentation(predictor, recipe), output, turn or nullcontext())
        corner = output.region.start

        def segment(block: Block) -> Outcome:
            outcome = segment_block(context, block)
            return replace(outcome, sent=output.levels[0].take_sent(block.write.relative_to(corner)))

        yield segment, numerics


def keep_small_buffers() -> None:
    """Make glibc reuse the memory of one chunk for the next.

    Dask sets the variable ``MALLOC_TRIM_THRESHOLD_`` for its workers. With it, glibc gets each buffer of 128 KiB from the
    kernel, page by page, and returns it at once: that adds half of the CPU time that reading, stitching and writing take.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for parameter, size in MALLOPT_BYTES.items():
        mallopt(parameter, size)


def with_augmentation(predictor: Predictor, recipe: Recipe) -> Predictor:
    """Add the run's test-time augmentation to the predictor of its network.

    Numerics and their canary are those of the network alone: augmentation adds the same NumPy arithmetic on each of its
    tiles, as any run does for probabilities.

    Parameters
    ----------
    predictor
        Predictor of the network alone.
    recipe
        Recipe of the run.

    Returns
    -------
    Predictor
        The same predictor if the run uses no augmentation.
    """
    return SymmetricPredictor(predictor, recipe.stored_heads) if recipe.tta else predictor
