"""Scheduler side of the dashboard page: the boards of its runs, and the page, JSON and metrics made from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic

from distributed import Scheduler
from distributed.http.utils import RequestHandler
from tornado.ioloop import IOLoop

from emseg.dashboard.board import Board, RunDescription, RunUpdate
from emseg.dashboard.metrics import collector

PAGE_NAME = "emseg"
"""Name of the page, and of the scheduler extension that holds the boards."""
MAX_BOARDS = 8
"""Runs that are kept; runs that have ended are dropped first."""


class Boards:
    """Runs that a scheduler knows."""

    def __init__(self) -> None:
        self.known: dict[str, Board] = {}
        """Boards by the identifiers of their runs, the newest last."""

    def open(self, description: RunDescription) -> None:
        """Add a run, or replace what is known about it.

        Parameters
        ----------
        description
            Description of the run.
        """
        self.known.pop(description.run, None)
        while len(self.known) >= MAX_BOARDS:
            self.known.pop(next((run for run, board in self.known.items() if board.last.over), next(iter(self.known))))
        self.known[description.run] = board = Board(description)
        board.updated_at = monotonic()


class _Json(RequestHandler):
    """Handler that returns the state of each run as JSON, the newest last."""

    def get(self) -> None:
        boards: Boards = self.server.extensions[PAGE_NAME]
        self.write({"runs": [board.to_json() for board in boards.known.values()]})


def open_board(description: RunDescription, dask_scheduler: Scheduler) -> None:
    """Show a run on the dashboard of this scheduler. Called through `distributed.Client.run_on_scheduler`.

    Parameters
    ----------
    description
        Description of the run.
    dask_scheduler
        The scheduler, which Dask fills in.

    Raises
    ------
    RuntimeError
        If the scheduler has no dashboard.
    """
    if PAGE_NAME not in dask_scheduler.extensions:
        dask_scheduler.extensions[PAGE_NAME] = _install(dask_scheduler)
    boards: Boards = dask_scheduler.extensions[PAGE_NAME]
    boards.open(description)


def update_board(run: str, update: RunUpdate, dask_scheduler: Scheduler) -> bool:
    """Apply an update to the board of a run. Called through `distributed.Client.run_on_scheduler`.

    Parameters
    ----------
    run
        Name of the run.
    message
        The update.
    dask_scheduler
        The scheduler, which Dask fills in.

    Returns
    -------
    bool
        False if this scheduler does not know the run.
    """
    boards: Boards | None = dask_scheduler.extensions.get(PAGE_NAME)
    board = boards.known.get(run) if boards else None
    if board is not None:
        board.update(update, monotonic())
    return board is not None


def _install(scheduler: Scheduler) -> Boards:
    """Serve boards as JSON and metrics at once, and their page as soon as the scheduler has a dashboard."""
    boards = Boards()
    on_dashboard: list[Callable[[], object]] | None = getattr(scheduler, "on_dashboard", None)
    prefix = "/"
    if on_dashboard is None or getattr(scheduler, "dashboard_is_open", False):
        prefix = _add_page(scheduler, boards)
    else:
        on_dashboard.append(partial(_add_page, scheduler, boards))
    json_route = (rf"{prefix.rstrip('/')}/json/{PAGE_NAME}.json", _Json, {"dask_server": scheduler})
    scheduler.http_application.add_handlers(r".*", [json_route])
    collector.boards = boards.known
    return boards


def _add_page(scheduler: Scheduler, boards: Boards) -> str:
    """Add the page of the boards to the dashboard, and return the prefix of the dashboard's paths."""
    from distributed.dashboard.core import BokehApplication  # it takes most of a second to import, and few look at the page
    from distributed.dashboard.scheduler import template_variables

    from emseg.dashboard.page import show_run

    pages = [app for app in scheduler.http_application.applications if "/status" in getattr(app, "app_paths", ())]
    if not pages:
        raise RuntimeError("the scheduler has no dashboard")
    prefix: str = pages[0].prefix
    shared = template_variables(scheduler)
    if PAGE_NAME not in shared["pages"]:
        shared["pages"].insert(0, PAGE_NAME)  # adds a link to each page of the dashboard
    page = BokehApplication(
        {f"/{PAGE_NAME}": partial(show_run, boards.known)}, scheduler, prefix=prefix, template_variables=shared
    )
    scheduler.http_application.add_application(page)
    page.initialize(IOLoop.current())
    page.start()
    return prefix
