"""`emseg train`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Literal

import click

from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.saying import say
from emseg_workflows.stop import StoppedError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a training that was stopped.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="What to train on.", show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Processes on this machine that share each batch; with cuda, each takes a GPU.",
    show_default=True,
)
def train(config: Path, resume: bool, device: Literal["cpu", "cuda"], processes: int) -> None:
    """Train a network as the TOML file CONFIG says.

    The model is written when it is done; its progress and pictures of what it finds lie beside it from the start.
    """
    from emseg_workflows.flows.processes import (  # noqa: PLC0415
        end_with_starter,
        failing_in_turn,
        leads,
        see_own_gpu,
        start_processes,
    )
    from emseg_workflows.flows.train import train as flow  # noqa: PLC0415

    if processes > 1:
        words = ["train", str(config), "--device", device, *(["--resume"] if resume else [])]
        sys.exit(start_processes(words, processes, device))

    def show(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == progress.steps:
            say(progress, err=True)

    try:
        with failing_in_turn():
            end_with_starter()
            if device == "cuda":
                see_own_gpu()
            path = flow(config, resume=resume, device=device, on_progress=show)
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun, which was signalled too, says it again
        leave(stopped_by(number, "with --resume it goes on from the latest validation"), 128 + number)
    if leads():
        say(path)
