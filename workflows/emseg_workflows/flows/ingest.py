"""Making a volume of slices in other formats: `emseg ingest`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from emseg.box import Triple
from emseg.errors import OutputError, PlanError, VolumeError
from emseg.grid.blocks import Blocks
from emseg.specs.volume import VolumeSpec
from emseg.store.array_stack import Array
from emseg.store.formats import open_stack
from emseg.store.new_volume import brick_layout, new_volume, slab_layout
from emseg.store.ome import LENGTH_UNITS
from emseg.store.stack import ChunkedStack, Known, Stack, Stated
from emseg.store.staging import output_path
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import Event, Observer
from emseg_workflows.flows.copying import Copying, Parts
from emseg_workflows.flows.limits import check_claims
from emseg_workflows.ingesting import IngestWork
from emseg_workflows.launch import check_main
from emseg_workflows.placement import Placement, Where
from emseg_workflows.stop import Stop

NOT_STATED = Stated((1.0, 1.0, 1.0), (None, None, None), "nowhere: it is not stated")


@dataclass(frozen=True, slots=True)
class Ingested:
    """A volume that was made of slices."""

    spec: VolumeSpec
    """What it is."""
    size_from: str
    """Where its voxel size comes from, in words."""
    missing: tuple[int, ...] = ()
    """z of each slice that was missing, and is 0."""


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
    """The volume made of a stack of slices; it is there in whole, or not at all.

    One that was killed or stopped goes on where it was when it is asked for again, if its source is as it was. The volume has
    the same bytes for any workers: each copies whole shards, a slab of slices or, of what is stored in chunks, one shard.

    Parameters
    ----------
    source
        A TIFF file of many pages, an MRC or HDF5 file, a folder of PNG or one-page TIFF files, numbered in their names, an N5
        container or dataset, or a Neuroglancer precomputed volume; or an array ``(z, y, x)`` or ``(y, x)`` of NumPy, Dask or
        Zarr, which this process reads by itself.
    volume_path
        Where to make the volume, an OME-Zarr image.
    dataset
        Path of the dataset in an HDF5 file or an N5 container; None if there is only one.
    voxel_size
        Size (z, y, x) of a voxel in `unit`; None for what the source states, else 1 with no unit.
    unit
        Unit of length of `voxel_size`, as OME-Zarr spells it.
    allow_missing
        Whether slices of a folder may be missing; they are 0, and listed in the volume's attributes. Chunks of N5 and
        precomputed may be missing, too, as their writers may leave out what is 0; of HDF5, fewer than there are.
    overwrite
        Whether to replace a volume that was ingested before.
    policy, stop, on_event
        As for `emseg_workflows.segment`; the first part that fails ends it.
    **where
        Who copies, and where: see `emseg_workflows.placement.Where`. By default this process where no more than 2 GiB are left
        to be copied, which takes seconds; else a worker per core, as far as there are parts and memory. Workers on other
        hosts must see the source and the volume under the same paths.

    Raises
    ------
    VolumeError
        If the slices cannot be read, or are not one volume.
    OutputError
        If the volume cannot be written there, or another process is making it.
    PlanError
        If there are no such workers, or they have too little memory.
    UnfinishedError
        If workers or disks went away before the end: what is stored stays for the next try.
    OrphanError
        If another process has taken over, as this one was taken for dead.
    """
    notify, policy, stop = on_event or _ignore, policy or Policy(), stop or Stop()
    placement = Placement(**where)
    check_main(placement)
    given = None if voxel_size is None else _given(voxel_size, unit)
    target = output_path(volume_path)
    with open_stack(source, dataset, allow_missing=allow_missing) as stack:
        size = given or stack.stated or NOT_STATED
        shard, chunk, part = _layout(stack)
        known = Known(stack.shape, stack.dtype, stack.missing)
    spec = VolumeSpec(known.shape, known.dtype, chunk, 3, size.scale, size.translation, size.units)
    name = str(source) if isinstance(source, str | Path) else "the array"
    check_claims(spec, part, name, target, here=placement in (Placement(), Placement(workers=0)))
    if isinstance(source, str | Path):
        place: Path | Array = Path(source).absolute()
        _refuse_overlap(Path(source), target)
        state = _state_of(Path(source), dataset)
    else:
        place, state, placement = source, "", _in_this_process(placement)
    with new_volume(target, spec, shard, missing=known.missing, replace=overwrite, source=state) as volume:
        work = IngestWork(place, dataset, allow_missing, known, target, volume.token)
        parts = Blocks(spec.box, part)
        copying = Copying(target, placement, policy, stop, notify, volume.lease)
        failed = copying.run([Parts(work, work.name, parts, volume.slabs.done(parts), spec.itemsize)])
        if failed is not None:
            volume.token.check()
            volume.discard()
            cause = failed.cause or "no reason given"
            raise OutputError(cause) if failed.seconds.write else VolumeError(cause)
    return Ingested(spec, size.source, known.missing)


def _in_this_process(placement: Placement) -> Placement:
    """The placement for an array, which no other process can see."""
    if placement not in (Placement(), Placement(workers=0)):
        raise PlanError("an array is read by this process alone: leave out the workers, or name the path of a stack")
    return Placement(workers=0)


def _state_of(source: Path, dataset: str | None) -> str:
    """What tells a source from others, and from what it was: name, size and time of its file, or of what is in its folder."""
    entries = sorted(source.iterdir()) if source.is_dir() else [source]
    facts = [(entry.name, found.st_size, found.st_mtime_ns) for entry in entries for found in [entry.stat()]]
    return json.dumps([str(source.absolute()), dataset, facts])


def _layout(stack: Stack) -> tuple[Triple, Triple, Triple]:
    """Shapes (z, y, x) of shards, of chunks, and of what is in memory at once."""
    if isinstance(stack, ChunkedStack):
        shard, chunk = brick_layout(stack.shape[0], stack.dtype)
        return shard, chunk, shard
    shard, chunk = slab_layout(stack.shape, stack.dtype)
    return shard, chunk, (shard[0], *stack.shape[1:])


def _given(voxel_size: tuple[float, float, float], unit: str) -> Stated:
    if len(voxel_size) != 3 or not all(math.isfinite(length) and length > 0 for length in voxel_size):
        raise VolumeError(f"the voxel size is {voxel_size}, but must be three positive numbers (z, y, x): correct it")
    if unit not in LENGTH_UNITS:
        raise VolumeError(f"the unit is {unit!r}, but OME-Zarr writes it in full: one of {', '.join(LENGTH_UNITS)}")
    z, y, x = map(float, voxel_size)
    return Stated((z, y, x), (unit, unit, unit), "what was given")


def _refuse_overlap(source: Path, target: Path) -> None:
    """A volume inside its source would be mixed with the slices; a source inside the volume would be overwritten."""
    here, there = source.resolve(), target.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise OutputError(
            f"the volume {target} and its source {source} lie in one another: choose another place for the volume"
        )


def _ignore(event: Event) -> None:
    """Nobody watches."""
