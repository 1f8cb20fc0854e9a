"""`emseg evaluate --instances`: instance labels against true ones, a few slices at a time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emseg.box import Box
from emseg.errors import InputError
from emseg.metrics.instances import Blemish, Comparison, Contingency
from emseg.printable import printable_lines
from emseg.store.instances import open_instances
from emseg.store.output import open_output
from emseg.store.place import Address, Place, place_of
from emseg.store.source import open_slices
from emseg.truth import whole_numbers

WORST = 10
"""Splits and merges that are named."""


@dataclass(frozen=True, slots=True)
class Matching:
    """How well instance labels match the truth."""

    instances: Place
    truth: Place
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        found = {**asdict(self.comparison), "cremi": self.comparison.cremi}
        return {"instances": str(self.instances), "truth": str(self.truth), **found}

    def __str__(self) -> str:
        found, scores = self.comparison, self.comparison.scores
        lines = [
            f"instances  {self.instances}: {found.proposed} segments",
            f"truth      {self.truth}: {found.true} segments",
            f"adapted Rand error        {scores.adapted_rand_error:.4f}",
            f"variation of information  {scores.variation:.4f} bits (split {scores.variation_split:.4f}, "
            f"merge {scores.variation_merge:.4f})",
            f"CREMI score               {found.cremi:.4f}",
        ]
        return printable_lines([*lines, *_named("split", "true", found.splits), *_named("merge", "stored", found.merges)])


def compare_instances(
    output: str | Place, truth: str | Path | Address, *, name: str = "instances", slices: tuple[int, int] | None = None
) -> Matching:
    """How well the instance labels of an output match true ones.

    Parameters
    ----------
    output
        What `emseg label` has labelled.
    truth
        A TIFF stack or Zarr volume of instance ids, 0 for not labelled, for the output or the whole volume.
    name
        Of the image of instance labels.
    slices
        First slice of the output, counted from 0, and the one after the last.

    Raises
    ------
    InputError
        If there are no instance labels, or the truth does not fit.
    """
    stored = open_output(output)
    found, region = open_instances(stored, name), stored.region
    first, stop = slices or (0, region.shape[0])
    if not 0 <= first < stop <= region.shape[0]:
        raise InputError(f"{stored.path} has slices 0 to {region.shape[0] - 1}, not {first}:{stop}: give others with --slices")
    table = Contingency()
    with ExitStack() as stack:
        source = stack.enter_context(open_slices(truth))
        part = Box.of_shape(source.shape)
        if source.shape != region.shape:
            if not part.contains(region):
                raise InputError(
                    f"{truth} has shape {source.shape}, but {stored.path} covers {region}: give the truth for that, or for all"
                )
            part = region
        _, rows, columns = part.slices()
        for z in range(first, stop, found.chunk[0]):
            end = min(z + found.chunk[0], stop)
            values = whole_numbers(source.read(part.start[0] + z, part.start[0] + end))[:, rows, columns]
            table.add(found.read(Box((z, 0, 0), (end, *region.shape[1:]))), values)
    try:
        return Matching(stored.path / f"labels/{name}", place_of(truth), table.compared(WORST))
    except ValueError as error:
        raise InputError(f"{truth}: {error}") from error


def _named(what: str, kind: str, worst: tuple[Blemish, ...]) -> list[str]:
    """A line for each of the worst."""
    return [
        f"{what:<10} {kind} segment {one.id}: {one.outside} of {one.voxels} voxels lie outside its largest of {one.parts} parts"
        for one in worst
    ]
