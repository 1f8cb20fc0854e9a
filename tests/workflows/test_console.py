"""What a run says on the terminal, and on a log where nothing can be redrawn."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from runs import PLANAR, plan_of

from emseg.outcome import Outcome, Seconds
from emseg_workflows import console as module
from emseg_workflows.console import PLAIN_EVERY, SHOWN, RunConsole
from emseg_workflows.events import BlockEnded, Event, InHand, Noticed, RunEnded, RunStarted
from emseg_workflows.report import Tally

PLAN = plan_of((7, 29, 31), PLANAR)


class Clock:
    """A clock that stands until it is set."""

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
    assert lines[7].startswith("bottleneck ")
    assert len(lines) == 8
    assert "\x1b" not in text


def test_a_log_does_not_have_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    """Others may read it; it names the file that only this user can read. A terminal shows the link itself."""
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
            console(InHand((1, 2), "tcp://10.0.0.7:4000", 5.0))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("blocks")]
    assert len(lines) == 2


def test_how_fast_and_where_the_time_goes(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    """Two workers, one half as fast; each predicts in 3 of 4 seconds."""
    with RunConsole() as console:
        console(started())
        for block in range(18):
            clock.now += 2.0
            worker, seconds = ("far:1", Seconds(2, 0, 6)) if block % 3 == 0 else ("near:2", Seconds(1, 0, 3))
            console(BlockEnded(Outcome(block, "done", 100, seconds, worker=worker)))
        console(InHand((18,), "far:1", 1.0))
        clock.now += PLAIN_EVERY
        console(InHand((18,), "far:1", 1.0))
    blocks, time = capsys.readouterr().err.splitlines()[-2:]
    assert blocks.startswith(f"blocks     18 of {len(PLAN)} done, {len(PLAN) - 18} left; ")
    assert " Mvoxel/s; " in blocks
    assert blocks.endswith(" to go")
    assert time.startswith("time       read 25%, wait 0%, predict 75%, write 0%, stitch 0%; devices idle ")
    assert time.endswith("; slowest far:1, 0.67 of the median speed")


def test_a_cause_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, Noticed("[bold]odd[/bold]"), started(), ended(2, "[/] ValueError: [blue]x[/blue]"))
    assert "note: [bold]odd[/bold]" in text
    assert "failed     block 2: [/] ValueError: [blue]x[/blue]" in text


def test_a_flood_of_failures_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(PLAN, 0)
    failures = [ended(block, "no space") for block in range(SHOWN + 8)]
    for failure in failures:
        tally.count(failure.outcome)
    text = said(capsys, started(), *failures, RunEnded(tally.report(1.0)))
    assert text.count(": no space") == 2 * SHOWN
    assert "and 8 more" in text
    assert f"{len(PLAN) - SHOWN - 8} left" in text


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
