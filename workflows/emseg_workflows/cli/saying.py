"""What a command prints: the only outlet of the command line, but for the console of a run."""

from __future__ import annotations

import click

from emseg.printable import printable_lines


def say(*lines: object, err: bool = False, over: int = 0) -> None:
    """Print lines; what is not printable in them is escaped.

    Parameters
    ----------
    err
        On the standard error stream, which is for all but results.
    over
        Lines of the terminal above, which are drawn over.
    """
    click.echo((f"\x1b[{over}F\x1b[J" if over else "") + printable_lines(lines), err=err)
