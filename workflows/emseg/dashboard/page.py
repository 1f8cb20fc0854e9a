"""The dashboard's page ``/emseg``: progress of a run, a map of its blocks, its speed over time, and its newest slice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import quote

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.layouts import LayoutDOM
from bokeh.plotting import figure
from distributed.dashboard.components.scheduler import BOKEH_THEME, env

from emseg.dashboard.board import Board, State
from emseg.dashboard.drawing import COLOURS, MAP_WIDTH_PIXELS, Sheet, arrange, cell_colours, cell_words, draw_slice
from emseg.pages.markup import escaped
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
INK = "#2a3138"
FAINT = "#6b7680"
STAGE_COLOURS = {"read": "#7fbf9b", "wait": "#dfe3e8", "predict": "#2b7bba", "write": "#8e6bb0", "stitch": "#e0a458"}
STAGE_WORDS = {
    "read": "reading",
    "wait": "waiting for the network",
    "predict": "network",
    "write": "writing",
    "stitch": "stitching tiles",
}
STYLE = f"font-family:Helvetica,Arial,sans-serif;color:{INK};"


def show_run(boards: Callable[[], list[Board]]) -> Callable[[Any, dict[str, Any], Document], None]:
    """Return the function with which Bokeh builds the page for each viewer.

    Parameters
    ----------
    boards
        Returns the boards of all known runs, the newest last.

    Returns
    -------
    callable
        Takes the scheduler, template variables and the document to fill.
    """

    def show(scheduler: Any, extra: dict[str, Any], doc: Document) -> None:  # noqa: ARG001  Dask's signature
        asked = doc.session_context.request.arguments.get("run", [b""])[0].decode(errors="replace")
        page = Page(boards, asked)
        doc.title = "emseg"
        doc.template = env.get_template("simple.html")
        doc.template_variables.update(extra)
        doc.theme = BOKEH_THEME
        doc.add_root(page.root)
        doc.add_periodic_callback(page.refresh, REFRESH_MILLISECONDS)

    return show


class Page:
    """Page of one viewer: the requested run, or the newest one."""

    def __init__(self, boards: Callable[[], list[Board]], asked: str) -> None:
        self._boards = boards
        self._asked = asked
        self._view: RunView | None = None
        self.root = column(Div(text="No run has started on this scheduler yet.", styles={"font-size": "16px"}))
        self._show()

    async def refresh(self) -> None:
        """Show what has changed."""
        self._show()
        if self._view is not None:
            await self._view.draw_newest()

    def _show(self) -> None:
        boards = self._boards()
        if not boards:
            return
        board = next((board for board in boards if board.description.run == self._asked), boards[-1])
        if self._view is None or self._view.board is not board:
            self._view = RunView(board)
            self.root.children = [self._view.layout]
        self._view.refresh([other for other in boards if other is not board])


@dataclass(slots=True)
class RunView:
    """View of one board."""

    board: Board
    layout: LayoutDOM = field(init=False)
    _head: Div = field(init=False)
    _stages: Div = field(init=False)
    _caption: Div = field(init=False)
    _cells: ColumnDataSource = field(init=False)
    _speed: ColumnDataSource = field(init=False)
    _speed_axis: Any = field(init=False)
    _pictures: ColumnDataSource = field(init=False)
    _version: int = -1
    _drawn: int | None = None
    _drawing: bool = False

    def __post_init__(self) -> None:
        self._head = Div(width=PAGE_WIDTH_PIXELS)
        self._stages = Div(width=SIDE_PIXELS)
        self._caption = Div(width=SIDE_PIXELS, text=_small("The newest slice appears here once a block is done."))
        panels = row(
            self._new_map(),
            column(self._new_speed(), self._stages, self._caption, self._new_pictures()),
            spacing=COLUMN_SPACE_PIXELS,
        )
        self.layout = column(self._head, panels, spacing=12)

    def refresh(self, others: list[Board]) -> None:
        """Draw what has changed.

        Parameters
        ----------
        others
            Boards of other runs, to which the page links.
        """
        board = self.board
        self._head.text = _headline(board, others)
        self._stages.text = _stages(board.last.pace.get("shares"))
        if board.version != self._version:
            colours = cell_colours(board)
            changed = [n for n, (old, new) in enumerate(zip(self._cells.data["colour"], colours, strict=True)) if old != new]
            counted = range(len(colours)) if board.step != (1, 1, 1) else changed
            self._cells.patch(
                {
                    "colour": [(n, colours[n]) for n in changed],
                    "words": [(n, cell_words(board, n)) for n in counted],
                }
            )
            self._version = board.version
        if len(board.speeds) > 1:
            at, speed = np.array(board.speeds).T
            unit, name = (3600.0, "hours") if at[-1] > 2 * 3600 else (60.0, "minutes") if at[-1] > 120 else (1.0, "seconds")
            self._speed.data = {"at": at / unit, "speed": speed / 1e6}
            self._speed_axis.axis_label = f"{name} since the start"

    async def draw_newest(self) -> None:
        """Draw the newest slice. It is read in a thread, so that the dashboard stays responsive."""
        newest = self.board.last.newest
        if newest is None or newest == self._drawn or self._drawing:
            return
        self._drawing = True
        try:
            box = self.board.block_box(newest)
            raw, both, at = await asyncio.to_thread(draw_slice, self.board.description, box)
        except (EmsegError, OSError, ValueError) as error:
            self._caption.text = _small(f"No picture: {escaped(' '.join(str(error).split()))}")
        else:
            self._draw(raw, both, at)
            self._drawn = newest
        finally:
            self._drawing = False

    def _draw(self, raw: Any, both: Any, box: Box) -> None:
        tall, wide = (n * size for n, size in zip(raw.shape, self.board.description.scale[1:], strict=True))
        scale = min((SIDE_PIXELS - PICTURE_SPACE_PIXELS) / 2 / wide, PICTURE_HEIGHT_PIXELS / tall)
        height, width = tall * scale, wide * scale
        self._pictures.data = {
            "image": [raw[::-1], both[::-1]],
            "left": [0.0, width + PICTURE_SPACE_PIXELS],
            "bottom": [PICTURE_HEIGHT_PIXELS - height] * 2,
            "width": [width] * 2,
            "height": [height] * 2,
        }
        (z, *starts), (_, *stops) = box.start, box.stop
        y, x = (f"{start}:{stop}" for start, stop in zip(starts, stops, strict=True))
        self._caption.text = _small(f"<b>Newest slice</b>: z {z}, y {y}, x {x}")

    def _new_map(self) -> Any:
        board = self.board
        sheet = arrange(board)
        y, x = sheet.middles(board.cells)
        count = len(y)
        self._cells = ColumnDataSource(
            {
                "x": x,
                "y": y,
                "colour": [COLOURS[State.WAITING]] * count,
                "words": [""] * count,
                "box": [str(board.cell_box(cell)) for cell in range(count)],
            }
        )
        plot = _bare(
            frame_width=round(sheet.width),
            frame_height=round(sheet.height),
            x_range=Range1d(0, sheet.width),
            y_range=Range1d(sheet.height, 0),
        )
        gap = 1 if min(sheet.cell) >= 5 else 0
        height, width = (length - gap for length in sheet.cell)
        cells = plot.rect("x", "y", width=width, height=height, fill_color="colour", line_color=None, source=self._cells)
        plot.add_tools(HoverTool(renderers=[cells], tooltips="@words<br>@box", point_policy="follow_mouse"))
        tops, lefts = zip(*sheet.corners, strict=True)
        plot.text(lefts, [top - 4 for top in tops], text=self._layers(sheet), text_font_size="12px", text_color=FAINT)
        return plot

    def _layers(self, sheet: Sheet) -> list[str]:
        """Return the caption of each layer."""
        plane = self.board.cells[1] * self.board.cells[2]
        boxes = [self.board.cell_box(layer * plane) for layer in range(len(sheet.corners))]
        return [f"z {box.start[0]}:{box.stop[0]}" for box in boxes]

    def _new_speed(self) -> Any:
        self._speed = ColumnDataSource({"at": np.zeros(0), "speed": np.zeros(0)})
        plot = figure(width=SIDE_PIXELS, height=190, title="Speed, Mvoxel/s", toolbar_location=None, tools="")
        plot.varea("at", 0, "speed", source=self._speed, fill_color=COLOURS[State.DONE], fill_alpha=0.15)
        plot.line("at", "speed", source=self._speed, line_color=COLOURS[State.DONE], line_width=2)
        plot.y_range.start = 0
        plot.x_range.range_padding = 0
        plot.xgrid.visible = False
        plot.axis.minor_tick_line_color = None
        plot.axis.axis_line_color = plot.axis.major_tick_line_color = FAINT
        plot.outline_line_color = None
        plot.title.text_color = plot.xaxis.axis_label_text_color = INK
        plot.xaxis.axis_label_text_font_style = "normal"
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
        plot.xaxis.axis_label = "seconds since the start"
        self._speed_axis = plot.xaxis[0]
        return plot

    def _new_pictures(self) -> Any:
        self._pictures = ColumnDataSource({name: [] for name in ("image", "left", "bottom", "width", "height")})
        plot = _bare(
            frame_width=SIDE_PIXELS,
            frame_height=PICTURE_HEIGHT_PIXELS,
            x_range=Range1d(0, SIDE_PIXELS),
            y_range=Range1d(0, PICTURE_HEIGHT_PIXELS),
        )
        plot.image_rgba("image", x="left", y="bottom", dw="width", dh="height", source=self._pictures)
        return plot


def _bare(**options: Any) -> Any:
    """Return a plot without axes."""
    plot = figure(toolbar_location=None, tools="", min_border=0, frame_align=False, **options)
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None
    return plot


def _headline(board: Board, others: list[Board]) -> str:
    """Format the progress of the run as HTML."""
    totals, pace, blocks = board.totals, board.last.pace, len(board)
    bar = "".join(
        f'<div style="width:{100 * totals[state.name.lower()] / blocks:.4f}%;background:{COLOURS[state]}"></div>'
        for state in (State.DONE, State.RUNNING, State.FAILED)
    )
    legend = "".join(
        f'<span style="margin-right:22px;white-space:nowrap"><span style="display:inline-block;width:12px;height:12px;'
        f'border-radius:2px;background:{COLOURS[state]};margin-right:6px"></span>'
        f'<b class="emseg-{state.name.lower()}">{totals[state.name.lower()]:,}</b> {state.name.lower()}</span>'
        for state in (State.DONE, State.RUNNING, State.FAILED, State.WAITING)
    )
    idle = pace.get("idle")
    to_go = "0 s" if board.last.over else format_time_left(pace.get("seconds_left"), pace.get("plus_minus"))
    facts = [
        (f"{(pace.get('speed') or 0) / 1e6:.3g}", "Mvoxel/s"),
        (format_duration(board.last.seconds), "elapsed"),
        (to_go.replace("+-", "&plusmn;"), "left"),
        ("?" if idle is None else f"{idle:.0%}", "workers idle"),
    ]
    if pace.get("slowest"):
        facts.append((escaped(pace["slowest"]), "slowest worker"))
    tiles = "".join(
        f'<div style="margin-right:36px"><div style="font-size:17px">{value}</div>'
        f'<div style="font-size:12px;color:{FAINT}">{name}</div></div>'
        for value, name in facts
    )
    return (
        f'<div style="{STYLE}width:{PAGE_WIDTH_PIXELS}px">'
        f'<div style="font-size:15px;margin-bottom:8px"><b>{escaped(board.description.output)}</b>'
        f'<span style="color:{FAINT}">&ensp;{_condition(board)}{_links(others)}</span></div>'
        f'<div style="display:flex;align-items:center"><div style="flex:1;display:flex;height:14px;border-radius:3px;'
        f'overflow:hidden;background:{COLOURS[State.WAITING]}">{bar}</div>'
        f'<b style="margin-left:12px;font-size:17px">{100 * totals["done"] / blocks:.1f} %</b></div>'
        f'<div style="font-size:14px;margin:10px 0 14px">{legend}<span style="color:{FAINT}">of '
        f'<span class="emseg-blocks">{blocks:,}</span> blocks</span></div>'
        f'<div style="display:flex">{tiles}</div></div>'
    )


def _condition(board: Board) -> str:
    """Return the condition of the run as HTML."""
    if board.last.over:
        return "has ended"
    silent = monotonic() - board.updated_at
    return f"no update for {format_duration(silent)}" if silent > SILENCE_SECONDS else "is running"


def _links(others: list[Board]) -> str:
    """Return links to other runs as HTML."""
    return "".join(f'; <a href="?run={quote(b.description.run)}">{escaped(b.description.output)}</a>' for b in others)


def _stages(shares: dict[str, float] | None) -> str:
    """Format the share of time that blocks spend in each stage as HTML."""
    if not shares:
        return ""
    bar = "".join(
        f'<div style="width:{100 * part:.2f}%;background:{STAGE_COLOURS[name]}"></div>' for name, part in shares.items()
    )
    legend = "".join(
        f'<span style="margin-right:12px;white-space:nowrap"><span style="display:inline-block;width:9px;height:9px;'
        f'border-radius:2px;background:{STAGE_COLOURS[name]};margin-right:4px"></span>{STAGE_WORDS[name]} {part:.0%}</span> '
        for name, part in shares.items()
    )
    return (
        f'<div style="{STYLE}width:{SIDE_PIXELS}px">'
        f'<div style="font-size:13px;font-weight:bold;margin-bottom:5px">Time per stage</div>'
        f'<div style="display:flex;height:10px;border-radius:3px;overflow:hidden">{bar}</div>'
        f'<div style="font-size:12px;color:{FAINT};margin-top:5px;line-height:1.5">{legend}</div></div>'
    )


def _small(html: str) -> str:
    return f'<div style="{STYLE}font-size:13px">{html}</div>'
