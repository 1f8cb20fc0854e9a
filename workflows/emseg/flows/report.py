"""`emseg report`: one HTML page about an output: settings, progress, pictures, numbers and speed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from emseg.flows.records.history import History, read_history
from emseg.flows.records.progress import Status
from emseg.flows.records.run_log import recipe_of, volume_of
from emseg.flows.reporting.contents import SegmentSizes, count_classes, read_sizes
from emseg.flows.reporting.sections import classes, segments, slices
from emseg.flows.reporting.speed import speed_over_time, time_by_stage
from emseg.flows.reporting.state import run_progress, runs, utc, what_was_run
from emseg.flows.status import status
from emseg.pages.colours import BLUE, RED
from emseg.pages.markup import Markup, tag
from emseg.pages.page import amount, document, is_page, paragraph
from emseg.runs.pace import format_duration
from emseg_core import __version__
from emseg_core.errors import InputError, OutputError
from emseg_core.store.files.atomic_write import output_error, output_path, write_bytes
from emseg_core.store.files.place import Place, sibling
from emseg_core.store.outputs.instances import descriptions
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import ZarrVolume

SUFFIX = ".report.html"
AMBER = "#b26a00"
PAGE_START_BYTES = 1000
"""Bytes at the start of a file that tell whether `emseg report` wrote it."""


def report(
    output: str | Place, page: str | Path | None = None, *, volume: str | Place | None = None, overwrite: bool = False
) -> Path:
    """Write an HTML page about an output, finished or not.

    The page is a single file that needs no network connection.

    Parameters
    ----------
    output
        The output of a finished or running run.
    page
        The file to write; by default ``OUTPUT.report.html`` beside the output. An older page is replaced.
    volume
        Path of the volume, if it was moved since the run. Without a volume, the pictures show no raw voxels.
    overwrite
        Replace a file that is something else.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    InputError
        If there is no output, `volume` is another one than that of the run, or the file cannot be written.
    """
    stored = open_output(output)
    recipe = recipe_of(stored)
    place = output_path(page if page is not None else sibling(stored.path, f"{stored.path.name}{SUFFIX}"))
    _check_place(place, overwrite)
    source, missing = _volume(stored, volume)
    found = status(output)
    history = read_history(stored, recipe.plan)
    sizes = {name: read_sizes(stored, name) for name in descriptions(stored.files)}
    sections = {
        "What was run": what_was_run(stored, recipe, found),
        "Progress": run_progress(stored, found, history),
        "Slices": slices(stored, recipe, source, missing),
        "Classes": classes(stored, count_classes(stored)),
        **{f"Segments: {name}": segments(name, found_sizes) for name, found_sizes in sizes.items()},
        "Speed": speed_over_time(history),
        "Where the time went": time_by_stage(history),
        "Runs": runs(found, history),
    }
    lead = _lead(stored, found, history, sizes)
    write_bytes(place, document(stored.path.name, lead, sections).encode("utf-8", "replace"))
    return place


def _check_place(place: Path, overwrite: bool) -> None:
    """Refuse to replace a file that `emseg report` did not write."""
    if not os.path.lexists(place):
        return
    if place.is_dir():
        raise OutputError(f"{place} is a folder, not a page: choose another name with -o")
    if overwrite:
        return
    try:
        with place.open("rb") as stream:
            ours = is_page(stream.read(PAGE_START_BYTES))
    except OSError as error:
        raise output_error(place, error) from error
    if not ours:
        raise OutputError(f"{place} already exists, and is no page of `emseg report`: choose another name, or use --overwrite")


def _volume(stored: Output, given: str | Place | None) -> tuple[ZarrVolume | None, str]:
    """Return the volume, or why there is none."""
    try:
        return volume_of(stored, given).first, ""
    except InputError as error:
        if given is not None:
            raise
        return None, str(error)


def _lead(stored: Output, found: Status, history: History, sizes: dict[str, SegmentSizes | None]) -> Iterator[Markup]:
    """Yield the head of the page."""
    running = {"held": "run in progress", "dead": "the run has died", "released": "no run in progress"}[found.state]
    words, colour = ("complete", BLUE) if found.exit_code == 0 else ("not complete", RED if found.failed else AMBER)
    yield paragraph(tag("span", words, class_="state", style=f"color: {colour}"), f" {running}")
    figures = [(f"{found.done:,} of {found.blocks:,}", "blocks done")]
    if found.failed:
        figures.append((f"{len(found.failed):,}", "blocks failed"))
    figures.append((amount(stored.region.voxels), "in the region"))
    figures += [(f"{each.segments:,}", f"segments: {name}") for name, each in sizes.items() if each is not None]
    figures += _speeds(history)
    yield tag("div", *(tag("div", tag("b", number), tag("span", name)) for number, name in figures), class_="headline")
    yield paragraph(tag("code", stored.path), f", seen on {utc(datetime.now(UTC))} UTC by emseg {__version__}", kind="small")


def _speeds(history: History) -> Iterator[tuple[str, str]]:
    """Yield figures of speed with their captions."""
    if history.work.voxels:
        yield f"{history.work.megavoxels_per_second:.3g} Mvoxel/s", "mean speed"
        yield format_duration(history.work.seconds), "time of all runs"
    if history.idle is not None:
        yield f"{history.idle:.0%}", "predictors idle"
