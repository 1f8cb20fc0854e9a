"""Test strict TOML: each mistake is named in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from emseg.settings.toml import read_toml
from emseg_core.errors import InputError


@dataclass(frozen=True)
class Inner:
    """A table."""

    size: tuple[int, int] = (1, 2)
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    """A file."""

    name: str
    inner: Inner
    count: int = 1
    share: float = 0.5
    exact: bool = False
    mode: Literal["fast", "slow"] = "fast"
    notes: dict[str, str] = field(default_factory=dict)


GOOD = """
name = "a"
count = 3
share = 1
exact = true
mode = "slow"
[inner]
size = [5, 6]
rates = [1, 2.5]
[notes]
who = "me"
"""


def read(tmp_path: Path, text: str) -> Outer:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return read_toml(path, Outer)


def test_read(tmp_path: Path) -> None:
    outer = read(tmp_path, GOOD)
    assert outer == Outer("a", Inner((5, 6), (1.0, 2.5)), 3, 1.0, True, "slow", {"who": "me"})
    assert type(outer.share) is float
    assert read(tmp_path, 'name = "a"\n[inner]') == Outer("a", Inner())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count", "cuont", "unknown key cuont: did you mean count?"),
        ("rates", "rate", "unknown key inner.rate: did you mean inner.rates?"),
        ("share", "qqq", "unknown key qqq: did you mean"),
        ('name = "a"', "", "the key name is missing"),
        ("[inner]\nsize = [5, 6]\nrates = [1, 2.5]", "", "the key inner is missing"),
        ("count = 3", "count = 3.0", "count is 3.0, but must be a whole number"),
        ("count = 3", "count = true", "count is True, but must be a whole number"),
        ("share = 1", "share = '1'", "share is '1', but must be a number"),
        ("share = 1", "share = true", "share is True, but must be a number"),
        ("exact = true", "exact = 1", "exact is 1, but must be true or false"),
        ('mode = "slow"', 'mode = "slwo"', "mode is 'slwo', but must be one of 'fast', 'slow'"),
        ("[5, 6]", "[5]", "inner.size is [5], but must be a list of 2, each a whole number"),
        ("[5, 6]", "[5, 6.5]", "inner.size[1] is 6.5, but must be a whole number"),
        ("[1, 2.5]", "[1, 'x']", "inner.rates[1] is 'x'"),
        ("[1, 2.5]", "7", "inner.rates is 7, but must be a list of a number"),
        ('who = "me"', "who = 1", "notes.who is 1, but must be a text in quotes"),
        ("[inner]", "[[inner]]", "inner is [{"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "file.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "name = 1\nname = 2", "a.b"])
def test_not_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not TOML"):
        read(tmp_path, text)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML"):
        read_toml(tmp_path / "file.toml", Outer)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no configuration"):
        read_toml(tmp_path / "none.toml", Outer)
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path, Outer)
