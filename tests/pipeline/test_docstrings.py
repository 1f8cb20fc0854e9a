"""Test that every example in a docstring runs and gives the shown result."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import emseg_core

NEED_TORCH = () if importlib.util.find_spec("torch") else ("emseg_core.model.", "emseg_core.training.")
"""Layers that cannot be imported without torch."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(emseg_core.__path__, "emseg_core.")
    if not module.name.startswith(NEED_TORCH)
)
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
