"""Whether a volume is still the one that an output was made from: what blocks read then, and what is there now.

Each block keeps a digest of the voxels that it read (`emseg.digest`), in the line of the run record that says how it ended.
Before a run that goes on writes anything, its workers read some of the blocks that are done again; `emseg verify --volume`
reads all.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emseg.digest import DIGITS
from emseg.errors import OutputError, UnfinishedError
from emseg.grid.order import strands_of
from emseg.outcome import Outcome, is_count
from emseg.store.ledger import Output
from emseg.store.place import Place
from emseg_workflows.dispatch import Policy
from emseg_workflows.events import BlockEnded, BlockRetried, Noticed, Observer, WorkerLeft
from emseg_workflows.flows.record import all_lines_of, recipe_of
from emseg_workflows.flows.status import named
from emseg_workflows.placement import Executor
from emseg_workflows.report import LISTED, Failure
from emseg_workflows.rereading import RereadWork
from emseg_workflows.stop import Stop

DRAWN = 300
"""Blocks that are read again before a run goes on: a change of one in a hundred of all is noticed 95 times of 100."""
NAMED = 5
"""Blocks that a refusal names."""
MANY = 100_000
"""Blocks whose records take seconds to read."""
OTHER = "it had read other voxels"
"""Why a block is named that can be read again."""
EVERY = 10.0
"""Seconds between two notices of how far the reading is."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What the records of an output tell of the voxels that its blocks have read."""

    digests: NDArray[np.uint64]
    """Of each block, as it was read last; ``(block,)``."""
    known: NDArray[np.bool_]
    """Of which blocks there is one, ``(block,)``."""
    runs: tuple[int, ...]
    """Runs whose records tell."""
    whole: bool
    """Whether these records tell of all blocks but those that a killed run stored in its last moments; they may not where one
    is lost, damaged, or was kept by an emseg that took no digests."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a run that goes on finds."""

    doubted: NDArray[np.bool_] | None
    """Blocks ``(z, y, x)`` that are stored, though no record tells what they read: a killed run stored them in its last
    moments, and they are computed again. None if there are none."""
    runs: tuple[int, ...] | None
    """Runs whose records tell of all other blocks; None if some blocks will never be told of."""


BEGINNING = Past(None, ())
"""Of a run that begins an output."""


@dataclass(slots=True)
class Reread:
    """What reading blocks again has shown."""

    blocks: int = 0
    """Blocks whose voxels were compared."""
    changed: int = 0
    """Of these, how many read other voxels than are there now."""
    unreadable: int = 0
    """Blocks whose voxels cannot be read now."""
    unknown: int = 0
    """Blocks that are written, though no record tells what they read."""
    listed: list[Failure] = field(default_factory=list)
    """The first of those that were changed or cannot be read."""

    @property
    def same(self) -> bool:
        """Whether all that was compared was the same."""
        return not (self.changed or self.unreadable)

    def __str__(self) -> str:
        unknown = f", {self.unknown} not compared as no record tells what they have read" if self.unknown else ""
        counts = f"{self.blocks} blocks read again, {self.changed} had read other voxels, {self.unreadable} cannot be read"
        return "\n".join([f"volume     {counts}{unknown}", *named("changed", tuple(self.listed))])


def compare_drawn(
    stored: Output, run: int, volume: Place, executor: Executor, policy: Policy, stop: Stop, notify: Observer
) -> Past:
    """What run number `run`, which goes on with an output, finds; up to `DRAWN` of the blocks that are done are read again.

    Which ones is drawn by lot, anew each time. It must have the lease, and have written nothing yet. A block that cannot be
    read any more does no harm, as nothing is computed from it: there is a notice.

    Raises
    ------
    OutputError
        If the volume has other voxels than a block has read.
    UnfinishedError
        If the volume was away for so long that they could not be compared.
    """
    reads, written = _reads_of(stored, run - 1, notify), stored.levels[0].written().ravel()
    untold = written & ~reads.known
    drawn = np.zeros_like(written)
    candidates = np.flatnonzero(written & reads.known)
    drawn[np.random.default_rng().choice(candidates, min(DRAWN, len(candidates)), replace=False, shuffle=False)] = True
    found = _reread(stored, reads, drawn, volume, executor, policy, stop, notify)
    if found.changed:
        changed = [failure for failure in found.listed if failure.cause == OTHER]
        boxes = "; ".join(failure.box for failure in changed[:NAMED])
        more = f"; and {found.changed - NAMED} more" if found.changed > NAMED else ""
        raise OutputError(
            f"{volume} has other voxels than {stored.path} was made from: of {found.blocks} blocks that were read again, "
            f"{found.changed} had read others ({boxes}{more}): restore the volume, choose another place with -o, or start over "
            "with --overwrite"
        )
    if found.unreadable:
        first = found.listed[0]
        notify(Noticed(f"{found.unreadable} of the blocks to be compared cannot be read any more: {first.cause}"))
    if not untold.any():
        return Past(None, reads.runs)
    if reads.whole:
        notify(Noticed(f"{int(untold.sum())} blocks were stored right before a run was killed: they are computed again"))
        return Past(untold.reshape(stored.outside.shape), reads.runs)
    notify(
        Noticed(
            f"no record tells what {int(untold.sum())} of {int(written.sum())} blocks have read of the volume: they are not "
            "compared with it"
        )
    )
    return Past(None, None)


def compare_all(stored: Output, runs: int, volume: Place, executor: Executor, stop: Stop, notify: Observer) -> Reread:
    """What reading each block of an output again shows, as far as the records of its so many runs tell what it had read.

    Raises
    ------
    UnfinishedError
        If the volume was away for so long that they could not be compared.
    """
    written, reads = stored.levels[0].written().ravel(), _reads_of(stored, runs, notify)
    found = _reread(stored, reads, written & reads.known, volume, executor, Policy(), stop, notify)
    found.unknown = int((written & ~reads.known).sum())
    return found


def _reread(
    stored: Output,
    reads: Reads,
    wanted: NDArray[np.bool_],
    volume: Place,
    executor: Executor,
    policy: Policy,
    stop: Stop,
    notify: Observer,
) -> Reread:
    """What reading the wanted blocks ``(block,)`` again shows."""
    found, recipe, total = Reread(), recipe_of(stored), int(wanted.sum())
    if not total:
        return found
    notify(Noticed(f"comparing {total} blocks with the volume"))
    work, strands, told = (
        RereadWork(recipe.plan, volume, recipe.volume.part),
        strands_of(recipe.plan, recipe.volume, wanted),
        monotonic(),
    )
    patient = replace(policy, max_failures=None, more_to_come=True)
    with closing(executor.run(work, strands, patient, stop)) as events:
        for event in events:
            match event:
                case BlockEnded(outcome):
                    _count(found, outcome, int(reads.digests[outcome.block]), recipe.plan.block(outcome.block).write)
                case BlockRetried() | Noticed() | WorkerLeft():
                    notify(event)
            if monotonic() > told + EVERY:
                told = monotonic()
                notify(Noticed(f"{found.blocks} of {total} blocks compared with the volume"))
    if found.blocks + found.unreadable < total and not stop.asked:
        raise UnfinishedError(
            f"{total - found.blocks} blocks of {stored.path} were not compared with {volume}: run again to go on"
        )
    found.listed.sort(key=lambda failure: failure.block)
    return found


def _count(found: Reread, outcome: Outcome, digest: int, box: Any) -> None:
    """Add what reading one block again shows, given the digest of what it had read."""
    if outcome.status == "failed":
        found.unreadable += 1
    else:
        found.blocks += 1
        if int(outcome.read, 16) == digest:
            return
        found.changed += 1
    if len(found.listed) < LISTED:
        found.listed.append(Failure(outcome.block, str(box), outcome.cause or OTHER))


def _reads_of(stored: Output, last: int, notify: Observer) -> Reads:
    """What the records of the runs 1 to `last` tell, as far as these belong to the output as it is now."""
    blocks = int(stored.outside.size)
    if blocks >= MANY:
        notify(Noticed("reading what the records tell of the blocks"))
    digests, known = np.zeros(blocks, np.uint64), np.zeros(blocks, bool)
    pages = {run: _Page(stored, run) for run in range(1, last + 1)}
    for page in pages.values():
        page.read(digests, known)
    ours = [run for run, page in pages.items() if page.ours]
    tellers = pages[last].tellers if last in ours else None  # a newer run without a record may have lost it
    whole = tellers is not None and all(run in pages and pages[run].whole for run in (*tellers, last))
    return Reads(digests, known, tuple(ours), whole)


class _Page:
    """The record of one run."""

    def __init__(self, stored: Output, run: int) -> None:
        self._stored, self._run = stored, run
        self.ours = False
        """Whether it tells of the output as it is now."""
        self.whole = False
        """Whether nothing is missing between its first line and its last."""
        self.tellers: tuple[int, ...] | None = None
        """Runs whose records tell of all blocks that were done when this run began; None if that is not known."""

    def read(self, digests: NDArray[np.uint64], known: NDArray[np.bool_]) -> None:
        """Take in what it tells."""
        stored, lost = self._stored, False
        for line in all_lines_of(stored, self._run):
            match line:
                case None:
                    lost = True
                case {"event": "started"}:
                    self._begin(line)
                    if not self.ours:
                        return
                case {"event": "block", "block": int(block), "status": "done", "read": str(read)} if self.ours:
                    if 0 <= block < len(known) and (value := _value(read)) is not None:
                        digests[block], known[block] = value, True
        names = [name for name in stored.records.names(f"run-{self._run:04d}/") if name.endswith(".jsonl")]
        gapless = names == [f"run-{self._run:04d}/{number:05d}.jsonl" for number in range(len(names))]
        self.whole = self.ours and gapless and not lost

    def _begin(self, line: dict[str, Any]) -> None:
        now = self._stored.attributes.get("fingerprint"), self._stored.generation
        self.ours = (line.get("fingerprint"), line.get("generation")) == now
        match line.get("tellers"):
            case list(runs) if all(map(is_count, runs)):
                self.tellers = tuple(runs)


def _value(digest: str) -> int | None:
    """A digest as a number, if it is one."""
    try:
        return int(digest, 16) if len(digest) == DIGITS else None
    except ValueError:
        return None
