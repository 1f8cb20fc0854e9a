"""Every example in a docstring runs and says the truth."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import emseg_core

MODULES = sorted(module.name for module in pkgutil.walk_packages(emseg_core.__path__, "emseg_core."))
WITH_EXAMPLES = [
    name for name in MODULES if any(test.examples for test in doctest.DocTestFinder().find(importlib.import_module(name)))
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


def test_examples_are_found() -> None:
    assert {"emseg_core.box", "emseg_core.grid.mirror", "emseg_core.grid.tiles", "emseg_core.specs.model"} <= set(WITH_EXAMPLES)
