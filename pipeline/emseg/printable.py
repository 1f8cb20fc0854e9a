"""Text of anybody's, fit to be shown: the one place that escapes what a terminal, a log or a page would take for a command.

Names of classes, units, files, hosts and what libraries say come out of files that somebody else may have made. Each outlet
escapes what it is given: lines on a terminal, elements of a page, and all that is written to the error stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast
from unicodedata import category


def printable(text: object, keep: str = "") -> str:
    """Text on one line, as it is but for what is not printable: controls, directions of writing, line breaks, surrogates.

    Parameters
    ----------
    keep
        Characters that stay though they are not printable.

    Examples
    --------
    >>> print(printable("5 µm \x1b[31m"), printable("one\\ntwo"))
    5 µm \\x1b[31m one\\ntwo
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_plain(letter) else _escaped(letter) for letter in text)


def printable_lines(lines: Iterable[object]) -> str:
    """Lines below one another, none of which can begin another one."""
    return "\n".join(map(printable, lines))


class PrintableStream:
    """A stream that escapes what is not printable in all that is written to it, but for line breaks and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        """The stream itself, for what escapes all text and has control sequences of its own."""

    def write(self, text: str) -> int:
        """Write text; its length."""
        if not isinstance(text, str):
            raise TypeError(f"a stream of text takes no {type(text).__name__}")
        self.stream.write(printable(text, keep="\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one text after another."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_streams() -> None:
    """Have all that this process says shown, whatever it is: warnings, log lines and tracebacks of libraries as well.

    What the encoding of a stream does not have is escaped, too.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is not None and not isinstance(sys.stderr, PrintableStream):
        sys.stderr = cast("TextIO", PrintableStream(sys.stderr))


def _is_plain(letter: str) -> bool:
    return letter.isprintable() or category(letter) == "Zs"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
