"""The run record: small numbered segments of JSON lines within the output. Losing it loses causes and timings, never voxels.

    OUT/emseg/run-0001/lease.json     process of the run, see `emseg_core.store.files.lease`
    OUT/emseg/run-0001/00000.jsonl    {"event": "started", ...}, followed by one line per event
    OUT/emseg/run-0001/00001.jsonl    the next thousand lines

Each time lines are added, the current segment is written as a whole, because object stores cannot append.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from emseg.runs.events import BlockEnded, BlockRetried, Event, Noticed, RunStarted, WorkerJoined, WorkerLeft
from emseg.runs.tally import Report
from emseg_core import __version__
from emseg_core.errors import OrphanError, OutputError
from emseg_core.outcome import is_count
from emseg_core.recipe import Recipe
from emseg_core.store.files.faults import describe_error
from emseg_core.store.files.lease import newest_run
from emseg_core.store.files.place import Address, parse_place
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume, open_volume

if TYPE_CHECKING:
    from emseg.tasks.segmenting import SegmentWork
    from emseg_core.model.model_place import ModelPlace

SEGMENT_LINES = 1000
"""Lines per segment."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_DELAY_SECONDS = 10.0
"""Longest time until new lines are written."""
MAX_TIME_SHARE = 0.05
"""Largest fraction of time spent on writing lines earlier. Blocks whose lines a killed driver did not write are recomputed."""


class RunRecord:
    """Writer of the record of the current run. If lines cannot be written, they are lost, but the run continues."""

    def __init__(
        self,
        output: Output,
        job: SegmentWork,
        workers: int,
        on_problem: Callable[[str], None],
        covering_runs: tuple[int, ...] | None = (),
    ) -> None:
        """Start a record.

        Parameters
        ----------
        output
            The output.
        job
            What the run computes.
        workers
            Number of workers.
        on_problem
            Called with a message the first time that lines cannot be written.
        covering_runs
            Runs whose records cover all blocks that are already done; None if the records are incomplete.
        """
        from emseg_core.model.ensemble import EnsemblePlace  # `emseg status` starts without it

        self._on_problem = on_problem
        self._warned = False
        self._records = output.records
        self._run = job.token.run
        self._segment = 0
        self._stage = ""
        """Stage after the blocks, empty before it."""
        self._lines: list[str] = []
        self._new = False
        self._due = monotonic()
        self._add(
            "started",
            volume=str(job.volume),
            model=str(job.model),
            **({"models": list(map(str, job.model.paths))} if isinstance(job.model, EnsemblePlace) else {}),
            fingerprint=job.recipe.fingerprint,
            generation=output.generation,
            tellers=covering_runs,
            emseg=__version__,
            python=platform.python_version(),
            host=socket.gethostname(),
            workers=workers,
            mixed_hardware=job.mixed_hardware,
        )
        self._write()

    def add(self, event: Event) -> None:
        """Add an event. It is written soon, at the latest after `MAX_DELAY_SECONDS` seconds.

        Parameters
        ----------
        event
            An event of the run.
        """
        match event:
            case RunStarted(stage=stage):
                self._stage = stage
                self._due = monotonic()  # the lines of a stage are written before the next stage starts
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
        if len(self._lines) >= SEGMENT_LINES or (self._new and monotonic() >= self._due):
            self._write()

    def end(self, report: Report) -> None:
        """Write how the run ended.

        Parameters
        ----------
        report
            Report of the run.
        """
        self._add("ended", report=report.to_json())
        self._write()

    def _add(self, event: str, **facts: Any) -> None:
        self._new = True
        self._lines.append(json.dumps({"event": event, "at": datetime.now(UTC).isoformat(timespec="seconds"), **facts}))

    def _write(self) -> None:
        began, self._new = monotonic(), False
        try:
            self._records.put(_segment(self._run, self._segment), "".join(f"{line}\n" for line in self._lines).encode())
        except OrphanError:  # the lease reports it to the run
            return
        except OutputError as error:
            if not self._warned:
                self._on_problem(f"the run record cannot be written: {error}")
            self._warned = True
        self._due = monotonic() + min(MAX_DELAY_SECONDS, (monotonic() - began) / MAX_TIME_SHARE)
        if len(self._lines) >= SEGMENT_LINES:
            self._segment += 1
            self._lines.clear()


def lines_of(output: Output, run: int) -> Iterator[dict[str, Any]]:
    """Read the lines of a run's record, skipping those that cannot be read.

    Parameters
    ----------
    output
        The open output.
    run
        Number of the run.

    Returns
    -------
    iterator of dict
        The lines in order.
    """
    return (line for line in all_lines_of(output, run) if line is not None)


def all_lines_of(output: Output, run: int) -> Iterator[dict[str, Any] | None]:
    """Read the lines of a run's record.

    Parameters
    ----------
    output
        The open output.
    run
        Number of the run.

    Yields
    ------
    dict or None
        The lines in order; None for each one that cannot be read.
    """
    records = output.records
    for name in records.names(f"run-{run:04d}/"):
        if not name.endswith(".jsonl"):
            continue
        yield from map(_read, (records.get(name) or b"").splitlines())


def _read(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a record; return None if it is damaged, or has a number of a block or of voxels that is not a count.

    In JSON, such a number could be true, which is 1 in Python, and as an index in NumPy selects all blocks.
    """
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or not all(is_count(read[name]) for name in ("block", "voxels") if name in read):
        return None
    return read


def recorded_runs(output: Output) -> list[int]:
    """List the runs that have a record.

    Parameters
    ----------
    output
        The open output.

    Returns
    -------
    list of int
        Numbers of the runs, the oldest first; only those that exist, however large the newest number is.
    """
    found = (re.fullmatch(r"run-([0-9]{4,})/[0-9]+\.jsonl", name) for name in output.records.names("run-"))
    return sorted({int(match[1]) for match in found if match})


def runs_without_progress(output: Output) -> int:
    """Count the newest consecutive runs that completed neither a block nor a write unit of a coarser level.

    Parameters
    ----------
    output
        The open output.

    Returns
    -------
    int
        Number of runs.
    """
    newest = newest_run(output.records)
    for run in reversed(recorded_runs(output)):
        if any(line.get("event") in ("block", "unit") and line.get("status") == "done" for line in lines_of(output, run)):
            return newest - run
    return newest


def recipe_of(output: Output) -> Recipe:
    """Read the recipe of an output.

    Parameters
    ----------
    output
        The open output.

    Returns
    -------
    Recipe
        The settings with which the output was started.

    Raises
    ------
    OutputError
        If the output has no valid recipe.
    """
    try:
        recipe = Recipe.from_json(output.attributes["recipe"])
        rank = recipe.volume.rank  # an image has no shards along z
        if (recipe.plan.region, recipe.plan.unit[-rank:]) != (output.region, output.unit[-rank:]):
            raise ValueError("its plan belongs to another output")
    except Exception as error:  # metadata can be wrong in any way
        raise OutputError(
            f"the output {output.path} does not record how it was made ({describe_error(error)}): start over with --overwrite"
        ) from error
    return recipe


def volume_of(output: Output, given: str | Path | Address | None) -> ZarrVolume:
    """Open the volume from which an output was made.

    Parameters
    ----------
    output
        The output.
    given
        Place of the volume; None for the one in the newest record.

    Returns
    -------
    ZarrVolume
        The volume.

    Raises
    ------
    InputError
        If the volume is missing, or is not the one that was used.
    """
    path = parse_place(given) if given is not None else parse_place(_recorded(output, "volume"))
    if given is None and isinstance(path, Path):
        _check_there(output, "volume", path)
    wanted = recipe_of(output).volume
    volume = open_volume(path, part=wanted.selection)
    if volume.spec != wanted:
        raise OutputError(
            f"{path} has {volume.spec.shape} voxels {volume.spec.dtype}, but the volume of {output.path} had {wanted.shape} "
            f"{wanted.dtype}, or the sizes of voxels or chunks differ: give the right volume with --volume"
        )
    return volume


def model_of(output: Output, given: str | Path | Sequence[str | Path] | None, predictor: str | None = None) -> ModelPlace:
    """Locate the model with which an output was made.

    A user-defined predictor class is never imported merely because an output names it.

    Parameters
    ----------
    output
        The output.
    given
        Place of the model, or those of an ensemble; None for the one in the newest record.
    predictor
        User-defined class, ``module:Class``, if the model is one.

    Returns
    -------
    ModelPlace
        The model.

    Raises
    ------
    InputError
        If the model is missing, or none is given and no record has its place.
    """
    from emseg_core.model.model_place import locate_model  # `emseg status` starts without it

    if given is not None or predictor is not None:
        return locate_model(given, predictor)
    if (own := recipe_of(output).predictor) is not None:
        raise OutputError(
            f"{output.path} was made with the user-defined class {own}, which is not imported automatically: from Python, pass "
            "predictor='module:Class'"
        )
    recorded = _newest_start(output).get("models")
    paths = recorded if isinstance(recorded, list) else [_recorded(output, "model")]
    for path in paths:
        _check_there(output, "model", Path(path))
    return locate_model([Path(path) for path in paths])


def _recorded(output: Output, kind: Literal["volume", "model"]) -> str:
    """Return the place of the volume or the model in the newest record of an output."""
    place = _newest_start(output).get(kind)
    if not isinstance(place, str):
        raise OutputError(f"the run record of {output.path} is lost, so the place of its {kind} is unknown: give --{kind}")
    return place


def _check_there(output: Output, kind: Literal["volume", "model"], path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110  returns False for impossible names too
        raise OutputError(f"the {kind} of {output.path} was {path}, which no longer exists: give its new place with --{kind}")


def _newest_start(output: Output) -> dict[str, Any]:
    """Return the first line of the newest record; empty if there is none."""
    for run in reversed(recorded_runs(output)):
        for line in lines_of(output, run):
            if line.get("event") == "started":
                return line
    return {}


def time_of(line: dict[str, Any]) -> datetime | None:
    """Return the time at which a line was written.

    Parameters
    ----------
    line
        A line of a record.

    Returns
    -------
    datetime or None
        None if the time is damaged, or lies before 1970.
    """
    try:
        at = datetime.fromisoformat(line["at"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return at if at >= EPOCH else None


def _segment(run: int, number: int) -> str:
    return f"run-{run:04d}/{number:05d}.jsonl"
