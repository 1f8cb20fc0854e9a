"""The run record: one JSON file per run inside the output. Losing it loses causes and timings, never voxels."""

from __future__ import annotations

import platform
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from emseg import __version__
from emseg.errors import OutputError
from emseg.recipe import Recipe
from emseg.store.ledger import Output
from emseg_workflows.bench import Job
from emseg_workflows.report import Report


class RunRecord:
    """The record of the run that is going on."""

    def __init__(self, output: Output, job: Job, workers: int) -> None:
        self._output = output
        self._name = f"run-{_count(output) + 1:04d}"
        self._facts: dict[str, Any] = {
            "volume": str(job.volume),
            "model": str(job.model),
            "fingerprint": job.recipe.fingerprint,
            "emseg": __version__,
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "workers": workers,
            "started": _now(),
        }

    def keep(self, report: Report | None) -> None:
        """Write what is known, with a report how the run ended.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        end = {} if report is None else {"ended": _now(), "report": report.to_json()}
        self._output.write_record(self._name, {**self._facts, **end})


def recipe_of(output: Output) -> Recipe:
    """The recipe that an output was begun with.

    Raises
    ------
    OutputError
        If the output does not have one that can be read.
    """
    try:
        return Recipe.from_json(output.attributes["recipe"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"the output {output.path} does not say how it was made ({error!r}): start over with --overwrite"
        ) from error


def input_of(output: Output, kind: Literal["volume", "model"], given: str | Path | None) -> Path:
    """Where the volume or the model that an output was made from is: as given, else as its newest record says.

    Raises
    ------
    OutputError
        If it is not given, and there is no record, or nothing at the place that it names.
    """
    if given is not None:
        return Path(given)
    record = output.read_record(f"run-{_count(output):04d}")
    if not isinstance(record, dict) or not isinstance(record.get(kind), str):
        raise OutputError(f"the run record of {output.path} is lost, so it does not say where its {kind} is: give --{kind}")
    path = Path(record[kind])
    if not path.exists():
        raise OutputError(f"the {kind} of {output.path} was {path}, which is not there any more: give its place with --{kind}")
    return path


def _count(output: Output) -> int:
    """Records so far."""
    number = 0
    while output.read_record(f"run-{number + 1:04d}") is not None:
        number += 1
    return number


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
