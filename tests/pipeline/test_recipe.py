"""Test that the recipe survives JSON and that each of its items counts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from emseg_core.box import Box
from emseg_core.grid.layout import plan_volume
from emseg_core.normalise import Normalisation
from emseg_core.recipe import Recipe
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Accuracy, Numerics
from emseg_core.specs.volume import VolumeSpec

VOLUME = VolumeSpec((6, 50, 60), "uint8", (6, 32, 32), 3, (40.0, 4.0, 4.0), (0.0, 8.0, 8.0), ("nanometer",) * 3)
MODEL = ModelSpec.unet(width=2, depth=1)
RECIPE = Recipe(
    volume=VOLUME,
    volume_digest="a" * 64,
    model_digest="b" * 64,
    normalisation=Normalisation("slice", (0.1,) * 6, (1 / 3,) * 6),
    plan=plan_volume(VOLUME, MODEL, Box((1, 2, 3), (6, 50, 60))),
    numerics=Numerics("torch 2.13.0+cpu", "AVX2", "float32", 2, "d" * 64),
    probabilities=True,
)


def flat(data: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {name: data}
    return {key: value for part in data for key, value in flat(data[part], f"{name}.{part}" if name else part).items()}


def with_volume(**change: Any) -> Recipe:
    return replace(RECIPE, volume=replace(RECIPE.volume, **change))


def with_table(**change: Any) -> Recipe:
    return replace(RECIPE, normalisation=replace(RECIPE.normalisation, **change))


def with_plan(**change: Any) -> Recipe:
    return replace(RECIPE, plan=replace(RECIPE.plan, **change))


def with_model(**change: Any) -> Recipe:
    return with_plan(model=replace(MODEL, **change))


def with_numerics(**change: Any) -> Recipe:
    return replace(RECIPE, numerics=replace(RECIPE.numerics, **change))


CHANGES = {
    "volume.shape": with_volume(shape=(7, 50, 60)),
    "volume.dtype": with_volume(dtype="uint16"),
    "volume.chunk": with_volume(chunk=(6, 32, 16)),
    "volume.rank": with_volume(rank=2),
    "volume.scale": with_volume(scale=(40.0, 4.0, 5.0)),
    "volume.translation": with_volume(translation=(1.0, 8.0, 8.0)),
    "volume.units": with_volume(units=("nanometer", None, "nanometer")),
    "volume_digest": replace(RECIPE, volume_digest="c" * 64),
    "model_digest": replace(RECIPE, model_digest="c" * 64),
    "normalisation.scope": with_table(scope="volume"),
    "normalisation.mean": with_table(mean=(math.nextafter(0.1, 1),) * 6),
    "normalisation.deviation": with_table(deviation=(0.3,) * 6),
    "plan.shape": with_plan(shape=(7, 50, 60)),
    "plan.region": with_plan(region=VOLUME.box),
    "plan.tile": with_plan(tile=(1, 20, 20)),
    "plan.batch": with_plan(batch=2),
    "plan.unit": with_plan(unit=(1, 2, 2)),
    "plan.chunk": with_plan(chunk=(1, 1, 1)),
    "plan.model.width": with_model(width=3),
    "plan.model.classes": with_model(classes=("inside", "outside")),
    "plan.model.kernels": with_model(kernels=((1, 3, 3), (1, 1, 1))),
    "plan.model.pooling": with_model(pooling=((1, 3, 3),)),
    "plan.model.channels": with_model(channels=2),
    "plan.model.dropout": with_model(dropout=0.25),
    "numerics.backend": with_numerics(backend="torch 2.13.1+cpu"),
    "numerics.device": with_numerics(device="AVX512"),
    "numerics.precision": with_numerics(precision="bfloat16"),
    "numerics.threads": with_numerics(threads=1),
    "numerics.canary": with_numerics(canary="e" * 64),
    "probabilities": replace(RECIPE, probabilities=False),
    "tta": replace(RECIPE, tta=True),
}
"""A change to each single item of the recipe, however small."""


def test_json_round_trip() -> None:
    again = Recipe.from_json(json.loads(json.dumps(RECIPE.to_json())))
    assert again == RECIPE
    assert again.fingerprint == RECIPE.fingerprint
    assert list(again.differences(RECIPE)) == []


def test_the_accuracy_of_a_low_precision_is_part_of_it() -> None:
    """Recipes without one have no such entry."""
    low = replace(RECIPE, accuracy=Accuracy(0.9995, 0.013, 256000))
    assert Recipe.from_json(json.loads(json.dumps(low.to_json()))) == low
    assert low.fingerprint != RECIPE.fingerprint
    assert "accuracy" not in RECIPE.to_json()
    assert str(low.accuracy) == "99.95% of 256000 voxels get the label of float32, probabilities differ by 0.013 at most"


def test_a_recipe_from_before_test_time_augmentation_is_one_without() -> None:
    """Such a run can be resumed, and has the fingerprint that is stored with its output."""
    old = RECIPE.to_json()
    assert "tta" not in old
    assert not Recipe.from_json(old).tta
    again = Recipe.from_json(json.loads(json.dumps(replace(RECIPE, tta=True).to_json())))
    assert again == replace(RECIPE, tta=True)


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    """It is the digest of text, so it must not depend on hashing or order."""
    shuffled = dict(reversed(RECIPE.to_json().items()))
    assert Recipe.from_json(shuffled).fingerprint == RECIPE.fingerprint
    assert len(RECIPE.fingerprint) == 64
    assert int(RECIPE.fingerprint, 16) >= 0


@pytest.mark.parametrize(("name", "other"), CHANGES.items())
def test_each_item_counts_and_is_named(name: str, other: Recipe) -> None:
    assert other.fingerprint != RECIPE.fingerprint
    (difference,) = RECIPE.differences(other)
    before, after = ({"tta": False, **flat(recipe.to_json())}[name] for recipe in (RECIPE, other))
    assert difference == f"{name} was {shown(before)}, now {shown(after)}"
    (back,) = other.differences(RECIPE)
    assert back == f"{name} was {shown(after)}, now {shown(before)}"


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("volume.channel", "1", with_volume(channel=1)),
        ("volume.timepoint", "0", with_volume(timepoint=0)),
        ("volume.together", "3", with_volume(together=3)),
        ("predictor", '"detectors:Dark 1"', replace(RECIPE, predictor="detectors:Dark 1")),
    ],
)
def test_what_few_recipes_have_leaves_no_trace_in_others(name: str, value: str, other: Recipe) -> None:
    assert name not in flat(RECIPE.to_json())
    assert Recipe.from_json(json.loads(json.dumps(other.to_json()))) == other
    assert list(RECIPE.differences(other)) == [f"{name} was not set, now {value}"]
    assert other.fingerprint != RECIPE.fingerprint


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def test_every_item_was_changed_once() -> None:
    """A new field needs a line above. Depth and output have no other valid value on their own."""
    assert set(flat(replace(RECIPE, tta=True).to_json())) - set(CHANGES) == {"plan.model.depth", "plan.model.output"}


def test_several_differences_are_all_named() -> None:
    other = replace(RECIPE, model_digest="c" * 64, probabilities=False)
    assert [line.split(" was ")[0] for line in RECIPE.differences(other)] == ["model_digest", "probabilities"]


def test_where_the_volume_lies_and_who_works_do_not_count() -> None:
    assert not {"path", "workers", "host", "scheduler"} & {part for name in flat(RECIPE.to_json()) for part in name.split(".")}
