"""Print all output of the command line, except that of the console of a run."""

from __future__ import annotations

import json
from typing import Any, Protocol

import click

from emseg_core.printable import printable_lines


class Result(Protocol):
    """The result of a command: text for people, and JSON for programs."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""


def say(*lines: object, err: bool = False, redraw: int = 0) -> None:
    """Print lines, with unprintable characters escaped.

    Parameters
    ----------
    lines
        The objects to print, one per line.
    err
        Print on the standard error stream, which is for everything but results.
    redraw
        Number of preceding terminal lines to erase first.
    """
    click.echo((f"\x1b[{redraw}F\x1b[J" if redraw else "") + printable_lines(lines), err=err)


def say_text(text: str) -> None:
    """Print the lines of a text."""
    lines = text.splitlines()
    say(*lines)


def say_json(document: dict[str, Any]) -> None:
    """Print a document as JSON."""
    say_text(json.dumps(document, indent=2))


def say_result(result: Result, as_json: bool = False) -> None:
    """Print a result, as text or as JSON."""
    if as_json:
        say_json(result.to_json())
    else:
        say_text(str(result))
