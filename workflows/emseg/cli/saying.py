"""Print all output of the command line, except that of the console of a run."""

from __future__ import annotations

import click

from emseg_core.printable import printable_lines


def say(*lines: object, err: bool = False, redraw: int = 0) -> None:
    """Print lines, with unprintable characters escaped.

    Parameters
    ----------
    lines
        What to print, one object per line.
    err
        Print on the standard error stream, which is for everything but results.
    redraw
        Number of preceding terminal lines to erase first.
    """
    click.echo((f"\x1b[{redraw}F\x1b[J" if redraw else "") + printable_lines(lines), err=err)
