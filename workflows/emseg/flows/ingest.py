"""`emseg ingest`: convert image stacks of other formats to a Zarr volume."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from emseg.flows.running.copying import Copier, CopyStage
from emseg.flows.running.limits import check_claims
from emseg.launch import check_limits, check_main
from emseg.placement import Placement, Where
from emseg.runs.dispatch import Policy
from emseg.runs.events import Observer
from emseg.runs.notices import log
from emseg.runs.stop import Stop
from emseg.tasks.ingesting import IngestWork
from emseg_core.box import Triple
from emseg_core.errors import OutputError, PlanError, VolumeError
from emseg_core.grid.blocks import Blocks
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.exports.new_volume import brick_layout, new_volume, slab_layout
from emseg_core.store.files.atomic_write import output_path
from emseg_core.store.stacks.array_stack import Array
from emseg_core.store.stacks.formats import open_stack
from emseg_core.store.stacks.stack import ChunkedStack, KnownStack, Stack, StatedVoxelSize
from emseg_core.store.zarrs.ome import LENGTH_UNITS

NOT_STATED = StatedVoxelSize((1.0, 1.0, 1.0), (None, None, None), "not stated by the source")


@dataclass(frozen=True, slots=True)
class Ingested:
    """A volume that was converted from a stack."""

    spec: VolumeSpec
    """Shape, data type, chunks and voxel size of the volume."""
    size_from: str
    """Where its voxel size comes from, in words."""
    missing: tuple[int, ...] = ()
    """Index z of each slice that was missing and is filled with 0."""


def ingest(
    source: str | Path | Array,
    volume_path: str | Path,
    *,
    dataset: str | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    unit: str = "nanometer",
    allow_missing: bool = False,
    overwrite: bool = False,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[Where],
) -> Ingested:
    """Convert a stack of slices to a Zarr volume, or resume an interrupted conversion.

    The volume appears when it is complete. A conversion that was killed or stopped resumes when it is run again, provided that
    its source has not changed. The volume has the same bytes whichever workers make it: each copies whole shards, from slices
    a slab and from chunked sources one shard at a time.

    Parameters
    ----------
    source
        A multi-page TIFF file, an MRC or HDF5 file, a folder of PNG or single-page TIFF files with numbers in their names, an
        N5 container or dataset, or a Neuroglancer precomputed volume; or a NumPy, Dask or Zarr array ``(z, y, x)`` or
        ``(y, x)``, which only this process can read.
    volume_path
        Where to create the volume, an OME-Zarr image.
    dataset
        Path of the dataset inside an HDF5 file or N5 container; None if there is only one.
    voxel_size
        Size (z, y, x) of a voxel in `unit`; None for the size that the source states, or 1 without a unit if it states none.
    unit
        Unit of length of `voxel_size`, spelled as in OME-Zarr.
    allow_missing
        Whether slices of a folder may be missing; they are filled with 0, and listed in the volume's attributes. Chunks of N5
        and precomputed may be missing as well, because their writers may leave out chunks of zeros; chunks of HDF5 too, but
        not all of them.
    overwrite
        Whether to replace a volume that was ingested before.
    policy, stop, on_event
        As for `emseg.segment`; the conversion ends when the first part fails.
    **where
        Workers that copy, and where: see `emseg.placement.Where`. By default this process copies up to 2 GiB, which takes
        seconds; more is copied by one worker per core, if there are parts and memory enough. Workers on other hosts must see
        the source and the volume under the same paths.

    Returns
    -------
    Ingested
        What the volume is, where its voxel size comes from, and which slices were missing.

    Raises
    ------
    VolumeError
        If the slices cannot be read, or do not make up one volume.
    OutputError
        If the volume cannot be written there, or another process is writing it.
    PlanError
        If there are no such workers, or they have too little memory.
    StoppedError
        If `stop` was asked for; finished parts are kept.
    UnfinishedError
        If workers or disks became unavailable before the end; finished parts are kept, and the next call resumes.
    OrphanError
        If another process has taken over because this one seemed dead.
    """
    notify, policy, stop = on_event or log, policy or Policy(), stop or Stop()
    placement = Placement(**where)
    check_main(placement)
    check_limits(placement)
    given = None if voxel_size is None else _given_size(voxel_size, unit)
    target = output_path(volume_path)
    with open_stack(source, dataset, allow_missing=allow_missing) as stack:
        size = given or stack.stated or NOT_STATED
        shard, chunk, part = _layout(stack)
        known = KnownStack(stack.shape, stack.dtype, stack.missing)
    spec = VolumeSpec(known.shape, known.dtype, chunk, 3, size.scale, size.translation, size.units)
    name = str(source) if isinstance(source, str | Path) else "the array"
    check_claims(spec, part, name, target, here=placement in (Placement(), Placement(workers=0)))
    if isinstance(source, str | Path):
        place: Path | Array = Path(source).absolute()
        _refuse_overlap(Path(source), target)
        state = _source_state(Path(source), dataset)
    else:
        place, state, placement = source, "", _in_this_process(placement)
    with new_volume(target, spec, shard, missing=known.missing, replace=overwrite, source=state) as volume:
        work = IngestWork(place, dataset, allow_missing, known, target, volume.token)
        parts = Blocks(spec.box, part)
        copier = Copier(target, placement, policy, stop, notify, volume.lease)
        failed = copier.run([CopyStage(work, work.name, parts, volume.slabs.done(parts), spec.itemsize)])
        if failed is not None:
            volume.token.check()
            volume.discard()
            cause = failed.cause or "no cause recorded"
            raise OutputError(cause) if failed.seconds.write else VolumeError(cause)
    return Ingested(spec, size.source, known.missing)


def _in_this_process(placement: Placement) -> Placement:
    """Return the placement for an array, which no other process can read."""
    if placement not in (Placement(), Placement(workers=0)):
        raise PlanError(
            "workers are given, but only this process can read an array: omit --workers, or give the path of a stack"
        )
    return Placement(workers=0)


def _source_state(source: Path, dataset: str | None) -> str:
    """Identify a source and its present state by name, size and time of its file, or of each file in its folder."""
    entries = sorted(source.iterdir()) if source.is_dir() else [source]
    facts = [(entry.name, found.st_size, found.st_mtime_ns) for entry in entries for found in [entry.stat()]]
    return json.dumps([str(source.absolute()), dataset, facts])


def _layout(stack: Stack) -> tuple[Triple, Triple, Triple]:
    """Return the shapes (z, y, x) of shards, of chunks, and of the part that is in memory at once."""
    if isinstance(stack, ChunkedStack):
        shard, chunk = brick_layout(stack.shape[0], stack.dtype)
        return shard, chunk, shard
    shard, chunk = slab_layout(stack.shape, stack.dtype)
    return shard, chunk, (shard[0], *stack.shape[1:])


def _given_size(voxel_size: tuple[float, float, float], unit: str) -> StatedVoxelSize:
    if len(voxel_size) != 3 or not all(math.isfinite(length) and length > 0 for length in voxel_size):
        raise VolumeError(f"the voxel size is {voxel_size}, but must be three positive numbers (z, y, x): correct --voxel-size")
    if unit not in LENGTH_UNITS:
        raise VolumeError(f"the unit is {unit!r}, but OME-Zarr spells units in full: use one of {', '.join(LENGTH_UNITS)}")
    z, y, x = map(float, voxel_size)
    return StatedVoxelSize((z, y, x), (unit, unit, unit), "the given voxel size")


def _refuse_overlap(source: Path, target: Path) -> None:
    """Refuse a volume inside its source, where it would mix with the slices, and a source that the volume would overwrite."""
    here, there = source.resolve(), target.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise OutputError(
            f"the volume {target} and its source {source} lie inside one another: choose another place for the volume"
        )
