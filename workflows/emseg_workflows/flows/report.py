"""`emseg report`: one page about an output, for people who were not there: settings, progress, pictures, numbers, speed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from emseg import __version__
from emseg.errors import InputError, OutputError
from emseg.store.instances import descriptions
from emseg.store.ledger import Output
from emseg.store.output import open_output
from emseg.store.place import Place, beside
from emseg.store.staging import output_error, output_path, write_bytes
from emseg.store.volume import ZarrVolume
from emseg_workflows.charts import BLUE, RED
from emseg_workflows.flows.contents import SegmentSizes, count_classes, read_sizes
from emseg_workflows.flows.history import History, read_history
from emseg_workflows.flows.record import recipe_of, volume_of
from emseg_workflows.flows.report_contents import classes, segments, slices
from emseg_workflows.flows.report_speed import speed_over_time, where_time_went
from emseg_workflows.flows.report_state import how_far_it_is, runs, utc, what_was_run
from emseg_workflows.flows.status import Status, status
from emseg_workflows.markup import Markup, tag
from emseg_workflows.pace import clock
from emseg_workflows.pages import Section, amount, document, headline, is_page, paragraph, state

SUFFIX = ".report.html"
AMBER = "#b26a00"
START = 1000
"""Bytes of a file that tell whether it is a page of ours."""


def report_page(
    output: str | Place, page: str | Path | None = None, *, volume: str | Place | None = None, overwrite: bool = False
) -> Path:
    """The HTML page that was made about an output, whether that is finished or not; it needs no network.

    Parameters
    ----------
    output
        What a run has written, or is writing.
    page
        The file to make; by default ``OUTPUT.report.html`` beside the output. An older page is replaced.
    volume
        Where the volume is, if not where the run found it. Without it, there are no raw voxels in the pictures.
    overwrite
        Replace a file that is something else.

    Raises
    ------
    InputError
        If there is no output, `volume` is not the one that it was made of, or the file cannot be written.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    place = output_path(page if page is not None else beside(stored.path, f"{stored.path.name}{SUFFIX}"))
    _check_place(place, overwrite)
    source, missing = _volume(stored, volume)
    found = status(output)
    history = read_history(stored, recipe.plan)
    sizes = {name: read_sizes(stored, name) for name in descriptions(stored.files)}
    sections = [
        Section("What was run", tuple(what_was_run(stored, recipe, found))),
        Section("How far it is", tuple(how_far_it_is(stored, found, history))),
        Section("Slices", tuple(slices(stored, recipe, source, missing))),
        Section("Classes", tuple(classes(stored, count_classes(stored)))),
        *(Section(f"Segments: {name}", tuple(segments(name, found_sizes))) for name, found_sizes in sizes.items()),
        Section("Speed", tuple(speed_over_time(history))),
        Section("Where the time went", tuple(where_time_went(history))),
        Section("Runs", tuple(runs(found, history))),
    ]
    lead = _lead(stored, found, history, sizes)
    write_bytes(place, document(stored.path.name, lead, sections).encode("utf-8", "replace"))
    return place


def _check_place(place: Path, overwrite: bool) -> None:
    """Refuse to replace what is no page of ours."""
    if not os.path.lexists(place):
        return
    if place.is_dir():
        raise OutputError(f"{place} is a folder, not a page: choose another name with -o")
    if overwrite:
        return
    try:
        with place.open("rb") as stream:
            ours = is_page(stream.read(START))
    except OSError as error:
        raise output_error(place, error) from error
    if not ours:
        raise OutputError(f"{place} already exists, and no `emseg report` has made it: choose another name, or use --overwrite")


def _volume(stored: Output, given: str | Place | None) -> tuple[ZarrVolume | None, str]:
    """The volume, or why there is none."""
    try:
        return volume_of(stored, given), ""
    except InputError as error:
        if given is not None:
            raise
        return None, str(error)


def _lead(stored: Output, found: Status, history: History, sizes: dict[str, SegmentSizes | None]) -> Iterator[Markup]:
    """What is said before all else."""
    complete = found.exit_code == 0
    goes_on = {"held": "a run goes on", "dead": "its run has died", "released": "no run goes on"}[found.state]
    badge = state("complete", BLUE) if complete else state("not complete", RED if found.failed else AMBER)
    yield paragraph(badge, f" {goes_on}")
    yield headline(
        [
            (f"{found.done:,} of {found.blocks:,}", "blocks done"),
            *((f"{len(found.failed):,}", "blocks failed") for _ in range(bool(found.failed))),
            (amount(stored.region.voxels), "in the region"),
            *((f"{each.segments:,}", f"segments: {name}") for name, each in sizes.items() if each is not None),
            *_speeds(history),
        ]
    )
    yield paragraph(tag("code", stored.path), f", seen on {utc(datetime.now(UTC))} UTC by emseg {__version__}", kind="small")


def _speeds(history: History) -> Iterator[tuple[str, str]]:
    if history.work.voxels:
        yield f"{history.work.megavoxels_per_second:.3g} Mvoxel/s", "mean speed"
        yield clock(history.work.seconds), "time of all runs"
    if history.idle is not None:
        yield f"{history.idle:.0%}", "predictors idle"
