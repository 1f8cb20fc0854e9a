"""Test that every example in a docstring runs and gives the shown result."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import emseg

(ROOT,) = map(Path, emseg.__path__)
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py") if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


def test_examples_are_found() -> None:
    assert {"emseg.pages.charts", "emseg.pages.markup", "emseg.pages.page"} <= set(WITH_EXAMPLES)
