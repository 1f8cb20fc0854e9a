"""`emseg export`: what an output holds as a TIFF stack, as OME-Zarr or as Neuroglancer precomputed, streaming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.errors import BlockError, InputError, OutputError, PlanError
from emseg.store.exported import ExportImage, LevelCopy, image_of
from emseg.store.instances import instance_levels
from emseg.store.ledger import Output
from emseg.store.level import MEND
from emseg.store.ome_export import ome_export
from emseg.store.output import open_output
from emseg.store.place import Place
from emseg.store.precomputed_export import precomputed_export
from emseg.store.staging import output_path
from emseg.store.tiff_export import write_tiff
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import Event, Observer
from emseg_workflows.exporting import ExportWork
from emseg_workflows.flows.copying import Copying, Parts
from emseg_workflows.flows.record import recipe_of
from emseg_workflows.launch import check_main
from emseg_workflows.placement import Placement, Where
from emseg_workflows.stop import Stop, StoppedError

FileFormat = Literal["tiff", "ome-zarr-0.4", "ome-zarr-0.5", "precomputed"]
BY_SUFFIX: dict[str, FileFormat] = {".tif": "tiff", ".tiff": "tiff", ".zarr": "ome-zarr-0.5"}


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
    """What was made of an output's classes, or of something else in it; voxel size and units are kept.

    Instance labels are stored in the smallest of ``uint8``, ``uint16``, ``uint32`` and ``uint64`` that holds their number, in
    precomputed in one of the last two. All formats but TIFF keep the place of the first voxel, and the coarser levels of an
    output that has them.

    Parameters
    ----------
    output
        What a run has written.
    target
        The file or folder to make.
    instances
        Name of instance labels to take, as `label` has made them.
    probability
        Class whose probability to take, 0 to 254 for 0 to 1.
    file_format
        What to make; None for what the end of the target's name says: ``.tif`` a TIFF, ``.zarr`` OME-Zarr 0.5.
    allow_incomplete
        Take what there is; 255, or for instances 0, is *not computed*.
    overwrite
        Replace an export that is already there.
    policy, stop, on_event
        As for `emseg_workflows.segment`; the first part that fails ends it.
    tell
        Called with a line for each thing that the format cannot say.
    **where
        Who copies, and where: see `emseg_workflows.placement.Where`. By default this process where there is no more than 2 GiB
        to be copied, else a worker per core, as far as there are parts and memory; each copies whole files, and those on other
        hosts must see the output and the target under the same paths. A TIFF is one file, whose slices are compressed one
        after another: it is always written by this process.

    Raises
    ------
    InputError
        If the output has no such thing or is not complete, or the target cannot be written.
    BlockError
        If the output cannot be read.
    UnfinishedError
        If workers or disks went away before the end; nothing stays.
    """
    placement = Placement(**where)
    check_main(placement)
    stored, kind = open_output(output), file_format or _by_name(Path(target))
    _refuse_inside(stored.path, output_path(target))
    image = image_of(stored, recipe_of(stored).volume, instances, probability)
    if not allow_incomplete:
        _refuse_incomplete(stored, image, coarser=kind != "tiff")
    if kind == "tiff":
        if placement not in (Placement(), Placement(workers=0)):
            raise PlanError(f"the TIFF {target} is one file, which one process writes: leave out the workers")
        return _tiff(target, image, overwrite, stop or Stop())
    made = output_path(target)
    copying = Copying(made, placement, policy or Policy(), stop or Stop(), on_event or _ignore)
    if kind == "precomputed":
        opened = precomputed_export(target, image, tell, overwrite=overwrite)
    else:
        opened = ome_export(target, image, "0.4" if kind == "ome-zarr-0.4" else "0.5", overwrite=overwrite)
    with opened as levels:
        failed = copying.run([_parts(number, copy, made) for number, copy in enumerate(levels)])
        if failed is not None:
            cause = failed.cause or "no reason given"
            raise OutputError(cause) if failed.seconds.write else BlockError(cause)
    return made


def _parts(number: int, copy: LevelCopy, target: Path) -> Parts:
    """A level, none of whose parts is copied."""
    stored = copy.level.array
    itemsize = math.prod(stored.channels) * stored.array.dtype.itemsize + np.dtype(copy.dtype).itemsize
    return Parts(ExportWork(copy, target), f"level {number}", copy.blocks, np.zeros(len(copy.blocks), bool), itemsize)


def _tiff(target: str | Path, image: ExportImage, overwrite: bool, stop: Stop) -> Path:
    if image.dtype == "uint64":
        raise OutputError(f"{image.name} are more segments than TIFF readers count: export OME-Zarr")
    shape, volume = image.region.shape, image.volume
    return write_tiff(target, _until(stop, image.slices()), shape, image.dtype, volume, image.name, overwrite=overwrite)


def _until(stop: Stop, slices: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The slices, as long as nobody wants to stop."""
    for plane in slices:
        if stop.asked:
            raise StoppedError(stop.number)
        yield plane


def _by_name(target: Path) -> FileFormat:
    """The format that the end of a name says."""
    if target.suffix.lower() not in BY_SUFFIX:
        raise InputError(f"{target} does not say its format: end the name with .tif or .zarr, or choose with --format")
    return BY_SUFFIX[target.suffix.lower()]


def _refuse_inside(output: Place, target: Path) -> None:
    if isinstance(output, Path) and target.resolve().is_relative_to(output.resolve()):
        raise OutputError(f"{target} lies in the output {output}: choose another place")


def _refuse_incomplete(stored: Output, image: ExportImage, *, coarser: bool) -> None:
    """Refuses an output that lacks blocks of its finest level or, if these are exported, write units of coarser ones."""
    remedy = "finish it with the same `emseg run`, or take what there is with --allow-incomplete"
    done = stored.done_units()
    if not done.all():
        raise OutputError(f"{stored.path} lacks {int((~done).sum())} of {done.size} blocks: {remedy}")
    if image.kind == "instances":
        for number, found in enumerate(instance_levels(stored, image.name)[: None if coarser else 1]):
            if missing := int((~found.done()).sum()):
                where = stored.path / f"labels/{image.name}/{number}"
                raise OutputError(f"{where} lacks {missing} of {len(found.blocks)} parts: {MEND}")
        return
    for number, level in enumerate(image.levels[1:] if coarser else (), 1):
        if missing := level.missing:
            raise OutputError(f"level {number} of {stored.path} lacks {missing} of {len(level.blocks)} parts: {remedy}")


def _ignore(event: Event) -> None:
    """Nobody watches."""
