"""Test what `make zoo` left here: programs of architectures of other libraries, and what was found out about them.

The programs have the operations and the shapes of weights of real networks, but other weights, which compress.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from zoo.facts import facts_of, name_of

from emseg_core.model.external_model import contract_of, read_external
from emseg_core.model.torch_export import OPERATIONS

PLACE = Path(__file__).parents[2] / "zoo"
ROWS: list[dict[str, Any]] = json.loads((PLACE / "facts.json").read_text())
KEPT = sorted(place.name.removesuffix(".pt2.xz") for place in (PLACE / "programs").glob("*.pt2.xz"))


@pytest.mark.parametrize("name", KEPT)
def test_architectures_of_other_libraries_are_found_as_they_are(name: str, tmp_path: Path) -> None:
    row = next(row for row in ROWS if name_of(row) == name)
    path = tmp_path / "network.pt2"
    path.write_bytes(lzma.decompress((PLACE / "programs" / f"{name}.pt2.xz").read_bytes()))
    path.with_name("network.pt2.toml").write_text(row["told"])
    assert facts_of(contract_of(read_external(path))) == row["facts"]


def test_every_architecture_is_taken_or_has_a_way_out() -> None:
    """At least one export of each, once what the message asks for is written beside it."""
    taken: dict[str, bool] = {}
    for row in ROWS:
        title = f"{row['library']}: {row['name']}"
        taken[title] = taken.get(title, False) or "facts" in row
    assert len(taken) >= 24
    assert {title for title, found in taken.items() if not found} == set()


def test_runs_of_exact_architectures_are_one_pass() -> None:
    exact = [row for row in ROWS if "wrong" in row.get("run", {}) and row["facts"]["local"]]
    assert len({row["name"] for row in exact}) >= 12
    assert [(row["name"], row["run"]) for row in exact if row["run"]["wrong"]] == []


def test_operations_of_architectures_may_be_used() -> None:
    used = {operation for row in ROWS for operation in row.get("operations", ())}
    assert len(used) > 40
    assert used - OPERATIONS == set()
