"""Build settings of the documentation: `make docs`.

The pages of the reference are generated: each command from its click command, each public name from `emseg.__all__`. So they
cannot lag behind the code.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

import click

import emseg
from emseg.cli import cli
from emseg_core import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "emseg"
author = "The emseg developers"
project_copyright = "The emseg developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # they would turn --option into a dash
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
highlight_language = "none"

html_theme = "furo"
html_title = f"emseg {release}"
html_show_sourcelink = False

COMMAND = "<!-- options of emseg "
NAMES = "<!-- public names -->"


def setup(app: Sphinx) -> None:
    """Fill the generated pages when Sphinx reads them."""
    app.connect("source-read", fill)


def fill(_app: Sphinx, _page: str, content: list[str]) -> None:
    """Replace the markers of a page by the reference of the command, or of the public names, that they ask for."""
    text = content[0]
    if NAMES in text:
        text = text.replace(NAMES, "\n".join(public_names()))
    while COMMAND in text:
        before, _, after = text.partition(COMMAND)
        words, _, rest = after.partition(" -->")
        text = before + "\n".join(reference(words.split())) + rest
    content[0] = text


def reference(words: list[str]) -> Iterator[str]:
    """Yield the reference of a command, found by its words after ``emseg``, as lines of Markdown."""
    context = click.Context(cli, info_name="emseg")
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
        context = click.Context(command, info_name=word, parent=context)
    yield from ("```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.replace("\f", "").splitlines()
        if lines and lines[0] == "\b":
            yield from ("```text", *lines[1:], "```", "")
        else:
            yield from (*map(escaped, lines), "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            names, text = record
            yield from (f"`{names}`", f": {escaped(text)}", "")


def escaped(text: str) -> str:
    """Return a text of the command line as Markdown, in which code stays code."""
    parts = text.split("`")
    plain = "".join(rf"\{letter}" if letter in r"\*_<>[]#$|" else letter for letter in "\0".join(parts[::2])).split("\0")
    both = [part for pair in zip(plain, [*parts[1::2], ""], strict=False) for part in pair]
    return "".join(f"`{part}`" if index % 2 and part else part for index, part in enumerate(both))


def public_names() -> Iterator[str]:
    """Yield the reference of all names that the package declares as public, as lines of Markdown."""
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": [], "Modules and data": []}
    for name in emseg.__all__:
        kinds[kind_of(getattr(emseg, name))].append(name)
    for heading, names in kinds.items():
        if names:
            yield from (f"## {heading}", "")
        for name in names:
            yield from ("```{eval-rst}", *directive(name, getattr(emseg, name)), "```", "")


def kind_of(found: Any) -> str:
    """Return the heading below which a public name is documented."""
    if inspect.isclass(found):
        return "Errors" if issubclass(found, BaseException) else "Classes"
    return "Functions" if callable(found) else "Modules and data"


def directive(name: str, found: Any) -> Iterator[str]:
    """Yield the directive that documents a public name."""
    if inspect.isclass(found):
        yield f".. autoclass:: emseg.{name}"
        yield "   :members:"
        if issubclass(found, BaseException):
            yield "   :show-inheritance:"
    elif isinstance(found, types.ModuleType):
        yield f".. automodule:: {found.__name__}"
        yield "   :members:"
        yield "   :no-index:"
    elif callable(found):
        yield f".. autofunction:: emseg.{name}"
    elif isinstance(found, types.UnionType):
        yield f".. py:data:: emseg.{name}"
        yield ""
        yield f"   One of {', '.join(f'``{kind.__name__}``' for kind in get_args(found))}."
    else:
        yield f".. autodata:: emseg.{name}"
