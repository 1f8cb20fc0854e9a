"""Test the configuration of a training."""

from __future__ import annotations

import re
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from emseg.settings.training import TrainConfig, data_path, load_train_config
from emseg_core.errors import InputError
from emseg_core.model.bundled import DEFAULT_MODEL, resolve_model
from emseg_core.model.header import read_header

WORKFLOWS = Path(__file__).parents[3] / "workflows"
FIB25 = WORKFLOWS / "fib25.toml"
EXPLAINED = WORKFLOWS / "train.toml"
AFFINITIES, ORGANELLES = WORKFLOWS / "affinities.toml", WORKFLOWS / "organelles.toml"


def changed(tmp_path: Path, old: str, new: str) -> str:
    """Return the one-line error for a changed configuration."""
    text = FIB25.read_text()
    assert old in text
    path = tmp_path / "changed.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_train_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_bundled_model_is_the_one_configured() -> None:
    config = load_train_config(FIB25)
    spec, card = read_header(resolve_model())
    assert config.model.spec == spec
    assert config.name == card["name"] == DEFAULT_MODEL
    assert config.card.items() <= card.items()


@pytest.mark.parametrize("path", sorted(FIB25.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_each_shipped_configuration_says_where_its_data_come_from(path: Path) -> None:
    config = load_train_config(path)
    assert {"data", "attribution", "licence", "voxel_size"} <= config.card.keys()
    assert config.output.endswith(".safetensors")
    assert all(data.report is not None for data in config.data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width =", "widht =", "unknown key model.widht: did you mean model.width?"),
        ("noise =", "nose =", "unknown key fit.augment.nose: did you mean fit.augment.noise?"),
        ("[fit]", "[fitt]", "unknown key fitt: did you mean fit?"),
        ("tune = [130, 145]", "tune = [120, 145]", "data.train [0, 130] and data.tune [120, 145] overlap"),
        ("tune = [130, 145]", "tune = [145, 130]", "data.tune is [145, 130]"),
        ("tune = [130, 145]", "tune = [-5, 0]", "data.tune is [-5, 0]"),
        ('"volume"', '"space"', "data[0].neighbours is 'space'"),
        ("[1.0, 2.0]", "[1.0]", "fit.class_weights has length 1, but there are 2 classes"),
        ("kernel = [3, 3, 3]", "kernel = [3, 3, 4]", "odd"),
        ("steps = 5000", "steps = 100", "the warm-up takes 200 of 100 steps"),
        ("noise = 0.1", "noise = -1.0", "noise is -1.0"),
        ("tune = [130, 145]", "", "no data.tune is given"),
        ('ids = "flyem-fib25/train-labels.tif"', "", "neither ids nor labels"),
        ('ids = "', 'labels = "a.tif"\nids = "', "both ids and labels"),
        ('ids = "', 'labels = "', "labels without values"),
        ("train = [0, 130]", "train = [0, 130]\nweight = 0", "the weight 0.0"),
        ("[[data]]", "[data]", "data is {"),
        (
            "width = 16",
            'width = 16\nclasses = ["a", "b"]',
            "train-labels.tif give the classes inside, membrane",
        ),
        ("width = 16", 'width = 16\nclasses = ["a", "b", "c"]', "length 2, but there are 3 classes"),
        ("train = [0, 130]", "", "no data.train is given"),
        ("kernel = [3, 3, 3]\npooling = [2, 2, 2]", "kernel = [1, 3, 3]\npooling = [1, 2, 2]", 'set neighbours = "plane"'),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in changed(tmp_path, old, new)


def test_data_are_found_by_the_variable_or_beside_the_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    assert data_path("a/b.tif", tmp_path / "c.toml") == tmp_path / "a/b.tif"
    assert data_path("/a/b.tif", tmp_path / "c.toml") == Path("/a/b.tif")
    monkeypatch.setenv("EMSEG_DATA", "/data")
    assert data_path("a/b.tif", tmp_path / "c.toml") == Path("/data/a/b.tif")


def names_of(kind: type, where: str = "") -> list[str]:
    """Return the full name of each key of a dataclass and its members, such as ``fit.augment.noise``."""
    names = []
    for name, hint in get_type_hints(kind).items():
        names.append(where + name)
        within = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        names += names_of(within, f"{where}{name}.") if isinstance(within, type) else []
    return names


def test_every_key_is_explained_once() -> None:
    """The file is also valid for training. Heads, which take the place of classes, are explained in files of their own."""
    config = load_train_config(EXPLAINED)
    assert len(config.data) == 1
    lines = dict(lines_of(EXPLAINED))
    assert len(lines) == len(lines_of(EXPLAINED))
    of_heads = {
        name: line
        for path in (AFFINITIES, ORGANELLES)
        for name, line in lines_of(path)
        if name.partition(".")[2].startswith("head")
    }
    for name, line in (lines | of_heads).items():
        assert re.search(r"  # \w.{15}", line), f"{name} is not explained"
    assert sorted([*lines, *of_heads, "card"]) == sorted(names_of(TrainConfig))


def lines_of(path: Path) -> list[tuple[str, str]]:
    """Return the full name of each key in a configuration, before its card, and its line."""
    lines, table = [], ""
    for line in path.read_text().partition("[card]")[0].splitlines():
        if found := re.match(r"(\w+) =|\[+([\w.]+)\]", line):
            key, header = found.groups()
            table = f"{header}." if header else table
            lines.append((header or table + key, line))
    return lines


def test_what_membranes_part_needs_a_membrane() -> None:
    config = load_train_config(FIB25.with_name("drosophila-vnc.toml"))
    named = replace(config.model, classes=("inside", "mitochondria", "membrane", "synapse"))
    assert replace(config, model=named).model.classes[1] == "mitochondria"
    aims = [{"aim": "segments"}, {"border_weight": 1.0}, {"affinity_weight": 1.0}]
    for fit in (replace(config.fit, **aim) for aim in aims):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="make membrane or boundary the second one"):
            replace(config, model=named, fit=fit)
