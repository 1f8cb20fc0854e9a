"""`emseg run`: a volume and a model in, a label volume out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from emseg.box import Box, Triple
from emseg.grid.cost import Cost, cost_of
from emseg.grid.layout import BLOCK_FLOPS, Layout, Limits, layouts_of, plan_volume, plan_with
from emseg.grid.order import strands_of
from emseg.grid.plan import Plan
from emseg.grid.symmetry import SYMMETRIES, check_symmetric
from emseg.model.backend import default_backend
from emseg.model.bundled import resolve_model
from emseg.model.device import Device
from emseg.model.header import model_digest, read_header
from emseg.normalise import Scope, survey
from emseg.recipe import Recipe
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Accuracy, Backend, Numerics, Precision
from emseg.specs.region import parse_region
from emseg.specs.volume import VolumeSpec
from emseg.store.lease import Lease, Token
from emseg.store.output import open_output
from emseg.store.volume import open_volume
from emseg_workflows.bench import Choice, Job, Trial
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, Observer, RunEnded, RunStarted
from emseg_workflows.flows.limits import check_chunks, check_gpus, check_memory, check_space
from emseg_workflows.flows.outputs import begun_recipe, check_same, lease_output, prepare_output
from emseg_workflows.flows.places import check_output_place, default_output
from emseg_workflows.flows.record import RunRecord
from emseg_workflows.launch import Launch, open_executor, open_watch, settled, tile_budget
from emseg_workflows.placement import ClusterKind, Executor, Placement
from emseg_workflows.report import Report, Tally
from emseg_workflows.site import Site
from emseg_workflows.stop import Stop, StoppedError

if TYPE_CHECKING:
    from distributed import Client

TRIED = 2**37
"""Floating-point operations of a run on the whole volume from which on a low precision is worth a trial: two seconds of a core.

A region is computed as the whole is, so that it equals the crop of a whole run.
"""
LONGEST = 600.0
"""Seconds that a block may be expected to take."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do."""

    plan: Plan
    volume: VolumeSpec
    layouts: list[Layout]
    """All that were considered, the cheapest first, which is that of the plan."""


def segment(
    volume: str | Path,
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    region: str | Box | None = None,
    probabilities: bool = False,
    tta: bool = False,
    normalise: Scope = "volume",
    tile: Triple | None = None,
    threads: int = 1,
    workers: int | None = None,
    adapt: tuple[int, int] | None = None,
    host: str | None = None,
    scheduler: str | None = None,
    tls: tuple[Path, Path, Path] | None = None,
    client: Client | None = None,
    cluster: ClusterKind = "local",
    gpus: tuple[int, ...] | None = None,
    workers_per_gpu: int | None = None,
    site: Site | None = None,
    device: Device | None = None,
    backend: Backend | None = None,
    precision: Precision | None = None,
    overwrite: bool = False,
    mixed_hardware: bool = False,
    performance_report: str | Path | None = None,
    policy: Policy | None = None,
    stop: Stop | None = None,
    on_event: Observer | None = None,
) -> Report:
    """The report of a run that segments a volume; blocks that an earlier run has written are not computed again.

    Parameters
    ----------
    volume
        A Zarr array or OME-Zarr image, (z, y, x) or (y, x), of uint8, uint16 or float32.
    output
        The OME-Zarr group to write; by default beside the volume, see `default_output`.
    model
        Name of a bundled model, or a model file; None for the default one.
    region
        Part of the volume, ``z0:z1,y0:y1,x0:x1`` in voxels; all of it if None.
    probabilities
        Store the probability of each class beside the labels.
    tta
        Test-time augmentation: average the probabilities over the rotations by 90 degrees and the flips of the image
        plane, which takes eight times the arithmetic.
    normalise
        Measure mean and deviation of the intensities once per ``volume``, or per z ``slice``.
    tile
        Shape (z, y, x) in voxels of one network input; chosen by the planner if None.
    threads
        Threads that each predictor computes with. They are part of the plan: another number may change the last bits.
    workers
        Worker processes to start on this machine; None for one per core (and thread), 0 for this process, without Dask.
    adapt
        Least and most worker processes; between them, as many as there are blocks for. Instead of ``workers``.
    host
        Address of this machine where workers on other hosts may join, in TLS; None for loopback alone.
    scheduler, client
        A running Dask cluster to use instead, by the address of its scheduler or by a client.
    tls
        Files of the authority, the certificate and its key that the scheduler wants to see.
    cluster
        What workers are started on: the cores of this machine, or with ``cuda`` its GPUs, one on each.
    gpus
        Which GPUs, numbered as `nvidia-smi` does; None for each that is visible.
    workers_per_gpu
        Workers that share a GPU; more are refused, also on a running cluster. None for one, or with ``cluster="cuda"`` for as
        many, up to four, as there are cores to feed them.
    device
        What predictors compute on, ``cpu`` or ``cuda``; None for the GPUs of ``cluster="cuda"``, and for the CPU elsewhere.
    backend
        Library that computes; None for the one that the output was begun with, else the fastest that is installed.
    precision
        Type of the activations; None for the one that the output was begun with, else the first of bfloat16 and float16 that
        the hardware has arithmetic for and that gives 99.9 % of a sample of the volume the labels of float32, else that.
    site
        What SLURM is told for each worker of ``srun`` (steps of the job that this runs in) and ``slurm`` (jobs of their own).
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

    Raises
    ------
    InputError
        If anything asked for does not fit together; nothing was written then.
    """
    notify, policy, stop = on_event or _ignore, policy or Policy(), stop or Stop()
    report = Path(performance_report) if performance_report is not None else None
    placement = settled(Placement(workers, host, scheduler, client, cluster, gpus, workers_per_gpu, tls, site, report, adapt))
    device = device or placement.default_device
    volume, model_path = Path(volume), resolve_model(model)
    source = open_volume(volume)
    spec, card = read_header(model_path)
    if tta:
        check_symmetric(spec)
    box = parse_region(region, source.spec) if isinstance(region, str) else region
    place = Path(output) if output is not None else default_output(volume)
    check_output_place(place, volume)
    begun = begun_recipe(place, overwrite)
    limits = _limits(placement, threads, device, tta)
    plan = _plan(source.spec, spec, box, tile, begun, limits)
    check_chunks(source.spec, volume)
    cost = cost_of(plan, source.spec, probabilities, tta)
    check_space(place, cost.output_bytes)
    normalisation, volume_digest = survey(source, normalise)

    def recipe_for(numerics: Numerics, accuracy: Accuracy | None) -> Recipe:
        digest = model_digest(model_path)
        settings = (numerics, probabilities, accuracy, tta)
        return Recipe(source.spec, volume_digest, digest, normalisation, plan, *settings)

    left = len(plan)
    if begun:
        backend, precision = backend or begun.numerics.library, precision or begun.numerics.precision
        check_same(place, begun, recipe_for(replace(begun.numerics, threads=threads, precision=precision), begun.accuracy))
        left -= int(open_output(place).done_units().sum())
        if not left:
            return _nothing_left(place, begun, notify)
    lease = lease_output(place) if place.exists() else None
    try:
        with open_executor(Launch(placement, left, threads, place.absolute(), notify), stop) as executor:
            check_chunks(source.spec, volume, executor.memory)
            check_memory(cost, executor.memory, plan, executor.workers)
            if device == "cuda" or placement.cluster == "cuda":
                check_gpus(executor.gpus(device), placement.most_per_gpu, cost, plan, device)
            if precision is None and cost.flops * source.spec.box.voxels < TRIED * plan.region.voxels:
                precision = "float32"
            backend, paths = backend or default_backend(device), (volume.absolute(), model_path.absolute())
            trial = Trial(*paths, normalisation, plan.tile, threads, device, backend, precision, begun is not None)
            choice = executor.try_out(trial)
            if not begun and (slower := _in_time(cost, choice, limits)) != limits:
                notify(Noticed(f"a predictor does {choice.flops_per_second / 1e9:.1f} GFLOP/s here: blocks are made smaller"))
                plan = plan_volume(source.spec, spec, box, tile, slower)
                known = replace(trial, tile=plan.tile, precision=choice.numerics.precision, measured=True)
                choice = replace(choice, numerics=executor.try_out(known).numerics)
            recipe = recipe_for(choice.numerics, begun.accuracy if begun else choice.accuracy)
            if begun:
                if not mixed_hardware:
                    check_same(place, begun, recipe)
                recipe = begun
            if stop.asked:
                raise StoppedError(stop.number)
            prepare_output(place, recipe, card, overwrite)
            lease = lease or lease_output(place)
            for message in (*_doubts(source.spec, spec, card), *_chosen(choice)):
                notify(Noticed(message))
            token = Token(open_output(place).records.absolute(), lease.run)
            job = Job(recipe, *paths, place.absolute(), token, mixed_hardware, device, placement.most_per_gpu)
            with lease.held():
                taken, lease = lease, None
                return _run(job, taken, executor, policy, stop, notify)
    finally:
        if lease is not None:
            lease.withdraw()


def plan_run(
    volume: str | Path,
    *,
    model: str | Path | None = None,
    region: str | Box | None = None,
    tile: Triple | None = None,
    tta: bool = False,
    threads: int = 1,
    placement: Placement | None = None,
    device: Device | None = None,
) -> Planned:
    """The plan of a run with these options, and what else was considered; nothing is written.

    Raises
    ------
    InputError
        As `segment`.
    """
    source, placement = open_volume(Path(volume)), placement or Placement()
    spec, _ = read_header(resolve_model(model))
    if tta:
        check_symmetric(spec)
    box = (parse_region(region, source.spec) if isinstance(region, str) else region) or source.spec.box
    limits = _limits(placement, threads, device or placement.default_device, tta)
    layouts = layouts_of(source.spec, spec, box, tile, limits)
    return Planned(plan_with(layouts[0], source.spec, spec, box), source.spec, layouts)


def _run(job: Job, lease: Lease, executor: Executor, policy: Policy, stop: Stop, notify: Observer) -> Report:
    """Hand out the blocks that are left, and count how they end."""
    plan, output = job.recipe.plan, open_output(job.output)
    done = output.done_units(tidy=True).ravel()
    tally, start = Tally(plan, int(done.sum())), perf_counter()
    record = RunRecord(output, job, executor.workers, lambda message: notify(Noticed(message)))
    with open_watch(executor, job, done, notify) as watch:
        notify(RunStarted(job.output, plan, int(done.sum()), executor.workers, executor.dashboard, watch.address))
        try:
            left = ~done
            while left.any():
                with closing(executor.run(job, strands_of(plan, job.recipe.volume, left), policy, stop)) as events:
                    for event in events:
                        record.tell(event)
                        match event:
                            case BlockEnded(outcome):
                                tally.count(outcome)
                                done[outcome.block] |= outcome.status == "done"
                            case BlockRetried(block, cause):
                                tally.retry(block, cause)
                        watch(event)
                        notify(event)
                        if lease.lost and not stop.asked:
                            notify(Noticed(f"another run has taken over {job.output}: this one ends"))
                            stop.ask()
                left = done & ~output.done_units().ravel()  # written, but somebody has deleted it
                tally.take_back(int(left.sum()))
                watch.take_back(map(int, np.flatnonzero(left)))
                if stop.asked:
                    break
        finally:
            report = tally.report(perf_counter() - start, stop.number)
            record.end(report)
    notify(RunEnded(report))
    return report


def _nothing_left(place: Path, recipe: Recipe, notify: Observer) -> Report:
    """The report of a run that finds all blocks written."""
    report = Tally(recipe.plan, len(recipe.plan)).report(0.0)
    notify(RunStarted(place.absolute(), recipe.plan, len(recipe.plan), 0, None))
    notify(RunEnded(report))
    return report


def _limits(placement: Placement, threads: int, device: Device, tta: bool) -> Limits:
    """What bounds the layout of a run; with test-time augmentation a block takes as often as long."""
    return Limits(tile_budget(placement, threads, device), BLOCK_FLOPS // (len(SYMMETRIES) if tta else 1))


def _in_time(cost: Cost, choice: Choice, limits: Limits) -> Limits:
    """Limits with which blocks end in time, if a predictor is so slow that they would not; else the same.

    It is a power of two, so that it hardly ever depends on how fast the same hardware was this time.
    """
    most = LONGEST * choice.flops_per_second
    if cost.flops <= most * cost.blocks:
        return limits
    alike = limits.block_flops / BLOCK_FLOPS  # a layout does not know how often tiles go through the network
    return replace(limits, block_flops=max(1, 2 ** math.floor(math.log2(most * alike))))


def _plan(
    volume: VolumeSpec, model: ModelSpec, box: Box | None, tile: Triple | None, begun: Recipe | None, limits: Limits
) -> Plan:
    """The stored plan of a run that has begun, where it answers what is asked for; else a new one."""
    if begun is not None:
        plan = begun.plan
        asked = (volume.shape, model, box or volume.box, tile or plan.tile)
        if asked == (plan.shape, plan.model, plan.region, plan.tile):
            return plan
    return plan_volume(volume, model, box, tile, limits)


def _doubts(volume: VolumeSpec, model: ModelSpec, card: dict[str, str]) -> Iterator[str]:
    """What the user should know before a run that can still go on."""
    if not model.planar and volume.shape[0] == 1:
        yield "the model is three-dimensional, the volume has a single slice: mirroring repeats it along z"
    trained = card.get("voxel_size", "")
    here = " ".join(f"{scale:g}" for scale in volume.scale)
    if trained and None in volume.units[-volume.rank :]:
        yield f"the volume does not state its voxel size; the model was trained at {trained}"
    elif trained and volume.rank == 3 and not trained.startswith(here):
        yield f"the model was trained at {trained} voxels (z y x), the volume has {here} {volume.units[2]}: labels may be poor"


def _chosen(choice: Choice) -> Iterator[str]:
    """What was found out about precisions."""
    for precision, accuracy in choice.refused:
        yield f"{precision} would be faster, but {accuracy}: --precision {precision} takes it all the same"
    if choice.accuracy is not None:
        yield f"computing in {choice.numerics.precision}: {choice.accuracy}"


def _ignore(event: Event) -> None:
    """Nobody watches."""
