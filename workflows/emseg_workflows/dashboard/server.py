"""In the scheduler's process: the boards of its runs, and the page, the JSON and the metrics that are made of them."""

from __future__ import annotations

from time import monotonic

from distributed import Scheduler
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import template_variables
from distributed.http.utils import RequestHandler
from tornado.ioloop import IOLoop

from emseg_workflows.dashboard.board import Board, Message, Opening
from emseg_workflows.dashboard.page import show_run

NAME = "emseg"
"""Of the page, and of what the scheduler keeps for it."""
MOST_BOARDS = 8
"""Runs that are kept; those that are over are forgotten first."""


class Boards:
    """The runs that a scheduler was told of, the newest last."""

    def __init__(self) -> None:
        self.known: dict[str, Board] = {}

    def open(self, opening: Opening) -> None:
        """Begin with a run, or begin it anew."""
        self.known.pop(opening.run, None)
        while len(self.known) >= MOST_BOARDS:
            self.known.pop(next((run for run, board in self.known.items() if board.last.over), next(iter(self.known))))
        self.known[opening.run] = board = Board(opening)
        board.heard = monotonic()

    def all(self) -> list[Board]:
        """All of them."""
        return list(self.known.values())


class _Json(RequestHandler):
    """What is known of each run, the newest last."""

    def get(self) -> None:
        boards: Boards = self.server.extensions[NAME]
        self.write({"runs": [board.to_json() for board in boards.all()]})


def open_board(opening: Opening, dask_scheduler: Scheduler | None = None) -> None:
    """Show a run on the dashboard of this scheduler; called through `distributed.Client.run_on_scheduler`.

    Raises
    ------
    RuntimeError
        If the scheduler has no dashboard.
    """
    assert dask_scheduler is not None
    if NAME not in dask_scheduler.extensions:
        dask_scheduler.extensions[NAME] = _install(dask_scheduler)
    boards: Boards = dask_scheduler.extensions[NAME]
    boards.open(opening)


def tell(run: str, message: Message, dask_scheduler: Scheduler | None = None) -> bool:
    """Whether this scheduler knows the run, and so was told; called as `open_board`."""
    assert dask_scheduler is not None
    boards: Boards | None = dask_scheduler.extensions.get(NAME)
    board = boards.known.get(run) if boards else None
    if board is None:
        return False
    board.tell(message, monotonic())
    return True


def _install(scheduler: Scheduler) -> Boards:
    pages = [app for app in scheduler.http_application.applications if "/status" in getattr(app, "app_paths", ())]
    if not pages:
        raise RuntimeError("it has no dashboard")
    boards, prefix = Boards(), pages[0].prefix
    shared = template_variables(scheduler)
    if NAME not in shared["pages"]:
        shared["pages"].insert(0, NAME)  # a link on each page of the dashboard
    page = BokehApplication({f"/{NAME}": show_run(boards.all)}, scheduler, prefix=prefix, template_variables=shared)
    scheduler.http_application.add_application(page)
    page.initialize(IOLoop.current())
    page.add_handlers(r".*", [(rf"{prefix.rstrip('/')}/json/{NAME}.json", _Json, {"dask_server": scheduler})])
    page.start()
    _add_metrics(boards)
    return boards


def _add_metrics(boards: Boards) -> None:
    try:
        from emseg_workflows.dashboard.metrics import collector  # noqa: PLC0415
    except ImportError:  # a scheduler without prometheus-client has no /metrics
        return
    collector.boards = boards.all
