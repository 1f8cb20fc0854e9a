"""Test that options, keywords and files have the settings of `RunSettings` and `Placement`, each defined once."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from runs import save_volume, texture

import emseg
from emseg.cli.command import cli
from emseg.cli.options import NOT_TYPED, ON_GPUS, PLACEMENT, SETTINGS
from emseg.cli.submit import NOT_SUBMITTED
from emseg.flows.segment import RunKeywords
from emseg.placement import Placement, WhereOnGpus
from emseg.settings.run import RunSettings, SettingsKeywords, settings_from
from emseg.settings.toml import read_table, to_toml
from emseg_core.box import Box
from emseg_core.errors import InputError
from emseg_core.recipe import Recipe

RUN = {option.name: option for option in cli.commands["run"].params}
DECIDES = {
    "channel": "volume",
    "timepoint": "volume",
    "level": "volume",
    "model": "model_digest",
    "predictor": "predictor",
    "roi": "plan",
    "probabilities": "probabilities",
    "heads": "heads",
    "empty": "empty",
    "tta": "tta",
    "pyramid": "steps",
    "mask": "mask",
    "normalise": "normalisation",
    "norms": "plan",
    "tile": "plan",
    "threads": "numerics",
    "backend": "numerics",
    "precision": "numerics",
}
"""The field of the recipe that each setting decides."""
OTHERS: dict[str, Any] = {
    "channel": "EM",
    "timepoint": 3,
    "level": 2,
    "model": "m.safetensors",
    "roi": "0:4,:,:",
    "probabilities": True,
    "empty": (0.0, "inside"),
    "tta": True,
    "heads": ("affinities", "distances"),
    "pyramid": False,
    "mask": "/mask.zarr",
    "normalise": "slice",
    "norms": "frozen",
    "tile": (4, 64, 64),
    "threads": 3,
    "backend": "torch",
    "precision": "bfloat16",
}
"""A non-default value for each setting that has an option."""


def names(kind: Any) -> set[str]:
    return {entry.name for entry in fields(kind)}


def test_each_setting_decides_a_field_of_the_recipe() -> None:
    assert set(DECIDES) == names(RunSettings)
    assert set(DECIDES.values()) <= names(Recipe)


def test_options_and_keywords_are_the_fields() -> None:
    assert set(SettingsKeywords.__annotations__) == names(RunSettings)
    assert set(SETTINGS) | NOT_TYPED == names(RunSettings)
    assert set(WhereOnGpus.__annotations__) | {"performance_report"} == names(Placement)
    assert {*PLACEMENT, *ON_GPUS, "tls", "client", "performance_report"} == names(Placement)
    for function in (emseg.segment, emseg.plan):
        assert set(RunKeywords.__annotations__) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize("kind", [RunSettings, Placement])
def test_help_and_documentation_are_one_text(kind: type[RunSettings | Placement]) -> None:
    for entry in fields(kind):
        text = entry.metadata["text"]
        assert text in " ".join(str(emseg.segment.__doc__).split()) or text in str(emseg.segment.__doc__)
        if entry.name in RUN and entry.name != "performance_report":
            assert RUN[entry.name].to_info_dict()["help"] == text


def test_keywords_types_and_defaults_are_those_of_the_fields() -> None:
    parameters = inspect.signature(emseg.segment).parameters
    for kind in (RunSettings, Placement):
        for entry in fields(kind):
            assert parameters[entry.name].default == entry.default, entry.name
    for entry in fields(RunSettings):
        assert parameters[entry.name].annotation == entry.type


def test_settings_are_an_object_or_keywords() -> None:
    settings, others = settings_from(None, {"roi": "0:1,:,:", "workers": 2})
    assert (settings, others) == (RunSettings(roi="0:1,:,:"), {"workers": 2})
    assert settings_from(settings, {"workers": 2}) == (settings, {"workers": 2})
    with pytest.raises(InputError, match="tta"):
        settings_from(settings, {"tta": True})


def test_a_file_holds_what_is_not_the_default(tmp_path: Path) -> None:
    """The command line reads the same settings from it."""
    assert set(OTHERS) | NOT_TYPED == names(RunSettings)
    settings = RunSettings(**OTHERS)
    file = tmp_path / "settings.toml"
    file.write_text(to_toml({"volume": "v.zarr", **settings.to_table()}))
    assert RunSettings().to_table() == {}
    assert set(read_table(file, {*OTHERS, "volume"})) == {*OTHERS, "volume"}
    context = cli.commands["run"].make_context("run", ["--settings", str(file)])
    assert context.params["volume"] == Path("v.zarr")
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in context.params.items()}
    assert {name: str(read[name]) if name == "mask" else read[name] for name in OTHERS} == OTHERS


def test_a_typed_option_takes_precedence(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('volume = "v.zarr"\nroi = "0:1,:,:"\nthreads = 2\n')
    context = cli.commands["run"].make_context("run", ["--settings", str(file), "--threads", "5", "w.zarr"])
    assert (context.params["volume"], context.params["roi"], context.params["threads"]) == (Path("w.zarr"), "0:1,:,:", 5)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('predictor = "os:system"', "unknown key predictor"),
        ("tat = true", "unknown key tat: did you mean tta?"),
        ("tile = [1, 2]", "is not three whole numbers"),
        ('precision = "int4"', "int4"),
        ("threads = 0", "0 is not in the range"),
        ("as_json = true", "unknown key as_json"),
        ("not TOML", "is not TOML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"{text}\n")
    with pytest.raises((InputError, click.UsageError)) as refused:
        cli.commands["run"].make_context("run", ["v.zarr", "--settings", str(file)])
    message = refused.value.format_message() if isinstance(refused.value, click.UsageError) else str(refused.value)
    assert cause in message


def test_no_file_names_a_class() -> None:
    with pytest.raises(InputError, match="never imported"):
        RunSettings(predictor="module:Class").to_table()


def test_regions_and_paths_are_written_as_they_are_read() -> None:
    table = RunSettings(roi=Box((0, 1, 2), (3, 4, 5)), mask=Path("mask.zarr")).to_table()
    assert table == {"roi": "0:3,1:4,2:5", "mask": str(Path("mask.zarr").absolute())}


def test_what_is_not_submitted_are_options_of_a_run() -> None:
    assert set(RUN) >= NOT_SUBMITTED


def test_a_plan_is_looked_at_and_run(tmp_path: Path) -> None:
    """It gives the output of a run with the same settings."""
    volume = save_volume(tmp_path / "v.zarr", texture((4, 40, 44)))
    planned = emseg.plan(volume, roi="0:3,:,:", workers=0)
    assert (planned.cost.blocks, planned.settings.roi) == (len(planned.plan), "0:3,:,:")
    assert all(value in str(planned) and f"<td>{value}</td>" in planned._repr_html_() for _, value in planned.facts())
    report = planned.run(tmp_path / "out.zarr")
    assert (report.exit_code, report.done) == (0, len(planned.plan))
    again = emseg.segment(volume, tmp_path / "out.zarr", planned.settings, workers=0)
    assert (again.skipped, again.done) == (report.done, 0)
