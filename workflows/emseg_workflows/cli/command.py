"""The group of all commands, and how each end becomes an exit code."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from emseg import __version__
from emseg.errors import EmsegError, UnfinishedError
from emseg.printable import guard_streams
from emseg_workflows.cli.evaluate import evaluate
from emseg_workflows.cli.export import export
from emseg_workflows.cli.ingest import ingest
from emseg_workflows.cli.label import label
from emseg_workflows.cli.leaving import leave, stopped_by
from emseg_workflows.cli.models import models
from emseg_workflows.cli.plan import plan
from emseg_workflows.cli.preview import preview
from emseg_workflows.cli.report import report
from emseg_workflows.cli.run import run
from emseg_workflows.cli.status import status
from emseg_workflows.cli.submit import submit
from emseg_workflows.cli.train import train
from emseg_workflows.cli.verify import verify
from emseg_workflows.cli.view import view
from emseg_workflows.stop import StoppedError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def cli() -> None:
    """Segment electron-microscopy volumes of any size, exactly as one pass over the whole volume would.

    \b
    emseg ingest STACK.tif volume.zarr --voxel-size 50 4 4
    emseg run volume.zarr --workers 8
    emseg preview volume.emseg.zarr
    """


for command in (evaluate, export, ingest, label, models, plan, preview, report, run, status, submit, train, verify, view):
    cli.add_command(command)


def main() -> None:
    """Run the command line, and leave with the exit code that its end deserves."""
    signal.signal(signal.SIGTERM, _terminate)
    guard_streams()
    try:
        cli.main(standalone_mode=False)
    except UnfinishedError as error:
        leave(f"error: {error}", 3)
    except EmsegError as error:
        leave(f"error: {' '.join(str(error).split())}", 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "emseg"
        leave(f"error: {error.format_message().rstrip('.')}: see `{command} --help`", 2)
    except (KeyboardInterrupt, click.Abort):
        leave(stopped_by(signal.SIGINT), 130)
    except StoppedError as stopped:
        leave(stopped_by(stopped.number), 128 + stopped.number)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module's signature
    raise StoppedError(number)
