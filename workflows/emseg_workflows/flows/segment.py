"""`emseg run`: a volume and a model in, a label volume out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.grid.order import strands_of
from emseg.model.device import Device
from emseg.normalise import Scope
from emseg.recipe import Recipe
from emseg.specs.numerics import Backend, Precision
from emseg.specs.volume import Part
from emseg.store.array_stack import Array
from emseg.store.lease import Lease
from emseg.store.ledger import Output
from emseg.store.level import remove_unfounded
from emseg.store.output import open_output
from emseg.store.place import Address, Place, place_of
from emseg_workflows.bench import Job
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, Observer, RunEnded, RunStarted
from emseg_workflows.flows.arrays import volume_at
from emseg_workflows.flows.in_flight import Sent
from emseg_workflows.flows.limits import check_chunks, check_gpus, check_memory, check_space
from emseg_workflows.flows.outputs import begun_recipe, check_same, claimed, prepare_output, token_of
from emseg_workflows.flows.places import check_output_place, default_output
from emseg_workflows.flows.plan import limits_of
from emseg_workflows.flows.record import RunRecord
from emseg_workflows.flows.same_volume import BEGINNING, Past, compare_drawn
from emseg_workflows.flows.settle import Draft, draft_run, settle
from emseg_workflows.flows.stage import Stages, is_lost
from emseg_workflows.launch import Launch, check_main, open_executor, open_watch, with_shared_gpus
from emseg_workflows.placement import Executor, Placement, WhereOnGpus
from emseg_workflows.report import Report, Tally
from emseg_workflows.stop import Stop, StoppedError


def segment(
    volume: str | Path | Address | Array,
    output: str | Place | None = None,
    *,
    channel: int | str | None = None,
    timepoint: int | None = None,
    model: str | Path | None = None,
    predictor: str | None = None,
    region: str | Box | None = None,
    probabilities: bool = False,
    tta: bool = False,
    pyramid: bool | None = None,
    mask: str | Path | None = None,
    empty: tuple[float, str] | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    normalise: Scope | None = None,
    tile: Triple | None = None,
    threads: int = 1,
    device: Device | None = None,
    backend: Backend | None = None,
    precision: Precision | None = None,
    overwrite: bool = False,
    mixed_hardware: bool = False,
    performance_report: str | Path | None = None,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **where: Unpack[WhereOnGpus],
) -> Report:
    """The report of a run that segments a volume; blocks that an earlier run has written are not computed again.

    Parameters
    ----------
    volume
        A Zarr array or OME-Zarr image, (z, y, x) or (y, x), also with channels or timepoints in front, of uint8, uint16 or
        float32, on a local path or at an address such as ``s3://bucket/key``; or an array of NumPy, Dask or Zarr, which is
        stored as ``NAME.volume.zarr`` beside the output, unless it is on a disk of this machine.
    output
        The OME-Zarr group to write, on a local path or at an address on ``s3://`` or ``gs://``; by default beside the volume,
        see `default_output`.
    channel, timepoint
        Which one to segment, of a volume that has several: the channel by its number from 0, or by its name in the image's
        OME metadata. None for as the output was begun, else the only one.
    model
        Name of a bundled model, or a model file; None for the default one.
    predictor
        A class of your own that predicts, ``module:Class``, instead of a model; each worker imports it. See `emseg.model.own`.
    region
        Part of the volume, ``z0:z1,y0:y1,x0:x1`` in voxels; all of it if None.
    probabilities
        Store the probability of each class beside the labels.
    tta
        Test-time augmentation: average the probabilities over the rotations by 90 degrees and the flips of the image
        plane, which takes eight times the arithmetic.
    pyramid
        Whether labels and probabilities get coarser levels, for viewers; None for as the output was begun, else yes.
    mask
        A Zarr array or OME-Zarr image of any voxel size: blocks that no voxel of it touches which is not 0 are left out, and
        stay *not computed*. None for as the output was begun.
    empty
        A grey value and the name of a class: where all that a block sees has that value, it is not predicted but gets that
        class, which is then not what one pass over the volume would have given. None for as the output was begun, else never.
    voxel_size
        Of an array: size (z, y, x) of a voxel in nanometres; None if it is not known.
    normalise
        Measure mean and deviation of the intensities once per ``volume``, or per z ``slice``; None for what the model was
        trained with.
    tile
        Shape (z, y, x) in voxels of one network input; chosen by the planner if None.
    threads
        Threads that each predictor computes with. They are part of the plan: another number may change the last bits.
    device
        What predictors compute on, ``cpu`` or ``cuda``; None for the GPUs of ``cluster="cuda"``, and for the CPU elsewhere.
    backend
        Library that computes; None for the one that the output was begun with, else the fastest that is installed.
    precision
        Type of the activations; None for the one that the output was begun with, else the first of bfloat16 and float16 that
        the hardware has arithmetic for and that gives 99.9 % of a sample of the volume the labels of float32, else that.
    overwrite
        Begin an output that is already there anew.
    mixed_hardware
        Accept workers that compute other last bits than the run began with; which ones did is recorded.
    performance_report
        An HTML file to write Dask's report on the run to.
    policy
        How long a block may run, and how many may fail.
    stop
        Asked to stop, the run hands out no more blocks and waits a while for those in hand.
    on_event
        Called with each event of the run; see `emseg_workflows.events`.
    **where
        Who computes, and where: see `emseg_workflows.placement.WhereOnGpus`. By default a worker per core (and thread).

    Raises
    ------
    InputError
        If anything asked for does not fit together; nothing was written then.
    """
    notify, policy, stop = on_event or _ignore, policy or Policy(), stop or Stop()
    report = Path(performance_report) if performance_report is not None else None
    placement = Placement(performance_report=report, **where)
    check_main(placement)
    placement = with_shared_gpus(placement)
    device, volume = device or placement.default_device, volume_at(volume, output, voxel_size)
    place = place_of(output) if output is not None else default_output(volume)
    check_output_place(place, volume)
    begun = begun_recipe(place, overwrite)
    draft = draft_run(
        *(volume, Part(channel, timepoint), model, predictor, region, tile, normalise),
        probabilities=probabilities,
        tta=tta,
        pyramid=pyramid,
        mask=Path(mask) if mask is not None else None,
        empty=empty,
        threads=threads,
        limits=limits_of(placement, threads, device, tta),
        begun=begun,
    )
    check_space(place, draft.cost.output_bytes)
    left = len(draft.plan)
    if begun is not None:
        backend, precision = backend or begun.numerics.library, precision or begun.numerics.precision
        check_same(place, begun, draft.recipe(replace(begun.numerics, threads=threads, precision=precision), begun.accuracy))
        left = sum(int((~level.done()).sum()) for level in open_output(place).levels)
        if not left:
            return _nothing_left(place, begun, notify)
    with (
        claimed(place, notify) as claim,
        open_executor(Launch(placement, left, threads, place.absolute(), notify), stop) as executor,
    ):
        _check_workers(draft, executor, placement, device)
        settled = settle(draft, executor, device, backend, precision)
        if begun is not None and not mixed_hardware:
            check_same(place, begun, settled.recipe)
        recipe, past = begun or settled.recipe, BEGINNING
        if begun is not None and not stop.asked:
            past = compare_drawn(open_output(place), claim.run, draft.path, executor, policy, stop, notify)
        if stop.asked:
            raise StoppedError(stop.number)
        prepare_output(place, recipe, settled.outside, draft.card, overwrite, claim.token)
        for notice in settled.notices:
            notify(Noticed(notice))
        with claim.held() as lease:
            job = Job(
                *(recipe, draft.path, draft.model_place, place.absolute()),
                *(token_of(place.absolute(), lease), mixed_hardware, device, placement.most_per_gpu),
            )
            return _Run(job, past, lease, executor, policy, stop, notify).segment()


def _check_workers(draft: Draft, executor: Executor, placement: Placement, device: Device) -> None:
    """Refuse a run that does not fit the memory of its workers or their GPUs."""
    check_chunks(draft.volume, draft.path, executor.memory)
    check_memory(draft.cost, executor.memory, draft.plan, executor.workers)
    if device == "cuda" or placement.cluster == "cuda":
        check_gpus(executor.gpus(device), placement.most_per_gpu, draft.cost, draft.plan, device)


@dataclass(frozen=True, slots=True)
class _Run:
    """A run under a lease: the blocks that are left, then the levels above them."""

    job: Job
    past: Past
    lease: Lease
    executor: Executor
    policy: Policy
    stop: Stop
    notify: Observer

    def segment(self) -> Report:
        """How it ended."""
        job, stop = self.job, self.stop
        output = open_output(job.output, job.token)
        record = RunRecord(output, job, self.executor.workers, lambda message: self.notify(Noticed(message)), self.past.runs)
        begins = self.past is BEGINNING
        doubted = np.ones(job.recipe.plan.grid, bool) if begins else self.past.doubted  # what is there was sent by others
        done = remove_unfounded(output.levels, doubted).ravel()
        outside = int(output.outside.sum())
        tally, start = Tally(job.recipe.plan, int(done.sum()) - outside, outside), perf_counter()
        report = tally.report(0.0)
        try:
            try:
                self._blocks(output, done, tally, record)
            finally:
                report = tally.report(perf_counter() - start, stop.number)
            self.notify(RunEnded(report))
            if len(output.levels) > 1 and not report.left:
                stages = Stages(job.output, self.executor, self.lease, self.policy, stop, self._told(record))
                unbuilt = stages.build(output.levels, done.reshape(job.recipe.plan.grid), anew=begins)
                report = replace(report, unbuilt=unbuilt, signal=stop.number)
        finally:
            record.end(report)
        return report

    def _blocks(self, output: Output, done: NDArray[np.bool_], tally: Tally, record: RunRecord) -> None:
        """Hand out the blocks that are left, and count how they end."""
        job, plan, executor, told = self.job, self.job.recipe.plan, self.executor, self._told(record)
        with open_watch(executor, job, done, self.notify) as watch:
            told(
                RunStarted(
                    *(job.output, plan, int(done.sum()), executor.workers, executor.dashboard, watch.address),
                    outside=int(output.outside.sum()),
                )
            )
            left, sent = ~done, Sent(output.levels[0])
            while left.any():
                strands = strands_of(plan, job.recipe.volume, left)
                with closing(executor.run(job, strands, self.policy, self.stop)) as events:
                    for event in events:
                        match event:
                            case BlockEnded(outcome):
                                tally.count(outcome)
                                sent.note(outcome)
                                done[outcome.block] |= outcome.status == "done"
                            case BlockRetried(block, cause):
                                tally.retry(block, cause)
                        watch(event)
                        told(event)
                        if not self.stop.asked and is_lost(self.lease, event, self.notify):
                            self.stop.ask()
                if self.lease.loss:
                    break
                # written, but somebody has deleted it, or sent something else; unless stopped, nobody writes any more
                left = done & ~(output.done_units(tidy=not self.stop.asked) & ~sent.replaced()).ravel()
                tally.take_back(int(left.sum()))
                watch.take_back(map(int, np.flatnonzero(left)))
                if self.stop.asked:
                    break

    def _told(self, record: RunRecord) -> Observer:
        """Tells the record and whoever watches."""

        def tell(event: Event) -> None:
            record.tell(event)
            self.notify(event)

        return tell


def _nothing_left(place: Place, recipe: Recipe, notify: Observer) -> Report:
    """The report of a run that finds all blocks written."""
    outside = int(open_output(place).outside.sum())
    report = Tally(recipe.plan, len(recipe.plan) - outside, outside).report(0.0)
    notify(RunStarted(place.absolute(), recipe.plan, len(recipe.plan), 0, None))
    notify(RunEnded(report))
    return report


def _ignore(event: Event) -> None:
    """Nobody watches."""
