"""In the driver: tells the scheduler's page what happens, about once a second and in few bytes; never a voxel."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from emseg.outcome import Outcome, Seconds
from emseg_workflows.bench import Job
from emseg_workflows.dashboard.board import Message, Opening, State
from emseg_workflows.dashboard.server import NAME, open_board, tell
from emseg_workflows.events import BlockEnded, BlockRetried, Event, InHand, Noticed
from emseg_workflows.pace import Pace

EVERY = 1.0
"""Seconds between two messages."""


class Feed:
    """An observer that keeps a board on the scheduler up to date.

    Parameters
    ----------
    client_now
        The client in use; after the scheduler was lost, it is another one.
    done
        Whether each block is written already.
    """

    def __init__(
        self,
        client_now: Callable[[], Client],
        job: Job,
        done: NDArray[np.bool_],
        workers: int,
        on_problem: Callable[[Noticed], None],
    ) -> None:
        self._client_now = client_now
        self._client = client_now()
        self._job = job
        self._run = uuid4().hex[:12]
        self._states = np.where(done, State.DONE, State.WAITING).astype(np.uint8)
        self._changed: dict[int, int] = {}
        self._running: set[int] = set()
        self._newest: int | None = None
        self._voxels = self._failures = self._retries = 0
        self._stages = dict.fromkeys((field.name for field in fields(Seconds)), 0.0)
        self._began = self._sent = monotonic()
        self._pace = Pace(job.recipe.plan, int(done.sum()), workers, self._began)
        self.address: str | None = None
        """Where the map can be seen; None if it cannot be shown."""
        try:
            self._open()
        except Exception as error:  # a scheduler of others may lack emseg or Bokeh, forbid this, ...
            on_problem(Noticed(f"the dashboard shows no map of blocks: {' '.join(str(error).split())}"))
        else:
            self.address = map_address(self._client.dashboard_link)

    def __call__(self, event: Event) -> None:
        """Take note of an event; tell it now or later."""
        if self.address is None:
            return
        self._pace.tell(event, monotonic())
        match event:
            case BlockEnded(outcome):
                self._count(outcome)
            case BlockRetried(block):
                self._retries += 1
                self._change([block], State.WAITING)
            case InHand(blocks):
                self._running = set(blocks)
        if monotonic() >= self._sent + EVERY:
            self._send(over=False)

    def take_back(self, blocks: Iterable[int]) -> None:
        """Blocks that were written are not there any more."""
        self._change(blocks, State.WAITING)

    def close(self) -> None:
        """Tell that the run is over."""
        if self.address is not None:
            self._running.clear()
            self._send(over=True)

    def _count(self, outcome: Outcome) -> None:
        done = outcome.status == "done"
        self._change([outcome.block], State.DONE if done else State.FAILED)
        self._newest = outcome.block if done else self._newest
        self._voxels += outcome.voxels if done else 0
        self._failures += not done
        for stage in self._stages:
            self._stages[stage] += getattr(outcome.seconds, stage)

    def _change(self, blocks: Iterable[int], state: State) -> None:
        for block in blocks:
            self._states[block] = self._changed[block] = state
            self._running.discard(block)

    def _send(self, *, over: bool) -> None:
        now = self._sent = monotonic()
        if self._client_now().status != "running":
            return
        message = Message(
            changed=self._changed,
            running=tuple(self._running),
            newest=self._newest,
            voxels=self._voxels,
            failures=self._failures,
            retries=self._retries,
            stages=self._stages,
            seconds=now - self._began,
            pace=self._pace.to_json(now),
            over=over,
        )
        with suppress(Exception):  # the run goes on without its page; what is not told now is told with the next message
            if self._client is not self._client_now():
                self._client = self._client_now()
                self._open()
            if not self._call(tell, self._run, message):
                self._open()
                self._call(tell, self._run, message)
            self._changed = {}

    def _open(self) -> None:
        job, plan = self._job, self._job.recipe.plan
        states = zlib.compress(self._states.tobytes(), 1)
        self._call(
            open_board,
            Opening(
                run=self._run,
                volume=str(job.volume),
                output=str(job.output),
                classes=len(plan.model.classes),
                region=plan.region,
                grid=plan.grid,
                unit=plan.unit,
                scale=job.recipe.volume.scale,
                states=states,
                part=job.recipe.volume.part,
            ),
        )

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client.run_on_scheduler(function, *arguments)


def map_address(dashboard: str) -> str:
    """The address of the map on a dashboard, whose first page has this address."""
    parts = urlsplit(dashboard)
    return parts._replace(path=f"{parts.path.removesuffix('/status').rstrip('/')}/{NAME}").geturl()
