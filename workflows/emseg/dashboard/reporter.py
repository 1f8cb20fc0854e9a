"""Driver side of the dashboard page: send the progress of a run to the scheduler, about once a second, without any voxels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from emseg.dashboard.board import RunDescription, RunUpdate, State
from emseg.dashboard.server import PAGE_NAME, open_board, update_board
from emseg.runs.events import BlockEnded, BlockRetried, BlocksInProgress, Event, Noticed
from emseg.runs.pace import PHASES, Pace
from emseg.tasks.segmenting import SegmentWork
from emseg_core.outcome import Outcome

UPDATE_SECONDS = 1.0
"""Time between two updates."""


class DashboardReporter:
    """Observer that keeps the board of a run on the scheduler up to date.

    Parameters
    ----------
    client_now
        Returns the client in use, which changes when a lost scheduler is replaced.
    done
        Whether each block is already written, ``(block,) bool``.
    workers
        Number of workers.
    on_problem
        Called with a notice if the scheduler cannot show the page.
    """

    def __init__(
        self,
        client_now: Callable[[], Client],
        job: SegmentWork,
        done: NDArray[np.bool_],
        workers: int,
        on_problem: Callable[[Noticed], None],
    ) -> None:
        self._client_now = client_now
        self._job = job
        self._run = uuid4().hex[:12]
        self._states = np.where(done, State.DONE, State.WAITING).astype(np.uint8)
        self._update = RunUpdate(stages=dict.fromkeys(PHASES, 0.0))
        """The next update: the totals so far, and what has changed since the last update that arrived."""
        self._running: set[int] = set()
        self._began = self._sent = monotonic()
        self._pace = Pace(job.recipe.plan, int(done.sum()), workers, self._began)
        self.address: str | None = None
        """Address of the map of blocks; None if the scheduler cannot show it."""
        try:
            self._open()
        except Exception as error:  # a scheduler that emseg did not start may lack emseg or Bokeh, forbid this, ...
            on_problem(Noticed(f"the dashboard shows no map of blocks: {' '.join(str(error).split())}"))
        else:
            self.address = map_address(client_now().dashboard_link)

    def __call__(self, event: Event) -> None:
        """Record an event, and send an update if one is due."""
        if self.address is None:
            return
        self._pace.record(event, monotonic())
        match event:
            case BlockEnded(outcome):
                self._count(outcome)
            case BlockRetried(block):
                self._update.retries += 1
                self._change([block], State.WAITING)
            case BlocksInProgress(blocks):
                self._running = set(blocks)
        if monotonic() >= self._sent + UPDATE_SECONDS:
            self._send()

    def take_back(self, blocks: Iterable[int]) -> None:
        """Mark blocks as waiting again because their results are lost.

        Parameters
        ----------
        blocks
            Indices of the blocks.
        """
        self._change(blocks, State.WAITING)

    def close(self) -> None:
        """Send a last update that says that the run has ended."""
        if self.address is not None:
            self._running.clear()
            self._update.over = True
            self._send()

    def _count(self, outcome: Outcome) -> None:
        update, done = self._update, outcome.status == "done"
        self._change([outcome.block], State.DONE if done else State.FAILED)
        update.newest = outcome.block if done else update.newest
        update.voxels += outcome.voxels if done else 0
        update.failures += not done
        for stage in PHASES:
            update.stages[stage] += getattr(outcome.seconds, stage)

    def _change(self, blocks: Iterable[int], state: State) -> None:
        for block in blocks:
            self._states[block] = self._update.changed[block] = state
            self._running.discard(block)

    def _send(self) -> None:
        now = self._sent = monotonic()
        if self._client_now().status != "running":
            return
        update = self._update
        update.running, update.seconds, update.pace = tuple(self._running), now - self._began, self._pace.to_json(now)
        with suppress(Exception):  # the run continues without its page; the next update has what this one did not deliver
            if not self._call(update_board, self._run, update):  # a scheduler that has replaced a lost one
                self._open()
                self._call(update_board, self._run, update)
            update.changed = {}

    def _open(self) -> None:
        job, plan, volume = self._job, self._job.recipe.plan, self._job.recipe.volume
        description = RunDescription(
            run=self._run,
            volume=str(job.volume),
            output=str(job.output),
            region=plan.region,
            grid=plan.grid,
            unit=plan.unit,
            scale=volume.scale,
            states=zlib.compress(self._states.tobytes(), 1),
            part=volume.selection,
        )
        self._call(open_board, description)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client_now().run_on_scheduler(function, *arguments)


def map_address(dashboard: str) -> str:
    """Return the address of the map of blocks.

    Parameters
    ----------
    dashboard
        Address of the dashboard's first page.

    Returns
    -------
    str
        The address, with the query of `dashboard`.
    """
    parts = urlsplit(dashboard)
    return parts._replace(path=f"{parts.path.removesuffix('/status').rstrip('/')}/{PAGE_NAME}").geturl()
