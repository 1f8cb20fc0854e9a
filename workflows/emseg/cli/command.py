"""The group of all commands, and their exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import FrameType
from typing import Any, cast

import click

from emseg.cli.exit import exit_stopped, exit_with_message
from emseg.runs.stop import StoppedError
from emseg_core import __version__
from emseg_core.errors import EmsegError, UnfinishedError
from emseg_core.printable import guard_streams

COMMANDS = (
    "evaluate",
    "export",
    "ingest",
    "label",
    "models",
    "plan",
    "preview",
    "report",
    "run",
    "status",
    "submit",
    "train",
    "verify",
    "view",
)
"""Names of all commands; each is a function of that name in a module of that name."""


class _Commands(Mapping[str, click.Command]):
    """All commands by name. Each is imported when it is first asked for."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in COMMANDS:
            raise KeyError(name)
        return cast("click.Command", getattr(import_module(f"emseg.cli.{name}"), name))

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@click.group(
    commands=cast("Any", _Commands()), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.version_option(__version__)
def cli() -> None:
    """Segment electron-microscopy volumes of any size, exactly as one pass over the whole volume would.

    \b
    emseg ingest STACK.tif volume.zarr --voxel-size 50 4 4
    emseg run volume.zarr --workers 8
    emseg preview volume.emseg.zarr
    """  # noqa: D301  click wants the backspace itself


def main() -> None:
    """Run the command line, and exit with the code for how it ended."""
    signal.signal(signal.SIGTERM, _terminate)
    guard_streams()
    try:
        cli.main(standalone_mode=False)
    except UnfinishedError as error:
        exit_with_message(f"error: {error}", 3)
    except EmsegError as error:
        exit_with_message(f"error: {' '.join(str(error).split())}", 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "emseg"
        exit_with_message(f"error: {error.format_message().rstrip('.')}: see `{command} --help`", 2)
    except (KeyboardInterrupt, click.Abort):
        exit_stopped(signal.SIGINT)
    except StoppedError as stopped:
        exit_stopped(stopped.number)


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module's signature
    """Turn SIGTERM into an exception."""
    raise StoppedError(number)
