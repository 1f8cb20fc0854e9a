"""`emseg export`: what an output holds as a TIFF stack, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box
from emseg.errors import InputError, OutputError
from emseg.store.instances import open_instances, stored_instances
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.tiff_export import write_tiff
from emseg_workflows.flows.record import recipe_of

Read = Callable[[Box], NDArray[Any]]


def export(
    output: str | Path,
    tiff: str | Path,
    *,
    instances: str | None = None,
    probability: str | None = None,
    allow_incomplete: bool = False,
    overwrite: bool = False,
) -> Path:
    """The TIFF stack made of an output's classes, or of something else in it; voxel size and units are kept.

    Instance labels are stored in the smallest of ``uint8``, ``uint16`` and ``uint32`` that holds their number.

    Parameters
    ----------
    output
        What a run has written.
    tiff
        The file to make.
    instances
        Name of instance labels to take, as `label` has made them.
    probability
        Class whose probability to take, 0 to 254 for 0 to 1.
    allow_incomplete
        Take what there is; 255, or for instances 0, is *not computed*.
    overwrite
        Replace a file that is already there.

    Raises
    ------
    InputError
        If the output has no such thing or is not complete, or the file cannot be written.
    """
    stored = open_output(output)
    if instances is not None and probability is not None:
        raise InputError(f"either instances {instances!r} or the probability of {probability!r} are exported: ask for one")
    read, dtype, name = _source(stored, instances, probability)
    done = stored.done_units()
    if not done.all() and not allow_incomplete:
        raise OutputError(
            f"{stored.path} lacks {int((~done).sum())} of {done.size} blocks: finish it with the same `emseg run`, "
            "or take what there is with --allow-incomplete"
        )
    volume, shape = recipe_of(stored).volume, stored.region.shape
    return write_tiff(tiff, _slices(stored, read), shape, dtype, volume, name, overwrite=overwrite)


def _source(stored: Output, instances: str | None, probability: str | None) -> tuple[Read, str, str]:
    """What reads a box of what was asked for, its type, and what it is called."""
    if instances is not None:
        labels = open_instances(stored.path, instances)
        count = int((stored_instances(stored.path, instances) or {})["segments"])
        fitting = [kind for kind in ("uint8", "uint16", "uint32") if count <= np.iinfo(kind).max]
        if not fitting:
            raise OutputError(f"{instances} of {stored.path} are {count} segments, more than TIFF readers count: use the Zarr")
        return lambda box: labels.read(box.relative_to(stored.region.start)), fitting[0], instances
    if probability is None:
        return stored.read_labels, "uint8", "classes"
    if probability not in stored.classes:
        raise InputError(f"{stored.path} has no class {probability!r}, but {', '.join(stored.classes)}: choose one of these")
    if not stored.keeps_probabilities:
        raise OutputError(f"{stored.path} keeps labels alone: run again with --probabilities --overwrite")
    channel = stored.classes.index(probability)
    return lambda box: stored.read_probabilities(box)[channel], "uint8", probability


def _slices(stored: Output, read: Read) -> Iterator[NDArray[Any]]:
    """All slices ``(y, x)``; those of one layer of chunks are in memory together."""
    whole = stored.region
    for first in range(whole.start[0], whole.stop[0], stored.chunk[0]):
        stop = min(first + stored.chunk[0], whole.stop[0])
        yield from read(Box((first, *whole.start[1:]), (stop, *whole.stop[1:])))
