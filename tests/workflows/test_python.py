"""Test that functions of the package address their caller."""

from __future__ import annotations

import doctest
import inspect
import logging
import pickle
from pathlib import Path

import pytest
from runs import run_emseg as command_line
from runs import save_volume, texture

import emseg
from emseg import python
from emseg.runs.events import Event, Noticed
from emseg.runs.notices import log
from emseg_core.errors import OutputError


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return save_volume(tmp_path / "v.zarr", texture((4, 40, 44)))


def test_examples() -> None:
    assert doctest.testmod(python).failed == 0


@pytest.mark.parametrize("name", sorted(emseg.FUNCTIONS))
def test_signatures_and_documentation_name_the_same_keywords(name: str) -> None:
    function = getattr(emseg, name)
    parameters = inspect.signature(function).parameters
    assert all(entry.kind is not entry.VAR_KEYWORD for entry in parameters.values())
    text = inspect.getdoc(function) or ""
    assert "Returns\n-------" in text or "Yields\n------" in text
    documented = text.partition("Parameters\n")[2].partition("\n\n")[0]
    listed = [
        part.strip()
        for line in documented.splitlines()[1:]
        if not line.startswith(" ")
        for part in line.split(" : ")[0].split(",")
    ]
    assert listed == list(parameters)


@pytest.mark.parametrize("name", sorted(emseg.FUNCTIONS))
def test_a_wrong_keyword_is_told_with_the_nearest(name: str) -> None:
    function = getattr(emseg, name)
    *_, last = inspect.signature(function).parameters
    with pytest.raises(TypeError, match=f"did you mean '{last}'"):
        function(**{f"{last}x": 1})


def test_every_name_is_there() -> None:
    for name in emseg.__all__:
        assert getattr(emseg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'segmnet'"):
        _ = emseg.segmnet


def test_advice_fits_whoever_asked(volume: Path, tmp_path: Path) -> None:
    """The same refusal has different advice on the command line and in Python."""
    output = tmp_path / "out.zarr"
    emseg.segment(volume, output, workers=0)
    with pytest.raises(OutputError) as refused:
        emseg.segment(volume, output, workers=0, probabilities=True)
    assert "overwrite=True" in str(refused.value)
    assert "--" not in str(refused.value)
    assert "--" not in str(pickle.loads(pickle.dumps(refused.value)))
    done = command_line("run", volume, "-o", output, "--workers", 0, "--probabilities")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    with pytest.raises(emseg.InputError) as unfit:
        emseg.segment(volume, output, workers=0, cluster="cuda")
    assert "cluster='cuda'" in str(unfit.value)


def test_a_plan_speaks_to_whoever_asked(volume: Path, tmp_path: Path) -> None:
    """It starts the public function, however it is started."""
    output = tmp_path / "out.zarr"
    assert emseg.plan(volume, workers=0).run(output).exit_code == 0
    planned = emseg.plan(volume, workers=0, probabilities=True)
    with pytest.raises(OutputError) as refused:
        planned.run(output)
    assert "overwrite=True" in str(refused.value)
    assert "--" not in str(refused.value)
    with pytest.raises(TypeError, match="did you mean 'overwrite'"):
        planned.run(output, overwrit=True)


def test_notices_speak_to_whoever_asked(volume: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    observe = python._observer(events.append)
    observe(Noticed("to use it anyway, give --precision bfloat16"))
    assert events == [Noticed("to use it anyway, give precision='bfloat16'")]


def test_notices_are_logged_if_nobody_watches(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="emseg"):
        log(Noticed("blocks are made smaller\x1b[2J"))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("emseg", "WARNING")
    assert record.getMessage().startswith("blocks are made smaller")
    assert record.getMessage().isprintable()


def test_the_module_runs(tmp_path: Path) -> None:
    done = command_line("--version")
    assert emseg.__version__ in done.stdout
