"""The run record: small numbered segments of JSON lines inside the output. Losing it loses causes and timings, never voxels.

    OUT/emseg/run-0001/lease.json     who runs, see `emseg.store.lease`
    OUT/emseg/run-0001/00000.jsonl    {"event": "started", ...}, then a line for each thing that happened
    OUT/emseg/run-0001/00001.jsonl    the next thousand lines

A segment is put anew, whole, until it is full: an object store can do that as well.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from emseg import __version__
from emseg.errors import OrphanError, OutputError
from emseg.model.source import ModelPlace, model_at
from emseg.outcome import is_count
from emseg.recipe import Recipe
from emseg.store.blame import reason
from emseg.store.lease import newest_run
from emseg.store.ledger import Output
from emseg.store.place import Address, place_of
from emseg.store.volume import ZarrVolume, open_volume
from emseg_workflows.bench import Job
from emseg_workflows.events import BlockEnded, BlockRetried, Event, Noticed, RunStarted, WorkerJoined, WorkerLeft
from emseg_workflows.report import Report

LINES = 1000
"""Lines of a segment."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EVERY = 10.0
"""Seconds after which lines are kept at the latest."""
SHARE = 0.05
"""Most of the time that may go into keeping lines sooner: what a killed driver has not kept is computed again."""


class RunRecord:
    """The record of the run that is going on; a disk that refuses it loses lines, and the run goes on.

    `on_problem` is told the first time.
    """

    def __init__(
        self, output: Output, job: Job, workers: int, on_problem: Callable[[str], None], tellers: tuple[int, ...] | None = ()
    ) -> None:
        """`tellers` are the runs whose records tell of all blocks that are done already; None if there are none such."""
        self._on_problem = on_problem
        self._refused = False
        self._records = output.records
        self._run = job.token.run
        self._segment = 0
        self._stage = ""
        """What is done once the blocks have ended."""
        self._lines: list[str] = []
        self._new = False
        self._due = monotonic()
        self._add(
            "started",
            volume=str(job.volume),
            model=str(job.model),
            fingerprint=job.recipe.fingerprint,
            generation=output.generation,
            tellers=tellers,
            emseg=__version__,
            python=platform.python_version(),
            host=socket.gethostname(),
            workers=workers,
            mixed_hardware=job.mixed_hardware,
        )
        self._keep()

    def tell(self, event: Event) -> None:
        """Add what happened; it is kept soon, and within `EVERY` seconds."""
        match event:
            case RunStarted(stage=stage):
                self._stage = stage
                self._due = monotonic()  # what has been done is kept before more is
            case BlockEnded(outcome) if self._stage:
                self._add("unit", stage=self._stage, **outcome.to_json())
            case BlockEnded(outcome):
                self._add("block", **outcome.to_json())
            case BlockRetried():
                self._add("retried", **asdict(event))
            case WorkerJoined(worker, numerics, device):
                self._add("joined", worker=worker, numerics=numerics and numerics.to_json(), device=device)
            case WorkerLeft():
                self._add("left", **asdict(event))
            case Noticed(message):
                self._add("noticed", message=message)
        if len(self._lines) >= LINES or (self._new and monotonic() >= self._due):
            self._keep()

    def end(self, report: Report) -> None:
        """Keep how the run ended."""
        self._add("ended", report=report.to_json())
        self._keep()

    def _add(self, event: str, **facts: Any) -> None:
        self._new = True
        self._lines.append(json.dumps({"event": event, "at": _now(), **facts}))

    def _keep(self) -> None:
        began, self._new = monotonic(), False
        try:
            self._records.put(_segment(self._run, self._segment), "".join(f"{line}\n" for line in self._lines).encode())
        except OrphanError:  # which whoever runs is told by the lease
            return
        except OutputError as error:
            if not self._refused:
                self._on_problem(f"the run record is not kept: {error}")
            self._refused = True
        self._due = monotonic() + min(EVERY, (monotonic() - began) / SHARE)
        if len(self._lines) >= LINES:
            self._segment += 1
            self._lines.clear()


def lines_of(output: Output, run: int) -> Iterator[dict[str, Any]]:
    """Each line of a run's record, in order; lines that cannot be read are left out."""
    return (line for line in all_lines_of(output, run) if line is not None)


def all_lines_of(output: Output, run: int) -> Iterator[dict[str, Any] | None]:
    """Each line of a run's record, in order; None for one that cannot be read."""
    records = output.records
    for name in records.names(f"run-{run:04d}/"):
        if not name.endswith(".jsonl"):
            continue
        yield from map(_read, (records.get(name) or b"").splitlines())


def _read(line: bytes) -> dict[str, Any] | None:
    """A line of a record; None if it is damaged, or counts blocks or voxels by what is no number of them.

    To Python, true is the number 1; and to NumPy, an index that means all blocks.
    """
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or not all(is_count(read[name]) for name in ("block", "voxels") if name in read):
        return None
    return read


def recorded_runs(output: Output) -> list[int]:
    """Numbers of the runs that have left a record, the oldest first: as many as there are, whatever they claim to be."""
    found = (re.fullmatch(r"run-([0-9]{4,})/[0-9]+\.jsonl", name) for name in output.records.names("run-"))
    return sorted({int(match[1]) for match in found if match})


def fruitless_runs(output: Output) -> int:
    """How many of the newest runs, one after another, have done no block, nor a unit of a coarser level."""
    newest = newest_run(output.records)
    for run in reversed(recorded_runs(output)):
        if any(line.get("event") in ("block", "unit") and line.get("status") == "done" for line in lines_of(output, run)):
            return newest - run
    return newest


def recipe_of(output: Output) -> Recipe:
    """The recipe that an output was begun with.

    Raises
    ------
    OutputError
        If the output does not have one that can be read.
    """
    try:
        recipe = Recipe.from_json(output.attributes["recipe"])
        rank = recipe.volume.rank  # an image has no shards along z
        if (recipe.plan.region, recipe.plan.unit[-rank:]) != (output.region, output.unit[-rank:]):
            raise ValueError("its plan is that of another output")
    except Exception as error:  # metadata can be wrong in any way
        raise OutputError(
            f"the output {output.path} does not say how it was made ({reason(error)}): start over with --overwrite"
        ) from error
    return recipe


def volume_of(output: Output, given: str | Path | Address | None) -> ZarrVolume:
    """The volume that an output was made from, open: as given, else where its newest record says.

    Raises
    ------
    InputError
        If it is not there, or another one is.
    """
    path = place_of(given) if given is not None else place_of(_recorded(output, "volume"))
    if given is None and isinstance(path, Path):
        _check_there(output, "volume", path)
    wanted = recipe_of(output).volume
    volume = open_volume(path, part=wanted.part)
    if volume.spec != wanted:
        raise OutputError(
            f"{path} has {volume.spec.shape} voxels {volume.spec.dtype}, the volume of {output.path} had {wanted.shape} "
            f"{wanted.dtype}, or another size of voxels or chunks: give the right one with --volume"
        )
    return volume


def model_of(output: Output, given: str | Path | None, predictor: str | None = None) -> ModelPlace:
    """Where the model that an output was made with is: as given, else as its newest record says.

    A class of the user's own is never imported because an output names it.

    Raises
    ------
    InputError
        If there is no such model; or none is given, and there is no record, or nothing at the place that it names.
    """
    if given is not None or predictor is not None:
        return model_at(given, predictor)
    if (own := recipe_of(output).predictor) is not None:
        raise OutputError(
            f"{output.path} was made by a class of its user, {own}, which is not imported unasked: from Python, name it with "
            "predictor='module:Class'"
        )
    path = Path(_recorded(output, "model"))
    _check_there(output, "model", path)
    return path


def _recorded(output: Output, kind: Literal["volume", "model"]) -> str:
    """Where the newest record of an output says that its volume or its model is."""
    place = _newest_start(output).get(kind)
    if not isinstance(place, str):
        raise OutputError(f"the run record of {output.path} is lost, so it does not say where its {kind} is: give --{kind}")
    return place


def _check_there(output: Output, kind: Literal["volume", "model"], path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110  a name that no disk would take is not there either
        raise OutputError(f"the {kind} of {output.path} was {path}, which is not there any more: give its place with --{kind}")


def _newest_start(output: Output) -> dict[str, Any]:
    """How the newest run that is recorded began; empty if none is."""
    for run in reversed(recorded_runs(output)):
        for line in lines_of(output, run):
            if line.get("event") == "started":
                return line
    return {}


def time_of(line: dict[str, Any]) -> datetime | None:
    """When a line was written; None if it is damaged, or says that this was before there were such clocks."""
    try:
        at = datetime.fromisoformat(line["at"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return at if at >= EPOCH else None


def _segment(run: int, number: int) -> str:
    return f"run-{run:04d}/{number:05d}.jsonl"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
