"""Facts about networks of the zoo that are kept for the tests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from emseg_core.specs.contract import Contract

NAMES = ("context", "lattice", "least", "crop", "local", "only_tile", "basis", "reason", "planar")


def facts_of(spec: Contract) -> dict[str, Any]:
    """Return what a contract says on tiles, as JSON has it."""
    found: dict[str, Any] = json.loads(json.dumps({name: getattr(spec, name) for name in NAMES}))
    return found


def name_of(row: Mapping[str, Any]) -> str:
    """Return the name of the file of an export."""
    return re.sub(r"\W+", "-", f"{row['library']} {row['name']} {row['export']}").strip("-").lower()
