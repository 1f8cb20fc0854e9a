"""Sections of a report about the settings, the progress and the runs of an output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from emseg.flows.records.history import History, RunFacts
from emseg.flows.records.progress import Status
from emseg.pages.charts import PALE, Share, stacked_bar
from emseg.pages.colours import BLUE, RED
from emseg.pages.markup import Markup, joined, tag
from emseg.pages.page import amount, facts, paragraph, product, table
from emseg.runs.pace import format_duration
from emseg.runs.tally import Failure, Report, Retry, quantity
from emseg_core.normalise import Normalisation
from emseg_core.recipe import Recipe
from emseg_core.store.outputs.output import Output

MAX_LISTED = 200
"""Largest number of failed blocks, retried blocks, and runs that are listed."""


def what_was_run(stored: Output, recipe: Recipe, found: Status) -> Iterator[Markup]:
    """Show volume, model and settings of the output.

    Parameters
    ----------
    stored
        The open output.
    recipe
        Its recipe.
    found
        Its status.

    Yields
    ------
    Markup
        Elements of the section.
    """
    volume, plan, numerics = recipe.volume, recipe.plan, recipe.numerics
    model, region = plan.model, plan.region
    yield tag("h3", "Volume and region")
    yield facts(
        ("volume", tag("code", found.volume) if found.volume else "not recorded"),
        ("shape", f"{product(volume.shape)} voxels (z, y, x), {volume.dtype}, in chunks of {product(volume.chunk)}"),
        ("channel", ", ".join(map(str, volume.channels)) or volume.channel),
        ("timepoint", volume.timepoint),
        ("voxel size", _voxel_size(recipe)),
        ("region", joined([tag("code", region), f", {product(region.shape)} voxels: {amount(region.voxels)}"])),
        ("output", tag("code", stored.path)),
    )
    yield tag("h3", "Model")
    yield facts(
        *_card(stored.attributes.get("model")),
        ("file", tag("code", found.model) if found.model else "not recorded"),
        ("SHA-256", tag("code", recipe.model_digest)),
        ("classes", ", ".join(stored.classes) or "none that exclude one another"),
        *(("stored head", str(head)) for head in stored.heads if head.kind != "classes"),
        ("network", f"{model.kind}, {model.gives}; context {product(model.context)} voxels (z, y, x) on each side"),
    )
    yield tag("h3", "Settings")
    yield facts(
        ("block", f"{product(plan.unit)} voxels, in chunks of {product(plan.chunk)}"),
        ("tile", f"{product(plan.tile)} voxels, in batches of {plan.batch}"),
        ("precision", numerics.precision + (f": {recipe.accuracy}" if recipe.accuracy else "")),
        ("numerical fingerprint", str(numerics)),
        ("normalisation", _normalisation(recipe)),
        ("probabilities", "stored with the labels" if recipe.probabilities else "not stored"),
        ("test-time augmentation", "mean over 8 rotations and flips of the image plane" if recipe.tta else "no"),
        ("coarser levels", ", ".join(f"by {product(step)}" for step in recipe.steps) or "none"),
        ("fingerprint", tag("code", recipe.fingerprint)),
    )


def _card(card: Any) -> list[tuple[str, str]]:
    """Return the entries of a model's card, its name first."""
    known = {key: value for key, value in card.items() if isinstance(value, str)} if isinstance(card, dict) else {}
    return sorted(known.items(), key=lambda item: item[0] != "name")


def _voxel_size(recipe: Recipe) -> str:
    units = recipe.volume.units[-recipe.volume.rank :]
    if None in units:
        return "not stated"
    return f"{' x '.join(f'{size:g}' for size in recipe.volume.scale)} {recipe.volume.units[-1]} (z, y, x)"


def _normalisation(recipe: Recipe) -> str:
    used = recipe.normalisation
    told = "; ".join(map(_of_one, (used, *used.others)))
    if not used.others:
        return told
    return f"for each {'channel' if recipe.volume.channels else 'model'}: {told}"


def _of_one(used: Normalisation) -> str:
    if used.scope == "slice":
        return "once per z slice"
    return f"once per volume: mean {used.mean[0]:.6g}, deviation {used.deviation[0]:.6g}"


def run_progress(stored: Output, found: Status, history: History) -> Iterator[Markup]:
    """Show the number of blocks that are done, failed and left, and list failed and retried blocks.

    Parameters
    ----------
    stored
        The open output.
    found
        Its status.
    history
        Its history.

    Yields
    ------
    Markup
        Elements of the section.
    """
    failed = len(found.failed)
    counts = (("done", found.done, BLUE), ("failed", failed, RED), ("left", found.left, PALE))
    yield stacked_bar([Share(name, count / found.blocks, colour) for name, count, colour in counts])
    who = f"run {found.run}, {found.holder or 'process unknown'}, last heartbeat {found.seen:.0f} s ago"
    speed = f"{found.megavoxels_per_second:.3g} Mvoxel/s" if found.megavoxels_per_second is not None else None
    blocks = f"{found.done:,} of {found.blocks:,} done, {failed:,} failed, {found.left:,} left"
    yield facts(
        ("blocks", blocks + (f", {found.outside:,} outside the mask" if found.outside else "")),
        ("coarser levels", f"{found.built:,} of {found.units:,} write units done" if found.units else None),
        ("running", {"held": who, "dead": f"no: {who}, died", "released": "no"}[found.state]),
        ("current speed", speed),
        ("time left", format_duration(found.seconds_left) if found.seconds_left is not None else None),
        ("SLURM", found.job or None),
        ("retries", f"{history.work.retried:,}"),
    )
    for flaw in found.flaws[:MAX_LISTED]:
        yield paragraph(f"Missing or damaged: {flaw}.", kind="note")
    yield from _blocks("Failed blocks", found.failed, {"cause": "cause"}, "`emseg status --json` lists all")
    details = {"cause of the last failed attempt": "cause", "done by": "worker"}
    yield from _blocks("Retried blocks", history.work.retries, details, f"see the run records in {stored.path / 'emseg'}")


def _blocks(heading: str, blocks: Sequence[Failure | Retry], details: Mapping[str, str], where: str) -> Iterator[Markup]:
    """List blocks, if there are any, with the attributes that `details` names by their headings."""
    if not blocks:
        return
    yield tag("h3", heading)
    listed, names = blocks[:MAX_LISTED], details.values()
    rows = [(f"{each.block:,}", tag("code", each.box), *(getattr(each, name) for name in names)) for each in listed]
    yield table(["block", "voxels (z, y, x)", *details], rows, numbers={"block"})
    yield from _more(len(blocks), where)


def _more(count: int, where: str) -> Iterator[Markup]:
    if count > MAX_LISTED:
        yield paragraph(f"And {count - MAX_LISTED:,} more: {where}.", kind="small")


def runs(found: Status, history: History) -> Iterator[Markup]:
    """Show when and where each run took place, how it ended, and its notices.

    Parameters
    ----------
    found
        Status of the output.
    history
        Its history.

    Yields
    ------
    Markup
        Elements of the section.
    """
    newest = history.runs[-MAX_LISTED:]
    if not newest:
        yield paragraph("The run records are lost: it is not known when and where the runs took place.", kind="note")
        return
    numbers = ("blocks done", "failed", "retries", "Mvoxel/s", "idle")
    rows = [(run.number, utc(run.began), utc(run.last), _end(run, found), *_numbers(run.work)) for run in newest]
    yield table(["run", "started (UTC)", "last activity", "ended", *numbers], rows, numbers={"run", *numbers})
    hosts = [(run.number, *(_said(run, name) for name in ("emseg", "python", "host")), _workers(run)) for run in newest]
    yield table(["run", "emseg", "Python", "host", "workers"], hosts, numbers={"run"})
    yield from _more(len(history.runs), f"see the run records in {found.output}")
    for run in newest:
        if run.lost:
            yield paragraph(f"{quantity(run.lost, 'line')} of the record of run {run.number} cannot be read.", kind="note")
    notices = [tag("li", f"run {run.number}: {notice}") for run in newest for notice in run.notices]
    if notices:
        yield tag("h3", "Notices")
        yield tag("ul", *notices)


def _numbers(work: Report) -> tuple[str, ...]:
    idle = "" if work.idle is None else f"{work.idle:.0%}"
    return f"{work.done:,}", f"{work.failed:,}", f"{work.retried:,}", f"{work.megavoxels_per_second:.3g}", idle


def _end(run: RunFacts, found: Status) -> str:
    if not run.current:
        return f"{run.end or 'not recorded'}; the output was restarted since"
    if run.end is None and run.number == found.run:
        return {"held": "running", "dead": "its process died", "released": "not recorded"}[found.state]
    return run.end or "not recorded: killed, or its record is lost"


def _said(run: RunFacts, name: str) -> str | int:
    said = run.start.get(name)
    return said if isinstance(said, str | int) else "not recorded"


def _workers(run: RunFacts) -> str | int:
    return "none (in the driver)" if run.start.get("workers") == 0 else _said(run, "workers")


def utc(time: datetime | None) -> str:
    """Format a time in UTC.

    Parameters
    ----------
    time
        A time with its zone; None if it is not known.

    Returns
    -------
    str
        Date and time to the second, or ``not recorded``.
    """
    return "not recorded" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
