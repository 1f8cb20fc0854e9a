"""Test damaged and malicious records and attributes: they are reported as such, without a traceback, and never obeyed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import in_order, recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from observed import Observed
from runs import PLANAR, plan_of, save_volume, texture

import emseg
from emseg.cli import main
from emseg.flows.records.history import read_history
from emseg.flows.records.run_log import recorded_runs
from emseg.flows.running.claim import prepare_output
from emseg.flows.status import status
from emseg.flows.view import View
from emseg_core.errors import EmsegError
from emseg_core.outcome import Outcome
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (9, 61, 67)
PLAN = plan_of(SHAPE, PLANAR)
AT = "2024-05-01T12:00:0{}+00:00"
CONTROLS = "\x1b]0;mine\x07\x1b[2J\x9b1m\u202e\u2028\r\nrunning    no\udcff"
DEEP = "[" * 900 + "]" * 900
ODD = [
    *(0, -1, 10**400, 2**63, -(10**400), 1e308, -0.5, float("nan"), float("inf"), True, None, [], {}, [[1]], {"a": 1}),
    *("", CONTROLS, "x" * 5000, "\0", "/dev/null/x", "s3://", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59-12:00"),
    *("1969-12-31T23:59:59+00:00", "0001-01-01", "2024-05-01T12:00:00", "done", "failed", "started", "block", "ended"),
]
"""Values of the wrong type or range."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an output with one block done, without a network, and a record of its run."""
    folder = tmp_path_factory.mktemp("odd")
    volume = save_volume(folder / "volume.zarr", texture(SHAPE))
    recipe = recipe_of(VolumeSpec(SHAPE, "uint8", PLAN.chunk), PLAN)
    prepare_output(folder / "out.zarr", recipe, None, {"name": "mine"}, overwrite=False, token=None)
    stored = open_output(folder / "out.zarr")
    box = PLAN.block(0).write
    probabilities = np.full((len(stored.classes), *box.shape), 127, np.uint8)
    stored.write(box, in_order(np.zeros(box.shape, np.uint8), probabilities))
    (folder / "out.zarr" / "emseg" / "run-0001").mkdir()
    (folder / "out.zarr" / "emseg" / "run-0001" / "lease.json").write_text(json.dumps({"holder": {}, "released": True}))
    lines = lines_of(stored.attributes["fingerprint"], str(volume))
    record(folder / "out.zarr").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "out.zarr"


def lines_of(fingerprint: str, volume: str) -> list[dict[str, Any]]:
    """Return a record with a line of each kind."""
    start = {"volume": volume, "model": "/m.safetensors", "fingerprint": fingerprint, "emseg": "1", "python": "3", "host": "h"}
    ended = {"failed": 1, "left": 2, "unbuilt": 0, "signal": 15, "seconds": 9.0}
    lines: list[dict[str, Any]] = [
        {"event": "started", **start, "workers": 2},
        {"event": "joined", "worker": "w", "numerics": None, "device": ""},
        {"event": "retried", "block": 0, "cause": "a worker died", "delay": 1.0},
        {"event": "block", **Outcome(0, "done", 9, worker="w:1", peak_bytes=7).to_json()},
        {"event": "block", **Outcome(1, "failed", 9, cause="corrupt", worker="w:1", peak_bytes=7, fault="block").to_json()},
        {"event": "noticed", "message": "slow"},
        {"event": "ended", "report": ended},
    ]
    return [{"at": AT.format(number), **line} for number, line in enumerate(lines)]


def record(output: Path) -> Path:
    return output / "emseg" / "run-0001" / "00000.jsonl"


@pytest.fixture(scope="module")
def copy(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of the output, with any record."""
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "out.zarr"))


def look(output: Path) -> None:
    """Check that everything reported about an output can be shown safely, or is refused."""
    try:
        found = status(output)
        said = [str(found), *(str(run.notices) for run in read_history(open_output(output), PLAN).runs)]
        json.dumps(found.to_json(), allow_nan=False)
        page = emseg.report(output, overwrite=True).read_text()
    except EmsegError as error:
        said, page = [str(error)], ""
    assert all(line.isprintable() for text in said[:1] for line in text.split("\n")), said
    seen = Observed(page)
    assert all(letter.isprintable() or letter == "\n" for letter in seen.text)
    assert not {name for name, _ in seen.elements} & {"script", "iframe"}


@settings(max_examples=60)
@given(data=st.data())
def test_a_record_in_which_anything_stands(copy: Path, whole: Path, data: st.DataObject) -> None:
    lines = [json.loads(line) for line in record(whole).read_text().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        line = data.draw(st.sampled_from(lines))
        inner = next((value for value in line.values() if isinstance(value, dict)), line)
        place = data.draw(st.sampled_from([line, inner]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(st.sampled_from(ODD))
    texts = [json.dumps(line).encode() for line in lines]
    texts.insert(data.draw(st.integers(0, len(texts))), data.draw(st.sampled_from([b"{", b"\xff", b"[]", b"", DEEP.encode()])))
    record(copy).write_bytes(b"\n".join(texts))
    look(copy)


@pytest.mark.parametrize(
    "name", ["volume", "host", "workers", "message", "cause", "worker", "report", "seconds", "block", "event"]
)
def test_deep_values(copy: Path, whole: Path, name: str) -> None:
    lines = [json.loads(line) for line in record(whole).read_text().splitlines()]
    texts = [json.dumps({**line, name: "DEEP"} if name in line else line).replace('"DEEP"', DEEP) for line in lines]
    record(copy).write_text("\n".join(texts))
    look(copy)


def test_lines_that_cannot_be_read_are_counted(copy: Path, whole: Path) -> None:
    lines = [json.loads(line) for line in record(whole).read_text().splitlines()]
    odd = [{**lines[3], "at": "0001-01-01T00:00:00+00:00"}, {**lines[3], "at": 10**400}, {**lines[3], "peak_bytes": 10**400}]
    record(copy).write_text("\n".join(map(json.dumps, [*lines, *odd])) + '\n{"torn')
    assert "3 lines of their records cannot be read" in str(status(copy)), "memory is no matter of the status"
    (run,) = read_history(open_output(copy), PLAN).runs
    assert (run.lost, run.work.done, run.work.worker_peak_bytes) == (4, 1, 7)
    assert "4 lines of the record of run 1 cannot be read" in Observed(emseg.report(copy, overwrite=True).read_text()).text


@pytest.mark.parametrize("odd", [True, False, -1, 1.0, 0.5, 2**63, 10**400, "0", None, [0]])
@pytest.mark.parametrize("name", ["block", "voxels"])
def test_blocks_and_voxels_are_counted_by_whole_numbers(copy: Path, whole: Path, name: str, odd: Any) -> None:
    """A line with other numbers of done, failed or repeated blocks is damaged, and counts for no block."""
    lines = [json.loads(line) for line in record(whole).read_text().splitlines()]
    wrong = [{**line, name: odd} for line in lines if name in line]
    record(copy).write_text("\n".join(map(json.dumps, [*lines, *wrong])))
    look(copy)
    told, sound = status(copy), status(whole)
    assert (told.done, told.failed) == (sound.done, sound.failed)
    assert f"{len(wrong)} lines of their records cannot be read" in str(told)
    (run,) = read_history(open_output(copy), PLAN).runs
    assert (run.lost, run.work.done, run.work.retried) == (len(wrong), 1, 1)


def test_a_run_of_a_huge_number_is_one_run(copy: Path, whole: Path) -> None:
    shutil.copyfile(record(whole), record(copy))
    folder = copy / "emseg" / "run-99999999999999"
    shutil.copytree(copy / "emseg" / "run-0001", folder)
    try:
        assert recorded_runs(open_output(copy)) == [1, 99999999999999]
        assert status(copy).runs == 2
        look(copy)
    finally:
        shutil.rmtree(folder)


def spoilt(output: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = output / "zarr.json"
    document = json.loads(file.read_text())
    change(document["attributes"]["emseg"])
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own["output"].update(classes=[{"a": 1}, 2]),
        lambda own: own["output"].update(classes=["x" * 10**6, "y"]),
        lambda own: own["output"].update(classes=["x"] * 10**5),
        lambda own: own["output"].update(classes=[]),
        lambda own: own["output"].update(classes="ab" * 200),
        lambda own: own["output"].update(region=[[0, 0, 0], [2**40] * 3]),
        lambda own: own["output"].update(generation=10**400),
        lambda own: own.update(recipe=[]),
        lambda own: own["recipe"].update(plan={}),
        lambda own: own["recipe"]["plan"].update(unit=[1, 1, 1]),
        lambda own: own["recipe"]["plan"].update(region=[[0, 0, 0], [9, 61, 10**6]]),
        lambda own: own["recipe"]["numerics"].update(threads=float("inf")),
        lambda own: own["recipe"].update(normalisation={"scope": CONTROLS}),
    ],
)
def test_attributes_that_are_no_outputs(whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    output = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    spoilt(output, change)
    with pytest.raises(EmsegError) as refused:
        status(output)
    assert len(str(refused.value)) < 2000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("words", ["status", "preview", "verify", "label", "label --class none", "report", "view --no-browser"])
def test_no_command_obeys_what_an_output_says(
    whole: Path, tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output states the volume's path, its classes, the card of its model, and its lease holder."""
    output = Path(shutil.copytree(whole, tmp_path / "out.zarr"))
    lines = [json.loads(line) for line in record(output).read_text().splitlines()]
    for line in lines:
        line.update({name: f"/{CONTROLS}" for name in ("volume", "model", "cause", "host", "message") if line.get(name)})
    record(output).write_text("\n".join(map(json.dumps, lines)))
    spoilt(output, lambda own: own["output"].update(classes=[CONTROLS, "other"]))
    spoilt(output, lambda own: own.update(model={CONTROLS: CONTROLS}))
    command, *more = words.split()
    monkeypatch.setattr(View, "wait", lambda _: None)
    monkeypatch.setattr("sys.argv", ["emseg", command, str(output), *more, *(["--workers", "0"] if command == "label" else [])])
    code: str | int | None = 0
    try:
        main()
    except SystemExit as left:
        code = left.code
    assert code in (0, 2, 3)
    said = "".join(capsys.readouterr())
    assert said
    assert all(line.isprintable() for line in said.split("\n")), repr(said)
    assert "\nrunning    no\n" not in said.replace("running    no\nruns", "")
