"""`emseg evaluate --instances`: compare instance labels with true ones, a few slices at a time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emseg.runs.tally import quantity
from emseg_core.box import Box
from emseg_core.errors import InputError
from emseg_core.metrics.instances import Comparison, Contingency, SegmentError
from emseg_core.printable import printable_lines
from emseg_core.store.files.place import Address, Place, parse_place
from emseg_core.store.outputs.instances import open_instances
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.stacks.source import open_slices
from emseg_core.truth import whole_numbers

MAX_LISTED = 10
"""Largest number of splits and of merges that are listed."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Agreement of instance labels with the truth."""

    instances: Place
    truth: Place
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Returns
        -------
        dict
            JSON values.
        """
        found = {**asdict(self.comparison), "cremi": self.comparison.cremi}
        return {"instances": str(self.instances), "truth": str(self.truth), **found}

    def __str__(self) -> str:
        found, scores = self.comparison, self.comparison.scores
        lines = [
            f"instances  {self.instances}: {quantity(found.proposed, 'segment')}",
            f"truth      {self.truth}: {quantity(found.true, 'segment')}",
            f"adapted Rand error        {scores.adapted_rand_error:.4f}",
            f"variation of information  {scores.variation:.4f} bits (split {scores.variation_split:.4f}, "
            f"merge {scores.variation_merge:.4f})",
            f"CREMI score               {found.cremi:.4f}",
        ]
        lines += [f"split      truth {one.id}: broken into {_pieces(one)}" for one in found.splits]
        lines += [f"merge      segment {one.id}: joins {_pieces(one)}" for one in found.merges]
        return printable_lines(lines)


def evaluate_instances(
    output: str | Place, truth: str | Path | Address, *, name: str = "instances", slices: tuple[int, int] | None = None
) -> Matching:
    """Compare the instance labels of an output with true ones.

    Parameters
    ----------
    output
        Output with instance labels made by `emseg label`.
    truth
        TIFF stack or Zarr volume of instance ids, for the region of the output or the whole volume; 0 is not labelled.
    name
        Name of the image of instance labels.
    slices
        First slice of the output, counted from 0, and the one after the last; None for all.

    Returns
    -------
    Matching
        Scores, and the worst splits and merges.

    Raises
    ------
    InputError
        If there are no instance labels, or the truth has another shape or no segment.
    """
    stored = open_output(output)
    found, region = open_instances(stored, name), stored.region
    first, stop = slices or (0, region.shape[0])
    if not 0 <= first < stop <= region.shape[0]:
        raise InputError(
            f"{stored.path} has slices 0 to {region.shape[0] - 1}, not {first}:{stop}: choose from them with --slices"
        )
    table = Contingency()
    with ExitStack() as stack:
        source = stack.enter_context(open_slices(truth))
        part = Box.of_shape(source.shape)
        if source.shape != region.shape:
            if not part.contains(region):
                raise InputError(
                    f"{truth} has shape {source.shape}, but {stored.path} covers {region}: give the truth for that region or "
                    "the whole volume"
                )
            part = region
        _, rows, columns = part.slices()
        for z in range(first, stop, found.chunk[0]):
            end = min(z + found.chunk[0], stop)
            values = whole_numbers(source.read(part.start[0] + z, part.start[0] + end))[:, rows, columns]
            table.add(found.read(Box((z, 0, 0), (end, *region.shape[1:]))), values)
    try:
        return Matching(stored.path / f"labels/{name}", parse_place(truth), table.compared(MAX_LISTED))
    except ValueError as error:
        raise InputError(f"{truth}: {error}") from error


def _pieces(segment: SegmentError) -> str:
    """Describe the pieces of a segment."""
    return f"{quantity(segment.parts, 'piece')}, the largest holds {1 - segment.outside / segment.voxels:.0%} of it"
