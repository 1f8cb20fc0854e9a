"""`emseg run`: a volume and a model in, a label volume out."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from emseg.box import Box, Triple
from emseg.errors import OutputError, PlanError
from emseg.grid.cost import BLOCKS_IN_FLIGHT, cost_of
from emseg.grid.layout import plan_volume
from emseg.grid.plan import Block, Plan
from emseg.model.bundled import resolve_model
from emseg.model.header import model_digest, read_header
from emseg.normalise import Scope, survey
from emseg.recipe import Recipe
from emseg.specs.model import ModelSpec
from emseg.specs.numerics import Numerics
from emseg.specs.region import parse_region
from emseg.specs.volume import VolumeSpec
from emseg.store.lease import Lease, Token, take_lease
from emseg.store.output import Form, create_output, open_output, renew_output, settle_output
from emseg.store.records import FolderRecords
from emseg.store.volume import open_volume
from emseg_workflows.bench import Job
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, Observer, Progressed, RunEnded, RunStarted
from emseg_workflows.flows.limits import check_chunks, check_memory, check_space
from emseg_workflows.flows.places import check_output_place, default_output
from emseg_workflows.flows.record import RunRecord, recipe_of
from emseg_workflows.report import Report, Tally
from emseg_workflows.stop import Stop, StoppedError

if TYPE_CHECKING:
    from distributed import Client


class Executor(Protocol):
    """Something that runs blocks: this process, or a Dask cluster."""

    @property
    def workers(self) -> int:
        """Worker processes; 0 for this process."""
        ...

    @property
    def dashboard(self) -> str | None:
        """Address to watch it at, if there is one."""
        ...

    @property
    def memory(self) -> int | None:
        """Bytes of memory that each worker may use, if that is known."""
        ...

    def numerics(self, model: Path, tile: Triple, threads: int) -> Numerics:
        """The numerics of a predictor where the blocks will run, for tiles of this shape (z, y, x) in voxels."""
        ...

    def run(self, job: Job, blocks: Iterator[Block], policy: Policy, stop: Stop) -> Generator[Progressed]:
        """What happens, until each block has ended or the run is stopped; closing it ends the run."""
        ...


def segment(
    volume: str | Path,
    output: str | Path | None = None,
    *,
    model: str | Path | None = None,
    region: str | Box | None = None,
    probabilities: bool = False,
    normalise: Scope = "volume",
    tile: Triple | None = None,
    threads: int = 1,
    workers: int | None = None,
    scheduler: str | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    mixed_hardware: bool = False,
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
    normalise
        Measure mean and deviation of the intensities once per ``volume``, or per z ``slice``.
    tile
        Shape (z, y, x) in voxels of one network input; chosen by the planner if None.
    threads
        Threads that each predictor computes with. They are part of the plan: another number may change the last bits.
    workers
        Worker processes to start on this machine; None for one per core (and thread), 0 for this process, without Dask.
    scheduler, client
        A running Dask cluster to use instead, by the address of its scheduler or by a client.
    overwrite
        Begin an output that is already there anew.
    mixed_hardware
        Accept workers that compute other last bits than the run began with; which ones did is recorded.
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
    volume, model_path = Path(volume), resolve_model(model)
    source = open_volume(volume)
    spec, card = read_header(model_path)
    box = parse_region(region, source.spec) if isinstance(region, str) else region
    place = Path(output) if output is not None else default_output(volume)
    check_output_place(place, volume)
    begun = _begun(place, overwrite)
    plan = _plan(source.spec, spec, box, tile, begun)
    check_chunks(source.spec, volume)
    check_space(place, cost_of(plan, source.spec, probabilities).output_bytes)
    normalisation, volume_digest = survey(source, normalise)

    def recipe_for(numerics: Numerics) -> Recipe:
        digest = model_digest(model_path)
        return Recipe(source.spec, volume_digest, digest, normalisation, plan, numerics, probabilities)

    if begun:
        _check_same(place, begun, recipe_for(replace(begun.numerics, threads=threads)))
        if open_output(place).done_units().all():
            return _nothing_left(place, begun, notify)
    lease = _take_lease(place) if place.exists() else None
    try:
        with _executor(workers, threads, scheduler, client) as executor:
            check_memory(cost_of(plan, source.spec, probabilities), executor.memory, plan, executor.workers)
            numerics = executor.numerics(model_path.absolute(), plan.tile, threads)
            recipe = recipe_for(numerics)
            if begun:
                if not mixed_hardware:
                    _check_same(place, begun, recipe)
                recipe = begun
            if stop.asked:
                raise StoppedError(stop.number)
            _prepare_output(place, recipe, card, overwrite)
            lease = lease or _take_lease(place)
            for message in _doubts(source.spec, spec, card):
                notify(Noticed(message))
            token = Token(open_output(place).records.absolute(), lease.run)
            job = Job(recipe, volume.absolute(), model_path.absolute(), place.absolute(), token, mixed_hardware)
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
) -> tuple[Plan, VolumeSpec]:
    """The plan of a run with these options, and the volume it is for; nothing is written.

    Raises
    ------
    InputError
        As `segment`.
    """
    source = open_volume(Path(volume))
    spec, _ = read_header(resolve_model(model))
    box = parse_region(region, source.spec) if isinstance(region, str) else region
    return plan_volume(source.spec, spec, box, tile), source.spec


def _run(job: Job, lease: Lease, executor: Executor, policy: Policy, stop: Stop, notify: Observer) -> Report:
    """Hand out the blocks that are left, and count how they end."""
    plan, output = job.recipe.plan, open_output(job.output)
    done = output.done_units(tidy=True).ravel()
    tally, start = Tally(plan, int(done.sum())), perf_counter()
    record = RunRecord(output, job, executor.workers, lambda message: notify(Noticed(message)))
    notify(RunStarted(job.output, plan, int(done.sum()), executor.workers, executor.dashboard))
    try:
        left = np.flatnonzero(~done)
        while len(left):
            blocks = (plan.block(int(index)) for index in left)
            with closing(executor.run(job, blocks, policy, stop)) as events:
                for event in events:
                    record.tell(event)
                    match event:
                        case BlockEnded(outcome):
                            tally.count(outcome)
                            done[outcome.block] |= outcome.status == "done"
                        case BlockRetried():
                            tally.retry()
                    notify(event)
                    if lease.lost and not stop.asked:
                        notify(Noticed(f"another run has taken over {job.output}: this one ends"))
                        stop.ask()
            left = np.flatnonzero(done & ~output.done_units().ravel())  # written, but somebody has deleted it
            tally.take_back(len(left))
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


def _begun(place: Path, overwrite: bool) -> Recipe | None:
    """The recipe of the run that has begun at this place, if it is to be gone on with.

    Raises
    ------
    OutputError
        If something else is there.
    """
    if not place.exists() and not place.is_symlink():
        return None
    try:
        output = open_output(place)
    except OutputError as error:
        cause, _, _ = str(error).rpartition(": ")
        raise OutputError(
            f"{place} already exists, and no run can go on there ({cause}): choose another place with -o"
        ) from error
    if overwrite and place.is_symlink():
        raise OutputError(f"{place} is a link to an output, not an output: name what it leads to, {place.resolve()}")
    return None if overwrite else recipe_of(output)


def _plan(volume: VolumeSpec, model: ModelSpec, box: Box | None, tile: Triple | None, begun: Recipe | None) -> Plan:
    """The stored plan of a run that has begun, where it answers what is asked for; else a new one."""
    if begun is not None:
        plan = begun.plan
        asked = (volume.shape, model, box or volume.box, tile or plan.tile)
        if asked == (plan.shape, plan.model, plan.region, plan.tile):
            return plan
    return plan_volume(volume, model, box, tile)


def _check_same(place: Path, begun: Recipe, asked: Recipe) -> None:
    differences = list(begun.differences(asked))
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise OutputError(
            f"{place} was begun with other settings (there / now): {shown}: "
            "repeat the first run's settings to go on, choose another place with -o, or start over with --overwrite"
        )


def _prepare_output(place: Path, recipe: Recipe, card: dict[str, str], overwrite: bool) -> None:
    """Make the output, or begin it anew, or tidy up what a killed run has left in it."""
    form = Form(
        volume=recipe.volume,
        region=recipe.plan.region,
        classes=recipe.plan.model.classes,
        unit=recipe.plan.unit,
        chunk=recipe.plan.chunk,
        probabilities=recipe.probabilities,
        attributes={"recipe": recipe.to_json(), "fingerprint": recipe.fingerprint, "model": card},
    )
    if not place.exists():
        create_output(place, form)
        return
    if overwrite:
        renew_output(place, form)
    settle_output(place)


def _take_lease(place: Path) -> Lease:
    output = open_output(place)
    return take_lease(FolderRecords(output.records), output.path)


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


@contextmanager
def _executor(workers: int | None, threads: int, scheduler: str | None, client: Client | None) -> Iterator[Executor]:
    from emseg_workflows.executors.serial import SerialExecutor  # noqa: PLC0415

    if threads < 1 or (workers is not None and workers < 0):
        raise PlanError(f"a run needs at least 1 thread per predictor and 0 workers, not {threads} and {workers}")
    if workers is not None and (scheduler is not None or client is not None):
        raise PlanError(
            f"a run starts {workers} workers or uses those of {scheduler or client}, not both: leave out one of them"
        )
    if client is None and scheduler is None and workers == 0:
        yield SerialExecutor()
        return
    from emseg_workflows.clusters.local import default_workers, local_cluster, running_cluster  # noqa: PLC0415
    from emseg_workflows.executors.dask import DaskExecutor  # noqa: PLC0415

    if client is not None:
        yield DaskExecutor(client)
        return
    cluster: AbstractContextManager[Client]
    if scheduler is not None:
        cluster = running_cluster(scheduler)
    else:
        cluster = local_cluster(workers or default_workers(threads), BLOCKS_IN_FLIGHT)
    with cluster as owned:
        yield DaskExecutor(owned)


def _ignore(event: Event) -> None:
    """Nobody watches."""
