"""The configuration of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from emseg.errors import InputError
from emseg.model.bundled import DEFAULT, resolve_model
from emseg.model.header import read_header
from emseg_workflows.config import data_path, load_train_config

FIB25 = Path(__file__).parents[2] / "workflows" / "fib25.toml"


def changed(tmp_path: Path, old: str, new: str) -> str:
    """The one line with which a changed configuration is refused."""
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
    assert config.name == card["name"] == DEFAULT
    assert config.card.items() <= card.items()


@pytest.mark.parametrize("path", sorted(FIB25.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_each_shipped_configuration_says_where_its_data_come_from(path: Path) -> None:
    config = load_train_config(path)
    assert {"data", "attribution", "licence", "voxel_size"} <= config.card.keys()
    assert config.output == f"{config.name}.safetensors"
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
        ("[1.0, 2.0]", "[1.0]", "fit.class_weights has 1 numbers, but there are 2 classes"),
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
        ("width = 16", 'width = 16\nclasses = ["a", "b", "c"]', "2 numbers, but there are 3 classes"),
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
