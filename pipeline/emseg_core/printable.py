"""Escape text from outside, so that a terminal, a log or a web page does not interpret it as a command.

Names of classes, units, files and hosts, and messages of libraries, may come from files that others made. Each outlet
escapes its own text: lines on a terminal, elements of a page, and everything written to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast
from unicodedata import category


def printable(text: object, keep: str = "") -> str:
    r"""Return text on one line, with characters escaped that are not printable.

    These are control characters, marks of writing direction, line breaks and surrogates.

    Parameters
    ----------
    text
        Any object; it is converted to text.
    keep
        Characters to keep although they are not printable.

    Returns
    -------
    str
        The escaped text.

    Examples
    --------
    >>> print(printable("5 µm \x1b[31m"), printable("one\ntwo"))
    5 µm \x1b[31m one\ntwo
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or _is_plain(letter) else _escaped(letter) for letter in text)


def printable_lines(lines: Iterable[object]) -> str:
    """Escape each line and join them with line breaks, so that no line can start another one.

    Parameters
    ----------
    lines
        Lines, or what becomes one by `str`.

    Returns
    -------
    str
        Text without a line break at the end.
    """
    return "\n".join(map(printable, lines))


class PrintableStream:
    """A text stream that escapes unprintable characters, except line breaks and tabs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        """The wrapped stream, for callers that escape all text and write control sequences of their own."""

    def write(self, text: str) -> int:
        """Write text, escaped, and return its length.

        Parameters
        ----------
        text
            Any text.

        Returns
        -------
        int
            Length of `text` before it was escaped.

        Raises
        ------
        TypeError
            If it is not text.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text stream accepts str, not {type(text).__name__}")
        self.stream.write(printable(text, keep="\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts in order.

        Parameters
        ----------
        lines
            Any texts.
        """
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_streams() -> None:
    """Escape everything that this process prints to standard error, including warnings, log lines and tracebacks of libraries.

    Characters that the encoding of a stream lacks are escaped on standard output as well.
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
