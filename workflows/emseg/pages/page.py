"""Self-contained HTML pages: sections with tables, pictures and charts, which open and print without a network."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence

from emseg.pages.markup import Markup, joined, tag

GENERATOR = "emseg report"
"""Program that made a page; written near its start."""
STYLE = """
:root { color-scheme: light; font-size: 15px; }
body { margin: 0 auto; max-width: 1000px; padding: 1.5rem 2rem 3rem; background: #fff; color: #222;
  font: 1rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
header { border-bottom: 3px solid #2b7bba; margin-bottom: 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #d5d9de; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; }
.state { padding: .1rem .6rem; border: 2px solid; border-radius: 1rem; font-weight: 600; }
.headline { display: flex; flex-wrap: wrap; gap: .4rem 2.1rem; margin: .8rem 0; }
.headline b { display: block; font-size: 1.45rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.headline span { font-size: .85rem; color: #555; }
nav ul, ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .5rem 0; padding: 0; }
a { color: #1d5f94; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .22rem .9rem .22rem 0; border-bottom: 1px solid #eceff2; }
td { overflow-wrap: break-word; }
thead th { border-bottom: 2px solid #d5d9de; font-size: .85rem; color: #555; }
th.number, td.number { text-align: right; white-space: nowrap; }
table.facts th { font-weight: 600; color: #555; white-space: nowrap; }
svg { max-width: 100%; height: auto; font-family: inherit; }
li svg, td svg { vertical-align: -1px; }
figure { margin: 0; }
figcaption { font-size: .85rem; color: #444; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .9rem; margin: .4rem 0 1rem; }
.row svg { width: 100%; display: block; background: #eceff2; }
.note { color: #8a4b08; }
.small { font-size: .85rem; color: #555; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .88em; overflow-wrap: anywhere; }
@media print {
  :root { font-size: 10.5px; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  tr, figure, .row { break-inside: avoid; }
  .row { grid-template-columns: repeat(4, 1fr); gap: .5rem; }
}
"""


def document(title: str, lead: Iterable[Markup], sections: Mapping[str, Iterable[Markup]]) -> Markup:
    """Build a whole page.

    Parameters
    ----------
    title
        Title of the page.
    lead
        Contents before the table of contents.
    sections
        Contents of each section by its heading, to which the table of contents links.

    Returns
    -------
    Markup
        The HTML document.
    """
    links = [tag("li", tag("a", heading, href=f"#s{number}")) for number, heading in enumerate(sections)]
    headings = [tag("h2", heading, id=f"s{number}") for number, heading in enumerate(sections)]
    body = [tag("section", heading, *contents) for heading, contents in zip(headings, sections.values(), strict=True)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=GENERATOR),
        tag("meta", name="viewport", content="width=device-width"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    header = tag("header", tag("h1", title), *lead)
    page = tag("html", head, tag("body", header, tag("nav", tag("ul", *links)), tag("main", *body)), lang="en")
    return joined([Markup("<!DOCTYPE html>\n"), page, "\n"])


def is_page(start: bytes) -> bool:
    """Check whether a file was made by `document`.

    Parameters
    ----------
    start
        Start of the file, at least 1000 bytes if it has as many.

    Returns
    -------
    bool
        True if it was.
    """
    return start.startswith(b"<!DOCTYPE html>") and f'content="{GENERATOR}"'.encode() in start


def facts(*pairs: tuple[str, object]) -> Markup:
    """Show a table of names and values, without the values that are None.

    Returns
    -------
    Markup
        The element.
    """
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in pairs if value is not None]
    return tag("table", tag("tbody", *rows), class_="facts")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Collection[str] = ()) -> Markup:
    """Show a table.

    Parameters
    ----------
    headings
        Heading of each column.
    rows
        Cells of each row.
    numbers
        Headings of the columns of numbers, which are right-aligned.

    Returns
    -------
    Markup
        The element.
    """
    kinds = [{"class_": "number"} if heading in numbers else {} for heading in headings]
    head = [tag("th", heading, scope="col", **kind) for heading, kind in zip(headings, kinds, strict=True)]
    body = [tag("tr", *(tag("td", cell, **kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))


def paragraph(*contents: object, kind: str = "") -> Markup:
    """Show a paragraph.

    Parameters
    ----------
    contents
        Contents of the paragraph.
    kind
        ``note`` for missing information, ``small`` for details; empty for plain text.

    Returns
    -------
    Markup
        The element.
    """
    return tag("p", *contents, **({"class_": kind} if kind else {}))


def picture(png: bytes, shape: tuple[float, float], caption: str, marks: Iterable[Markup] = ()) -> Markup:
    """Embed a PNG.

    Parameters
    ----------
    png
        Content of the PNG file.
    shape
        Height and width of the picture, in the units of `marks`.
    caption
        Description for screen readers.
    marks
        SVG elements to draw over it.

    Returns
    -------
    Markup
        An SVG element.
    """
    height, width = shape
    data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = tag("image", href=data, width=width, height=height, preserveAspectRatio="none", style="image-rendering: auto")
    return tag("svg", tag("title", caption), image, *marks, viewBox=f"0 0 {width} {height}", role="img")


def product(lengths: Iterable[int]) -> str:
    """Format lengths along axes.

    Parameters
    ----------
    lengths
        Lengths along the axes.

    Returns
    -------
    str
        Text such as ``40 x 250 x 250``.
    """
    return " x ".join(map(str, lengths))


def amount(voxels: int) -> str:
    """Format a number of voxels.

    Parameters
    ----------
    voxels
        Number of voxels.

    Returns
    -------
    str
        The number, with 3 significant digits from a million on, and its unit.

    Examples
    --------
    >>> amount(999), amount(2_500_000)
    ('999 voxels', '2.5 megavoxels')
    """
    for size, name in ((1e12, "teravoxels"), (1e9, "gigavoxels"), (1e6, "megavoxels")):
        if voxels >= size:
            return f"{voxels / size:.3g} {name}"
    return f"{voxels:,} voxels"
