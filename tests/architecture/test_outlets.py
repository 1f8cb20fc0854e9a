"""Test that text is shown only by code that escapes it. The source is searched for calls that print, log or warn."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "pipeline" / "emseg_core").rglob("*.py"), *(ROOT / "workflows" / "emseg").rglob("*.py")]
ALLOWED = {
    ("cli/saying.py", "click.echo"),
    ("cli/console.py", "rich"),
    ("cli/console.py", "sys.stderr"),  # draws on the terminal, and guards it again
    ("printable.py", "sys.stderr"),
    ("printable.py", "sys.stdout"),
    ("pages/markup.py", "html"),
    ("runs/notices.py", "logging.getLogger"),
    ("store/files/credentials.py", "logging.getLogger"),  # silences a library
    ("model/export_model.py", "ensure_ascii"),  # writes TOML, which has no surrogates
    ("cli/command.py", "error.show"),  # click's help, which shows only our own text
}
"""Files and their outlets. All of these escape what they show."""


def outlets(tree: ast.AST) -> Iterator[str]:
    """Return the expressions of a module that show text to a user."""
    harmless = {id(part) for node in ast.walk(tree) for part in harmless_parts(node)}
    for node in ast.walk(tree):
        if id(node) in harmless:
            continue
        match node:
            case ast.Call(func=ast.Name("print" | "input" | "breakpoint" as name)):
                yield name
            case ast.Attribute(
                ast.Name("click"), "echo" | "secho" | "echo_via_pager" | "prompt" | "confirm" | "progressbar" as name
            ):
                yield f"click.{name}"
            case ast.Attribute(ast.Name("sys"), "stdout" | "stderr" | "__stdout__" | "__stderr__" as name):
                yield f"sys.{name}"
            case ast.Attribute(ast.Name("warnings"), "warn" | "warn_explicit" as name):
                yield f"warnings.{name}"
            case ast.Attribute(ast.Name("logging"), "getLogger" | "warning" | "error" | "info" as name):
                yield f"logging.{name}"
            case ast.Attribute(ast.Name("traceback"), name) | ast.Attribute(ast.Name("error"), "show" as name):
                yield f"error.{name}"
            case ast.Import([ast.alias(name=module)]) | ast.ImportFrom(module=str(module)):
                if (name := module.split(".")[0]) in ("rich", "tqdm", "curses", "html"):
                    yield name
            case ast.keyword("ensure_ascii"):
                yield "ensure_ascii"


def harmless_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the harmless parts: a call that prints escaped text, with the stream it names, and a check for a terminal."""
    match node:
        case ast.Call(func=ast.Name("print"), args=[ast.Call(func=ast.Name("printable" | "printable_lines"))]):
            yield node
            yield from (keyword.value for keyword in node.keywords)
        case ast.Attribute(value, "isatty"):
            yield value


def found_in(path: Path) -> set[tuple[str, str]]:
    """Return the outlets of a file, given by its path in the package."""
    place = path.relative_to(ROOT).as_posix().split("/", 2)[2]
    return {(place, name) for name in outlets(ast.parse(path.read_text()))}


def test_nothing_is_shown_past_the_places_that_escape() -> None:
    assert len(SOURCES) > 150
    assert set().union(*map(found_in, SOURCES)) == ALLOWED


@pytest.mark.parametrize(
    "line",
    [
        "print(text)",
        "print(printable(one), two)",
        "click.echo(text)",
        "click.secho(text)",
        "sys.stderr.write(text)",
        "from rich.progress import track",
        "import rich",
        "from html import escape",
        "warnings.warn(text)",
        "logging.getLogger().error(text)",
        "json.dumps(text, ensure_ascii=False)",
        "traceback.print_exc()",
    ],
)
def test_an_outlet_would_be_found(line: str) -> None:
    assert list(outlets(ast.parse(line)))


def test_the_console_says_all_in_one_place() -> None:
    tree = ast.parse((ROOT / "workflows" / "emseg" / "cli" / "console.py").read_text())
    printed = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "print"]
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Text"]
    assert len(printed) == 1
    assert {ast.unparse(node.args[0]) for node in texts} == {"printable(line)", "printable_lines(lines)"}
