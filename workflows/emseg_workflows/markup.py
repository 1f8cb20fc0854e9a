"""HTML and SVG made of elements; all text is escaped on its way in."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from emseg.printable import printable

EMPTY = frozenset({"meta"})
"""Elements that HTML wants without an end."""


class Markup(str):
    """What may stand in a page as it is: what `tag` and `joined` have made, or a constant of our own."""

    __slots__ = ()


def tag(name: str, /, *contents: object, **attributes: object) -> Markup:
    """An element; what is not markup is escaped.

    Parameters
    ----------
    contents
        What stands in it, in this order.
    attributes
        By name; an underscore at the end is dropped, and others are hyphens.

    Examples
    --------
    >>> tag("p", "2 < 3", tag("b", "really"), class_="odd", data_of='"x"')
    '<p class="odd" data-of="&quot;x&quot;">2 &lt; 3<b>really</b></p>'
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{written}>" if name in EMPTY else f"<{name}{written}>{joined(contents)}</{name}>")


def joined(contents: Iterable[object]) -> Markup:
    """One thing after another; what is not markup is escaped."""
    return Markup("".join(each if isinstance(each, Markup) else escaped(each) for each in contents))


def escaped(content: object) -> str:
    """What may stand between elements and in attributes; controls may not, however they are written."""
    return escape(printable(content, keep="\n\t"))
