"""Test that numerics survive JSON, and differ if one field does."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from emseg_core.specs.numerics import Numerics

NUMERICS = Numerics("torch 2.13.0+cpu", "AVX2", "float32", 2, "c" * 64)


def test_json_round_trip() -> None:
    assert Numerics.from_json(json.loads(json.dumps(NUMERICS.to_json()))) == NUMERICS


@pytest.mark.parametrize("field", [field.name for field in fields(Numerics)])
def test_each_field_counts(field: str) -> None:
    value = getattr(NUMERICS, field)
    change: dict[str, Any] = {field: value + 1 if field == "threads" else f"{value}!"}
    assert replace(NUMERICS, **change) != NUMERICS
