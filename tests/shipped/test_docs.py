"""Test that the documentation builds without warnings, is complete, and refers only to what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from readmes import DOCS, PAGES, ROOT, run

import emseg
from emseg.cli import cli
from emseg_core import __version__

DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
SECTIONS = ["Context", "Decision", "Consequences", "Held by"]
PATH = re.compile(r"`((?:pipeline|workflows|tests|examples|deploy)/[\w./-]+)(?:::(\w+))?`")
ELSEWHERE = {"tests/example-data"}
"""Paths in other repositories."""
SOURCES = [*ROOT.glob("pipeline/emseg_core/**/*.py"), *ROOT.glob("workflows/emseg/**/*.py")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    run("sphinx-build", "-W", "--keep-going", "--quiet", str(DOCS), str(folder), folder=ROOT)
    return folder


def test_make_builds_it() -> None:
    done = run("make", "docs", "--dry-run", folder=ROOT)
    assert "sphinx-build -W --keep-going --fresh-env --quiet workflows/docs dist/docs" in done.stdout


def test_each_command_and_option_is_in_the_reference(site: Path) -> None:
    assert {page.stem for page in (DOCS / "reference" / "commands").glob("*.md")} == {"index", *cli.commands}
    for name, command in cli.commands.items():
        page = (site / "reference" / "commands" / f"{name}.html").read_text()
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("-")):
            assert f">{option}" in page or f" {option}" in page or f"{option} " in page, f"{name} {option}"


def test_each_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    assert [name for name in emseg.__all__ if f'id="emseg.{name}"' not in page] == []


def test_each_command_is_in_the_readme() -> None:
    listed = re.findall(r"^\| `emseg (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(cli.commands)


def test_decisions_are_numbered_and_listed() -> None:
    assert [page.name[:2] for page in DECISIONS] == [f"{number:02}" for number in range(1, len(DECISIONS) + 1)]
    assert len(DECISIONS) >= 66
    index = (DOCS / "decisions" / "index.md").read_text().splitlines()
    assert sorted(line for line in index if line[:1].isdigit()) == [page.stem for page in DECISIONS]


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_each_decision_names_a_test_that_holds_it(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem[:2]}. ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    held = re.findall(r"^- `(tests/[\w/]+\.py)::(\w+)`$", text.partition("## Held by")[2], re.MULTILINE)
    assert held
    for path, name in held:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "pipeline/README.md", "workflows/README.md", *PAGES])
def test_each_path_in_the_text_exists(page: str) -> None:
    for path, _ in PATH.findall((ROOT / page).read_text()):
        assert path in ELSEWHERE or (ROOT / path).exists(), path


def test_paths_are_found() -> None:
    assert sum(len(PATH.findall((ROOT / page).read_text())) for page in PAGES) > 100


def test_each_message_is_one_that_is_said() -> None:
    """The messages are the headings in code of the troubleshooting page."""
    texts = []
    for tree in (ast.parse(source.read_text()) for source in SOURCES):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values))
    messages = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if not any(message in text for text in texts)] == []


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == __version__
