"""Build HTML and SVG from elements. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from emseg_core.printable import printable

EMPTY = frozenset({"meta"})
"""HTML elements without an end tag."""


class Markup(str):
    """Text that is inserted into a page unescaped: the result of `tag` or `joined`, or a constant of this package."""

    __slots__ = ()


def tag(name: str, /, *contents: object, **attributes: object) -> Markup:
    """Return an element. Everything that is not markup is escaped.

    Parameters
    ----------
    name
        Name of the element.
    contents
        Contents of the element, in this order.
    attributes
        Attributes by name; a trailing underscore is dropped, other underscores become hyphens.

    Returns
    -------
    Markup
        The element.

    Examples
    --------
    >>> tag("p", "2 < 3", tag("b", "really"), class_="odd", data_of='"x"')
    '<p class="odd" data-of="&quot;x&quot;">2 &lt; 3<b>really</b></p>'
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>" if name in EMPTY else f"<{name}{written}>{joined(contents)}</{name}>")


def joined(contents: Iterable[object]) -> Markup:
    """Concatenate contents. Everything that is not markup is escaped.

    Parameters
    ----------
    contents
        Markup, or values to be shown as text.

    Returns
    -------
    Markup
        The contents.
    """
    return Markup("".join(each if isinstance(each, Markup) else escaped(each) for each in contents))


def escaped(content: object) -> str:
    """Escape text for use between elements and in attributes, and replace control characters.

    Parameters
    ----------
    content
        Value to be shown as text.

    Returns
    -------
    str
        Escaped text.
    """
    return escape(printable(content, keep="\n\t"))
