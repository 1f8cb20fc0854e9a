"""`emseg export`: stream an image of an output to a TIFF stack, OME-Zarr or Neuroglancer precomputed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import recipe_of
from emseg.flows.running.copying import Copier, CopyStage
from emseg.launch import check_limits, check_main
from emseg.placement import Placement, Where
from emseg.runs.dispatch import Policy
from emseg.runs.events import Observer
from emseg.runs.notices import log
from emseg.runs.stop import Stop, StoppedError
from emseg.tasks.exporting import ExportWork
from emseg_core.errors import BlockError, InputError, OutputError, PlanError
from emseg_core.store.exports.image import ExportImage, LevelCopy, open_image
from emseg_core.store.exports.ome_export import ome_export
from emseg_core.store.exports.precomputed_export import precomputed_export
from emseg_core.store.exports.tiff_export import write_tiff
from emseg_core.store.files.atomic_write import output_path
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.instances import instance_levels
from emseg_core.store.outputs.level import REPAIR_HINT
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output

FileFormat = Literal["tiff", "ome-zarr-0.4", "ome-zarr-0.5", "precomputed"]
FORMAT_BY_SUFFIX: dict[str, FileFormat] = {".tif": "tiff", ".tiff": "tiff", ".zarr": "ome-zarr-0.5"}


def export(
    output: str | Place,
    target: str | Path,
    *,
    instances: str | None = None,
    probability: str | None = None,
    file_format: FileFormat | None = None,
    allow_incomplete: bool = False,
    overwrite: bool = False,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **where: Unpack[Where],
) -> Path:
    """Export the classes of an output, instance labels or a probability; voxel size and units are kept.

    Instance labels are stored in the smallest of ``uint8``, ``uint16``, ``uint32`` and ``uint64`` that holds the largest id;
    precomputed uses only the last two. All formats except TIFF keep the position of the first voxel, and the coarser levels
    of an output that has them.

    Parameters
    ----------
    output
        The output of a run.
    target
        The file or folder to create.
    instances
        Name of the instance labels to export, as made by `label`.
    probability
        Class whose probability to export, 0 to 254 for 0 to 1.
    file_format
        Format to write; None to choose by the target's suffix: ``.tif`` for TIFF, ``.zarr`` for OME-Zarr 0.5.
    allow_incomplete
        Export an unfinished output; voxels that are *not computed* are 255, or 0 in instance labels.
    overwrite
        Replace an existing export.
    policy, stop, on_event
        As for `emseg.segment`; the export ends when the first part fails.
    tell
        Called with a line of text for each property that the format cannot store.
    **where
        Workers that copy, and where: see `emseg.placement.Where`. By default this process copies up to 2 GiB; larger images are
        copied by one worker per core, if there are parts and memory enough. Each worker copies whole files, and workers on
        other hosts must see the output and the target under the same paths. A TIFF is a single file whose slices are
        compressed one after another: this process always writes it.

    Returns
    -------
    Path
        The file or folder that was written.

    Raises
    ------
    InputError
        If the output has no such image or is not complete, or the target cannot be written.
    BlockError
        If the output cannot be read.
    StoppedError
        If `stop` was asked for; nothing is kept.
    UnfinishedError
        If workers or disks became unavailable before the end; nothing is kept.
    """
    placement = Placement(**where)
    check_main(placement)
    check_limits(placement)
    stored, kind = open_output(output), file_format or _format_of(Path(target))
    _refuse_inside(stored.path, output_path(target))
    image = open_image(stored, recipe_of(stored).volume, instances, probability)
    if not allow_incomplete:
        _refuse_incomplete(stored, image, coarser=kind != "tiff")
    if kind == "tiff":
        if placement not in (Placement(), Placement(workers=0)):
            raise PlanError(
                f"workers are given, but the TIFF {target} is a single file that one process writes: omit --workers"
            )
        return _write_tiff(target, image, overwrite, stop or Stop())
    made = output_path(target)
    copier = Copier(made, placement, policy or Policy(), stop or Stop(), on_event or log)
    if kind == "precomputed":
        opened = precomputed_export(target, image, tell, overwrite=overwrite)
    else:
        opened = ome_export(target, image, "0.4" if kind == "ome-zarr-0.4" else "0.5", overwrite=overwrite)
    with opened as levels:
        failed = copier.run([_copy_stage(number, copy, made) for number, copy in enumerate(levels)])
        if failed is not None:
            cause = failed.cause or "no cause recorded"
            raise OutputError(cause) if failed.seconds.write else BlockError(cause)
    return made


def _copy_stage(number: int, copy: LevelCopy, target: Path) -> CopyStage:
    """Return the stage that copies a level from its first part on."""
    stored = copy.level.array
    itemsize = math.prod(stored.channels) * stored.array.dtype.itemsize + np.dtype(copy.dtype).itemsize
    return CopyStage(ExportWork(copy, target), f"level {number}", copy.blocks, np.zeros(len(copy.blocks), bool), itemsize)


def _write_tiff(target: str | Path, image: ExportImage, overwrite: bool, stop: Stop) -> Path:
    if image.dtype == "uint64":
        raise OutputError(
            f"{image.name} has more segments than the 32 bits of TIFF readers hold: export OME-Zarr with --format"
        )
    shape, volume = image.region.shape, image.volume
    return write_tiff(target, _until(stop, image.slices()), shape, image.dtype, volume, image.name, overwrite=overwrite)


def _until(stop: Stop, slices: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield the slices until a stop is asked for."""
    for plane in slices:
        if stop.asked:
            raise StoppedError(stop.number)
        yield plane


def _format_of(target: Path) -> FileFormat:
    """Return the format that belongs to the suffix of a name."""
    if target.suffix.lower() not in FORMAT_BY_SUFFIX:
        raise InputError(f"the name of {target} implies no format: end it with .tif or .zarr, or choose one with --format")
    return FORMAT_BY_SUFFIX[target.suffix.lower()]


def _refuse_inside(output: Place, target: Path) -> None:
    if isinstance(output, Path) and target.resolve().is_relative_to(output.resolve()):
        raise OutputError(f"{target} lies inside the output {output}: choose a target outside it")


def _refuse_incomplete(stored: Output, image: ExportImage, *, coarser: bool) -> None:
    """Refuse an output that lacks blocks of its finest level or, if these are exported, write units of coarser ones."""
    remedy = "finish it with the same `emseg run`, or export what is done with --allow-incomplete"
    done = stored.done_units()
    if not done.all():
        raise OutputError(f"{stored.path} lacks {int((~done).sum())} of {done.size} blocks: {remedy}")
    if image.kind == "instances":
        for number, found in enumerate(instance_levels(stored, image.name)[: None if coarser else 1]):
            if missing := int((~found.done()).sum()):
                where = stored.path / f"labels/{image.name}/{number}"
                raise OutputError(f"{where} lacks {missing} of {len(found.blocks)} parts: {REPAIR_HINT}")
        return
    for number, level in enumerate(image.levels[1:] if coarser else (), 1):
        if missing := level.missing:
            raise OutputError(f"level {number} of {stored.path} lacks {missing} of {len(level.blocks)} parts: {remedy}")
