"""`emseg train`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Literal

import click

from emseg.cli.exit import exit_stopped
from emseg.cli.saying import say
from emseg.runs.stop import StoppedError, signal_of


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
    from emseg.flows.training import processes as shared

    if processes > 1:
        words = ["train", str(config), "--device", device, *(["--resume"] if resume else [])]
        sys.exit(shared.start_processes(words, processes, device))

    def show(progress: Any) -> None:
        if progress.step % 50 == 0 or progress.step == progress.steps:
            say(progress, err=True)

    try:
        with shared.one_error_report():
            shared.stop_with_starter()
            if device == "cuda":
                shared.select_gpu()
            path = flow(config, resume=resume, device=device, on_progress=show)
    except (KeyboardInterrupt, StoppedError) as stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun got the signal, too, and sends it again
        exit_stopped(signal_of(stopped), "The state at the latest validation is kept; resume from there with --resume")
    if shared.is_first_process():
        say(path)
