"""`emseg run`: from a volume and a model to a label volume."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from emseg.executors.port import Executor, Watch
from emseg.flows.array_volumes import volume_at
from emseg.flows.records.run_log import RunRecord, recipe_of
from emseg.flows.records.same_volume import NO_FINISHED_BLOCKS, FinishedBlocks, compare_sample
from emseg.flows.running.claim import check_same_settings, claim_output, output_to_resume, prepare_output, worker_token
from emseg.flows.running.draft import Draft, check_settings, draft_run, settle
from emseg.flows.running.late_writes import SentObjects
from emseg.flows.running.limits import check_chunks, check_gpus, check_memory, check_space, limits_of
from emseg.flows.running.output_location import check_output_place, default_output
from emseg.flows.running.stages import StageRunner
from emseg.launch import Launch, check_limits, check_main, open_executor, open_watch, with_shared_gpus
from emseg.placement import Placement, WhereOnGpus
from emseg.runs.dispatch import Policy
from emseg.runs.events import BlockEnded, Event, Noticed, Observer, RunEnded, RunStarted
from emseg.runs.notices import log
from emseg.runs.stop import Stop, StoppedError
from emseg.runs.tally import Report, Tally
from emseg.settings.run import RunSettings, SettingsKeywords, settings_from
from emseg.tasks.segmenting import SegmentWork
from emseg_core.grid.order import block_sequences
from emseg_core.recipe import Recipe
from emseg_core.store.files.place import Address, Place, parse_place
from emseg_core.store.outputs.level import remove_stale_units
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.stacks.array_stack import Array


class RunKeywords(SettingsKeywords, WhereOnGpus, total=False):
    """The settings of a run and where it runs, as keywords."""


def segment(
    volume: str | Path | Address | Array,
    output: str | Place | None = None,
    settings: RunSettings | None = None,
    *,
    voxel_size: tuple[float, float, float] | None = None,
    overwrite: bool = False,
    mixed_hardware: bool = False,
    performance_report: str | Path | None = None,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
    **given: Unpack[RunKeywords],
) -> Report:
    """Segment a volume, or resume an earlier run.

    Parameters
    ----------
    volume
        A Zarr array or OME-Zarr image, (z, y, x) or (y, x), also with channels or timepoints in front, of uint8, uint16 or
        float32, on a local path or at an address such as ``s3://bucket/key``; or an array of NumPy, Dask or Zarr, which is
        stored as ``NAME.volume.zarr`` beside the output, unless it is on a disk of this machine.
    output
        The OME-Zarr group to write, on a local path or at an address on ``s3://`` or ``gs://``; by default beside the volume.
    settings
        Settings that decide the bytes of the output, or its fields as keywords.
    voxel_size
        Of an array: size (z, y, x) of a voxel in nanometres; None if it is not known.
    overwrite
        Start over if there is an output already.
    mixed_hardware
        Allow workers whose results may differ in the last bits; the record of the run says which ones did.
    performance_report
        HTML file for Dask's performance report of the run.
    policy
        How long a block may run, and how many may fail.
    stop
        Asked to stop, the run starts no more blocks and waits a while for those in progress.
    on_event
        Called with each event of the run, see `emseg.runs.events`; by default, notices are logged.
    **given
        Fields of `RunSettings` and `Placement`.

    Returns
    -------
    Report
        How the run ended; its ``exit_code`` is 0 if all blocks are written.

    Raises
    ------
    InputError
        If anything asked for does not fit together; nothing was written then.
    """
    settings, where = settings_from(settings, given)
    if performance_report is not None:
        where["performance_report"] = Path(performance_report)
    policy, stop, notify, placement = policy or Policy(), stop or Stop(), on_event or log, Placement(**where)
    check_main(placement)
    check_limits(placement)
    placement = with_shared_gpus(placement)
    if not isinstance(volume, str | Path | Address):
        check_settings(settings)  # before the array is stored
    source = settings.level_of(volume_at(volume, output, voxel_size))
    place = parse_place(output) if output is not None else default_output(source)
    check_output_place(place, source)
    existing = output_to_resume(place, overwrite)
    started = recipe_of(existing) if existing is not None else None
    draft = draft_run(source, settings, limits_of(placement, settings.threads, settings.tta), started)
    check_space(place, draft.cost.output_bytes)
    left = len(draft.plan)
    if existing is not None and started is not None:
        precision = settings.precision or started.numerics.precision
        asked = replace(started.numerics, threads=settings.threads, precision=precision)
        check_same_settings(place, started, draft.recipe(asked, started.accuracy))
        left = sum(int((~level.done()).sum()) for level in existing.levels)
        if not left:
            return _nothing_left(existing, started, notify)
    launch = Launch(placement, left, settings.threads, place.absolute(), notify)
    with claim_output(place, notify) as claim, open_executor(launch, stop) as executor:
        _check_workers(draft, executor, placement)
        stages = StageRunner(place.absolute(), executor, None, policy, stop, notify)
        draft, recipe, notices = settle(draft, executor, placement.computes_on)
        finished = NO_FINISHED_BLOCKS
        if started is not None:
            if not mixed_hardware:
                check_same_settings(place, started, recipe)
            recipe = started
            if not stop.asked:
                finished = compare_sample(open_output(place), claim.run, draft.path, stages)
        if stop.asked:
            raise StoppedError(stop.number)
        prepare_output(place, recipe, draft.outside, draft.card, overwrite, claim.token)
        for notice in notices:
            notify(Noticed(notice))
        with claim.held() as lease:
            job = SegmentWork(
                recipe=recipe,
                volume=draft.path,
                model=draft.model_place,
                output=stages.output,
                token=worker_token(stages.output, lease),
                mixed_hardware=mixed_hardware,
                device=placement.computes_on,
                workers_per_gpu=placement.most_per_gpu,
            )
            return _run(job, finished, replace(stages, lease=lease))


def _check_workers(draft: Draft, executor: Executor, placement: Placement) -> None:
    """Refuse a run that does not fit the memory of its workers or their GPUs."""
    device = placement.computes_on
    check_chunks(draft.volume, draft.path, executor.memory)
    check_memory(draft.cost, executor.memory, draft.plan, executor.workers)
    if device == "cuda" or placement.cluster == "cuda":
        check_gpus(executor.gpus(device), placement.most_per_gpu, draft.cost, draft.plan, device)


def _run(job: SegmentWork, finished: FinishedBlocks, stages: StageRunner) -> Report:
    """Run under a lease: the remaining blocks, then the levels above them."""
    output, plan, stop, notify = open_output(job.output, job.token), job.recipe.plan, stages.stop, stages.notify
    record = RunRecord(output, job, stages.executor.workers, lambda message: notify(Noticed(message)), finished.runs)

    def tell(event: Event) -> None:
        record.add(event)
        notify(event)

    stages = replace(stages, notify=tell)
    begins = finished is NO_FINISHED_BLOCKS
    doubted = np.ones(plan.grid, bool) if begins else finished.recompute  # other runs have sent what is there
    done = remove_stale_units(output.levels, doubted).ravel()
    outside = int(output.outside.sum())
    tally, start = Tally(plan, int(done.sum()) - outside, outside), perf_counter()
    report = tally.report(0.0)
    try:
        try:
            with open_watch(stages.executor, job, done, notify) as watch:
                _segment_blocks(job, output, done, tally, stages, watch)
        finally:
            report = tally.report(perf_counter() - start, stop.number)
        notify(RunEnded(report))
        if len(output.levels) > 1 and not report.left:
            unbuilt = stages.build(output.levels, done.reshape(plan.grid), rebuild=begins)
            report = replace(report, unbuilt=unbuilt, signal=stop.number)
    finally:
        record.end(report)
    return report


def _segment_blocks(
    job: SegmentWork, output: Output, done: NDArray[np.bool_], tally: Tally, stages: StageRunner, watch: Watch
) -> None:
    """Hand out the remaining blocks, and count how they end."""
    plan, executor, stop = job.recipe.plan, stages.executor, stages.stop
    stages.notify(
        RunStarted(
            output=job.output,
            blocks=plan,
            already_done=int(done.sum()),
            workers=executor.workers,
            dashboard=executor.dashboard,
            map=watch.address,
            outside=int(output.outside.sum()),
        )
    )
    left, sent = ~done, SentObjects(output.levels[0])
    while left.any():
        sequences = block_sequences(plan, job.recipe.volume, left)
        with closing(stages.process(job, sequences, tally, sent)) as events:
            for event in events:
                if isinstance(event, BlockEnded):
                    done[event.outcome.block] |= event.outcome.status == "done"
                watch(event)
        if stages.lease is not None and stages.lease.loss:
            break
        # written, but deleted or replaced since; unless the run is stopped, no worker writes any more
        left = done & ~(output.done_units(tidy=not stop.asked) & ~sent.replaced()).ravel()
        tally.take_back(int(left.sum()))
        watch.take_back(map(int, np.flatnonzero(left)))
        if stop.asked:
            break


def _nothing_left(existing: Output, recipe: Recipe, notify: Observer) -> Report:
    """Return the report of a run that finds all blocks written."""
    outside = int(existing.outside.sum())
    report = Tally(recipe.plan, len(recipe.plan) - outside, outside).report(0.0)
    notify(RunStarted(existing.path, recipe.plan, len(recipe.plan), 0, None))
    notify(RunEnded(report))
    return report
