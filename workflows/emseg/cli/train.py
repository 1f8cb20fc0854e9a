"""`emseg train`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Literal

import click

from emseg.cli.exit import exit_with_message, stopped_message
from emseg.cli.saying import say
from emseg.runs.stop import StoppedError


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Resume from the checkpoint of an interrupted training.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Device to train on.", show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Processes on this machine that share each batch; with cuda, each uses one GPU.",
    show_default=True,
)
def train(config: Path, resume: bool, device: Literal["cpu", "cuda"], processes: int) -> None:
    """Train a network with the settings of the TOML file CONFIG.

    The model is written at the end. A table of its progress and pictures of its predictions are written beside it meanwhile.
    """
    from emseg.flows.train import train as flow
    from emseg.flows.training.processes import (
        is_first_process,
        one_error_report,
        select_gpu,
        start_processes,
        stop_with_starter,
    )

    if processes > 1:
        words = ["train", str(config), "--device", device, *(["--resume"] if resume else [])]
        sys.exit(start_processes(words, processes, device))

    def show(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == progress.steps:
            say(progress, err=True)

    try:
        with one_error_report():
            stop_with_starter()
            if device == "cuda":
                select_gpu()
            path = flow(config, resume=resume, device=device, on_progress=show)
    except (KeyboardInterrupt, StoppedError) as stopped:
        number = stopped.number if isinstance(stopped, StoppedError) else signal.SIGINT
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun got the signal, too, and sends it again
        exit_with_message(
            stopped_message(number, "The state at the latest validation is kept; resume from there with --resume"), 128 + number
        )
    if is_first_process():
        say(path)
