"""Test what a run prints on a terminal, and in a log where lines cannot be redrawn."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from rich.console import Console
from runs import PLANAR, plan_of

from emseg.cli import console as module
from emseg.cli.console import MAX_SHOWN, PLAIN_SECONDS, RunConsole
from emseg.runs.events import BlockEnded, BlocksInProgress, Event, Noticed, RunEnded, RunStarted, StopRequested
from emseg.runs.tally import Tally
from emseg_core.outcome import Outcome, Seconds

PLAN = plan_of((7, 29, 31), PLANAR)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def started(already_done: int = 0, dashboard: str | None = None, workers: int = 2, page: str | None = None) -> RunStarted:
    return RunStarted(Path("/data/[red]odd[/red].zarr"), PLAN, already_done, workers, dashboard, page)


def ended(block: int, cause: str | None = None) -> BlockEnded:
    return BlockEnded(Outcome(block, "failed" if cause else "done", PLAN.block(block).write.voxels, cause=cause))


def said(capsys: pytest.CaptureFixture[str], *events: Event) -> str:
    with RunConsole() as console:
        for event in events:
            console(event)
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    return err


def test_a_run_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(PLAN, 3)
    blocks = [ended(block) for block in range(3, len(PLAN))]
    for block in blocks:
        tally.count(block.outcome)
    links = "http://127.0.0.1:8787/status", 2, "http://127.0.0.1:8787/emseg"
    text = said(capsys, started(3, *links), *blocks, RunEnded(tally.report(75.0)))
    lines = text.splitlines()
    assert lines[0] == "output     /data/[red]odd[/red].zarr"
    unit, tile = (" x ".join(map(str, shape)) for shape in (PLAN.unit, PLAN.tile))
    assert f"{len(PLAN)} blocks of {unit} voxels in tiles of {tile}, on 2 worker processes" in lines[1]
    assert lines[2] == "resuming   3 blocks are already written"
    assert lines[3] == "dashboard  http://127.0.0.1:8787/status"
    assert lines[4] == "map        http://127.0.0.1:8787/emseg"
    assert lines[5].startswith(f"done       {len(PLAN) - 3} blocks in 1 min 15 s")
    assert lines[5].endswith("3 skipped, 0 failed")
    assert lines[7].startswith("limited by: ")
    assert len(lines) == 8
    assert "\x1b" not in text


def test_a_log_does_not_have_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Others may read a log, so it names the file that only this user can read. A terminal shows the link itself."""
    page = "http://127.0.0.1:8787/emseg?emseg-token=secret"
    text = said(capsys, started(0, page.replace("emseg?", "status?"), 2, page))
    assert "secret" not in text
    assert "map        http://127.0.0.1:8787/emseg?emseg-token=$(cat '/data/[red]odd[/.red].zarr.token')\n" in text
    assert text.count("$(cat ") == 2


def test_a_terminal_has_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, page = Terminal(), "http://127.0.0.1:8787/emseg?emseg-token=secret"
    monkeypatch.setattr(module, "Console", lambda **more: Console(**{**more, "stderr": False, "file": screen, "width": 200}))
    with RunConsole() as console:
        console(started(0, page, 2, page))
    assert page in screen.getvalue()


def test_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert "on this process" in said(capsys, started(workers=0))


def test_a_plain_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with RunConsole() as console:
        console(started())
        for block in range(25):
            clock.now += 1.0
            console(ended(block))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blocks")]
    assert len(lines) == 2
    assert f"10 of {len(PLAN)} done" in lines[0]


def test_a_plain_line_while_no_block_ends(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with RunConsole() as console:
        console(started())
        console(ended(0))
        for _ in range(50):
            clock.now += 0.5
            console(BlocksInProgress((1, 2), "tcp://10.0.0.7:4000", 5.0))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blocks")]
    assert len(lines) == 2


def test_how_fast_and_where_the_time_goes(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """There are two workers, one half as fast. Each predicts in 3 of 4 seconds."""
    with RunConsole() as console:
        console(started())
        for block in range(18):
            clock.now += 2.0
            worker, seconds = ("far:1", Seconds(2, 0, 6)) if block % 3 == 0 else ("near:2", Seconds(1, 0, 3))
            console(BlockEnded(Outcome(block, "done", 100, seconds, worker=worker)))
        console(BlocksInProgress((18,), "far:1", 1.0))
        clock.now += PLAIN_SECONDS
        console(BlocksInProgress((18,), "far:1", 1.0))
    blocks, time = capsys.readouterr().err.splitlines()[-2:]
    assert blocks.startswith(f"blocks     18 of {len(PLAN)} done, {len(PLAN) - 18} left; ")
    assert " Mvoxel/s; " in blocks
    assert blocks.endswith(" to go")
    assert time.startswith("time       network 75 %, reading 25 %; workers idle ")
    assert time.endswith("; slowest far:1, at 0.67 of the median speed")


def test_waiting_for_the_first_block(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with RunConsole() as console:
        console(started(3))
        clock.now += PLAIN_SECONDS
        console(BlocksInProgress((3, 4), "far:1", 9.0))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"blocks     waiting for the first of {len(PLAN) - 3} blocks (the first takes longest)"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (StopRequested(4, 20.0, signal.SIGINT), "finishing the 4 blocks in progress (up to 20 s); Ctrl-C again to stop now"),
        (StopRequested(1, 20.0, signal.SIGTERM), "finishing the block in progress (up to 20 s)"),
        (StopRequested(0, 20.0, 0), "no block is in progress"),
    ],
)
def test_stopping_and_stopped(event: StopRequested, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(PLAN, 0)
    tally.count(ended(0).outcome)
    lines = said(capsys, started(), ended(0), event, RunEnded(tally.report(2.0, signal.SIGINT))).splitlines()
    assert f"stopping: {line}" in lines
    assert any(shown.startswith(f"stopped    after 1 of {len(PLAN)} blocks in 2.0 s, ") for shown in lines)


@pytest.mark.parametrize(
    ("workers", "reason"), [(2, " (too few blocks to keep 2 busy)"), (1, "")], ids=["two workers", "one worker"]
)
def test_what_limits_a_run(workers: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stitching is not the reason for idle time if workers predict for most of the rest."""
    tally = Tally(PLAN, 0)
    for block in range(6):
        seconds = Seconds(1, 0, 10, 1, 2)
        tally.count(Outcome(block, "done", 100, seconds, worker=f"host:{block % workers}"))
    text = said(capsys, started(), RunEnded(tally.report(100 / workers)))
    assert f"limited by: predict. Workers idle 40 % of the time{reason}\n" in text


def test_a_cause_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, Noticed("[bold]odd[/bold]"), started(), ended(2, "[/] ValueError: [blue]x[/blue]"))
    assert "note: [bold]odd[/bold]" in text
    assert "failed     block 2: [/] ValueError: [blue]x[/blue]" in text


def test_a_flood_of_failures_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(PLAN, 0)
    failures = [ended(block, "no space") for block in range(MAX_SHOWN + 8)]
    for failure in failures:
        tally.count(failure.outcome)
    text = said(capsys, started(), *failures, RunEnded(tally.report(1.0)))
    assert text.count(": no space") == 2 * MAX_SHOWN
    assert "and 8 more" in text
    assert f"{len(PLAN) - MAX_SHOWN - 8} left" in text


def test_a_terminal_is_redrawn_and_left_clean(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=terminal, force_terminal=True, width=120))
    with RunConsole() as console:
        console(started())
        for block in range(9):
            clock.now += 1.0
            console(ended(block))
        clock.now += 1.0
        console(ended(9, "bad chunk"))
    text = terminal.getvalue()
    assert f"blocks     9 of {len(PLAN)} done, 1 failed, {len(PLAN) - 10} left; " in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h"), "the cursor stays hidden"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_terminal_is_left_clean_after_an_interruption(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=terminal, force_terminal=True, width=120))
    with pytest.raises(kind), RunConsole() as console:  # noqa: PT012  the body is what is interrupted
        console(started())
        raise kind
    assert "\x1b[?25h" in terminal.getvalue()
