"""The dashboard's page ``/emseg``: progress of a run, a map of its blocks, its speed over time, and its newest slice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.parse import quote

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure
from distributed.dashboard.components.scheduler import BOKEH_THEME, env

from emseg.dashboard.board import Board, State
from emseg.dashboard.drawing import COLOURS, MAP_WIDTH_PIXELS, arrange, cell_colours, cell_words, draw_slice
from emseg.pages.charts import Share, bar, legend
from emseg.pages.colours import STAGE_COLOURS
from emseg.pages.markup import Markup, joined, tag
from emseg.runs.pace import format_duration, format_time_left
from emseg_core.box import Box
from emseg_core.errors import EmsegError

REFRESH_MILLISECONDS = 1000
"""Time between two refreshes of the page."""
SILENCE_SECONDS = 15.0
"""Time without an update from the driver after which the page says so."""
COLUMN_SPACE_PIXELS = 30
"""Space between the map and the right column."""
SIDE_PIXELS = 400
"""Width of the right column."""
PICTURE_HEIGHT_PIXELS = 300
"""Largest height of a slice's pictures."""
PAGE_WIDTH_PIXELS = MAP_WIDTH_PIXELS + COLUMN_SPACE_PIXELS + SIDE_PIXELS
PICTURE_SPACE_PIXELS = 8
"""Space between a slice's pictures."""
INK, FAINT = "#2a3138", "#6b7680"
"""Colours of text."""
STAGE_WORDS = {
    "read": "reading",
    "wait": "waiting for the network",
    "predict": "network",
    "stitch": "stitching tiles",
    "write": "writing",
}
STYLE = f"""
div {{ font-family: Helvetica, Arial, sans-serif; color: {INK}; font-size: 13px; }}
.bk-clearfix {{ width: 100%; }}
.title {{ font-size: 15px; }}
.line {{ display: flex; align-items: center; margin-top: 8px; }}
.line > svg {{ flex: 1; height: 12px; border-radius: 3px; }}
.percent {{ margin-left: 12px; font-size: 17px; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 0 20px; list-style: none; margin: 8px 20px 8px 0; padding: 0; }}
.legend svg {{ border-radius: 2px; margin-right: 2px; vertical-align: -2px; }}
.facts {{ display: flex; gap: 36px; font-size: 12px; }}
.facts b {{ display: block; font-size: 17px; font-weight: normal; color: {INK}; }}
.faint, .facts {{ color: {FAINT}; }}
"""


def show_run(boards: Mapping[str, Board], scheduler: Any, extra: dict[str, Any], doc: Document) -> None:  # noqa: ARG001
    """Build the page for a viewer. Bokeh calls this through Dask, which passes the parameters after the first.

    Parameters
    ----------
    boards
        The boards of all known runs, the newest last.
    scheduler
        The scheduler.
    extra
        Variables of the template.
    doc
        The document to fill.
    """
    asked = doc.session_context.request.arguments.get("run", [b""])[0].decode(errors="replace")
    page = Page(boards, asked)
    doc.title = "emseg"
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME
    doc.add_root(page.root)
    doc.add_periodic_callback(page.refresh, REFRESH_MILLISECONDS)


class Page:
    """Page of one viewer: the requested run, or the newest one."""

    def __init__(self, boards: Mapping[str, Board], asked: str) -> None:
        self._boards, self._asked = boards, asked
        self._view: RunView | None = None
        self.root = column(Div(text="No run has started on this scheduler yet.", styles={"font-size": "16px"}))
        self._show()

    async def refresh(self) -> None:
        """Show what has changed. Bokeh calls this again only after it has returned."""
        self._show()
        if self._view is not None:
            await self._view.draw_newest()

    def _show(self) -> None:
        boards = list(self._boards.values())
        if not boards:
            return
        board = self._boards.get(self._asked, boards[-1])
        if self._view is None or self._view.board is not board:
            self._view = RunView(board)
            self.root.children = [self._view.layout]
        self._view.refresh([other for other in boards if other is not board])


class RunView:
    """View of one board."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._counts = np.zeros_like(board.counts)
        """What the map shows."""
        self._drawn: int | None = None
        """The block whose slice is shown."""
        self._head = _div(PAGE_WIDTH_PIXELS)
        self._stages = _div(SIDE_PIXELS)
        self._caption = _div(SIDE_PIXELS, "The newest slice appears here once a block is done.")
        self._cells, block_map = _new_map(board)
        self._speed = ColumnDataSource({"at": [], "speed": []})
        self._pictures = ColumnDataSource({name: [] for name in ("image", "left", "bottom", "width", "height")})
        self._speed_plot = _new_speed(self._speed)
        pictures = _bare(SIDE_PIXELS, PICTURE_HEIGHT_PIXELS, Range1d(0, PICTURE_HEIGHT_PIXELS))
        pictures.image_rgba("image", x="left", y="bottom", dw="width", dh="height", source=self._pictures)
        side = column(self._speed_plot, self._stages, self._caption, pictures)
        self.layout = column(self._head, row(block_map, side, spacing=COLUMN_SPACE_PIXELS), spacing=12)

    def refresh(self, others: list[Board]) -> None:
        """Draw what has changed.

        Parameters
        ----------
        others
            Boards of other runs, to which the page links.
        """
        board = self.board
        self._head.text = _headline(board, others)
        self._stages.text = _stages(board.last.pace.get("shares") or {})
        if changed := np.flatnonzero((board.counts != self._counts).any(axis=0)).tolist():
            colours = cell_colours(board)
            patches = {"colour": [(n, colours[n]) for n in changed], "words": [(n, cell_words(board, n)) for n in changed]}
            self._cells.patch(patches)
            self._counts = board.counts.copy()
        if len(board.speeds) > 1:
            at, speed = np.array(board.speeds).T
            unit, name = (3600.0, "hours") if at[-1] > 2 * 3600 else (60.0, "minutes") if at[-1] > 120 else (1.0, "seconds")
            self._speed.data = {"at": at / unit, "speed": speed / 1e6}
            self._speed_plot.xaxis.axis_label = f"{name} since the start"

    async def draw_newest(self) -> None:
        """Draw the newest slice. It is read in a thread, so that the dashboard stays responsive."""
        newest = self.board.last.newest
        if newest is None or newest == self._drawn:
            return
        try:
            drawn = await asyncio.to_thread(draw_slice, self.board.description, self.board.block_box(newest))
        except (EmsegError, OSError, ValueError) as error:
            self._caption.text = joined(["No picture: ", " ".join(str(error).split())])
        else:
            self._draw(*drawn)
            self._drawn = newest

    def _draw(self, raw: Any, both: Any, box: Box) -> None:
        tall, wide = (n * size for n, size in zip(raw.shape, self.board.description.scale[1:], strict=True))
        scale = min((SIDE_PIXELS - PICTURE_SPACE_PIXELS) / 2 / wide, PICTURE_HEIGHT_PIXELS / tall)
        height, width = tall * scale, wide * scale
        corners = {"left": [0.0, width + PICTURE_SPACE_PIXELS], "bottom": [PICTURE_HEIGHT_PIXELS - height] * 2}
        size = {"width": [width] * 2, "height": [height] * 2}
        self._pictures.data = {"image": [raw[::-1], both[::-1]], **corners, **size}
        z, y, x = str(box).split(",")
        self._caption.text = joined([tag("b", "Newest slice"), f": z {z.partition(':')[0]}, y {y}, x {x}"])


def _new_map(board: Board) -> tuple[ColumnDataSource, Any]:
    """Return the cells, of which `RunView.refresh` fills in colours and words, and their plot."""
    sheet = arrange(board)
    y, x = sheet.middles(board.cells)
    boxes = [board.cell_box(cell) for cell in range(len(y))]
    filled_in = {name: [""] * len(boxes) for name in ("colour", "words")}
    source = ColumnDataSource({"x": x, "y": y, "box": list(map(str, boxes)), **filled_in})
    plot = _bare(sheet.width, sheet.height, Range1d(sheet.height, 0))
    gap = 1 if min(sheet.cell) >= 5 else 0
    height, width = (length - gap for length in sheet.cell)
    cells = plot.rect("x", "y", width=width, height=height, fill_color="colour", line_color=None, source=source)
    plot.add_tools(HoverTool(renderers=[cells], tooltips="@words<br>@box", point_policy="follow_mouse"))
    tops, lefts = zip(*sheet.corners, strict=True)
    captions = [f"z {box.start[0]}:{box.stop[0]}" for box in boxes[:: board.cells[1] * board.cells[2]]]
    plot.text(lefts, [top - 4 for top in tops], text=captions, text_font_size="12px", text_color=FAINT)
    return source, plot


def _new_speed(source: ColumnDataSource) -> Any:
    options = {"x_axis_label": "seconds since the start", "outline_line_color": None, "toolbar_location": None, "tools": ""}
    plot = figure(width=SIDE_PIXELS, height=190, title="Speed, Mvoxel/s", **options)
    plot.varea("at", 0, "speed", source=source, fill_color=COLOURS[State.DONE], fill_alpha=0.15)
    plot.line("at", "speed", source=source, line_color=COLOURS[State.DONE], line_width=2)
    plot.y_range.start = plot.x_range.range_padding = 0
    plot.xgrid.visible = False
    plot.axis.minor_tick_line_color = None
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = FAINT
    plot.title.text_color = plot.xaxis.axis_label_text_color = INK
    plot.xaxis.axis_label_text_font_style = "normal"
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
    return plot


def _bare(width: float, height: float, y_range: Range1d) -> Any:
    """Return a plot in pixels, without axes."""
    size = {"frame_width": round(width), "frame_height": round(height), "x_range": Range1d(0, width), "y_range": y_range}
    plot = figure(toolbar_location=None, tools="", min_border=0, frame_align=False, outline_line_color=None, **size)
    plot.axis.visible = plot.grid.visible = False
    return plot


def _div(width: int, text: str = "") -> Div:
    return Div(width=width, text=text, stylesheets=[STYLE])


def _headline(board: Board, others: list[Board]) -> Markup:
    """Format the progress of the run."""
    totals, last, pace = board.totals, board.last, board.last.pace
    colours = {state.name.lower(): COLOURS[state] for state in (State.DONE, State.RUNNING, State.FAILED, State.WAITING)}
    shares = [Share(name, totals[name] / len(board), colour) for name, colour in colours.items()]
    numbers = {name: tag("b", f"{totals[name]:,}", class_=f"emseg-{name}") for name in colours}
    counts = [(colour, joined([numbers[name], f" {name}"])) for name, colour in colours.items()]
    links = [joined(["; ", tag("a", b.description.output, href=f"?run={quote(b.description.run)}")]) for b in others]
    condition = tag("span", f"\u2002{_condition(board)}", *links, class_="faint")
    blocks = tag("span", "of ", tag("span", f"{len(board):,}", class_="emseg-blocks"), " blocks", class_="faint")
    left = "0 s" if last.over else format_time_left(pace.get("seconds_left"), pace.get("plus_minus"))
    facts = {
        "Mvoxel/s": f"{(pace.get('speed') or 0) / 1e6:.3g}",
        "elapsed": format_duration(last.seconds),
        "left": left.replace("+-", "±"),
        "workers idle": "?" if pace.get("idle") is None else f"{pace['idle']:.0%}",
        "slowest worker": pace.get("slowest"),
    }
    tiles = [tag("span", tag("b", value), name) for name, value in facts.items() if value]
    return tag(
        "div",
        tag("div", tag("b", board.description.output), condition, class_="title"),
        tag("div", bar(shares), tag("b", f"{100 * totals['done'] / len(board):.1f} %", class_="percent"), class_="line"),
        tag("div", legend(counts), blocks, class_="line"),
        tag("div", *tiles, class_="facts"),
    )


def _condition(board: Board) -> str:
    """Return the condition of the run in words."""
    if board.last.over:
        return "has ended"
    silent = monotonic() - board.updated_at
    return f"no update for {format_duration(silent)}" if silent > SILENCE_SECONDS else "is running"


def _stages(shares: Mapping[str, float]) -> Markup:
    """Format the share of time that blocks spend in each stage."""
    if not shares:
        return Markup()
    parts = [Share(STAGE_WORDS[stage], share, STAGE_COLOURS[stage]) for stage, share in shares.items()]
    entries = [(part.colour, f"{part.name} {part.share:.0%}") for part in parts]
    return joined([tag("b", "Time per stage"), tag("div", bar(parts), class_="line"), legend(entries)])
