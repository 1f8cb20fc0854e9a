"""Test the command line as users meet it: exit codes, one clear line per error, and no unexpected files."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from runs import PLANAR, emseg_process, run_emseg, save_random_model, save_volume, shards, snapshot, texture

from emseg.cli import main
from emseg.flows.segment import segment
from emseg_core.model.bundled import bundled_models

(BUNDLED,) = bundled_models().values()
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def edit_header(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Copy the bundled model file with another description of its network."""
    data = BUNDLED.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    described = json.loads(header["__metadata__"]["emseg"])
    change(described["spec"])
    header["__metadata__"]["emseg"] = json.dumps(described)
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with every kind of invalid argument, and a valid volume and output."""
    folder = tmp_path_factory.mktemp("bad")
    good = texture((8, 40, 40))
    save_volume(folder / "good.zarr", good)
    for dtype in ("int64", "bool", "complex64"):
        save_volume(folder / f"{dtype}.zarr", good.astype(dtype))
    save_volume(folder / "line.zarr", good[0, 0])
    save_volume(folder / "six.zarr", good[None, None, None], (1, 1, 1, 5, 16, 16))
    save_volume(folder / "several.zarr", np.stack([good] * 3)[None], (1, 1, 5, 16, 16), axis_names=[*"tczyx"])
    save_volume(folder / "movie.zarr", np.stack([good] * 2), (1, 5, 16, 16), axis_names=["time", *"zyx"])
    scale = {"type": "scale", "scale": [1, 1, 1, 1]}
    levels = [{"path": "0", "coordinateTransformations": [scale]}]
    multiscales = [{"version": "0.4", "axes": [{"name": name, "type": "space"} for name in "czyx"], "datasets": levels}]
    labels = {"channels": [{"label": label} for label in ("nuclei", "EM", "nuclei", "1", "E\nM")]}
    image = {"multiscales": multiscales, "omero": labels}
    stained = zarr.create_group(folder / "stained.zarr", zarr_format=2, attributes=image)
    stained.create_array("0", data=np.stack([good + np.uint8(channel) for channel in range(5)]), chunks=(5, 5, 16, 16))
    save_volume(folder / "empty.zarr", good[:0])
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        odd = good.astype(np.float32)
        odd[3, 4, 5] = value
        save_volume(folder / f"{name}.zarr", odd)
    corrupt = save_volume(folder / "corrupt.zarr", good) / "c" / "1" / "1" / "1"
    corrupt.write_bytes(corrupt.read_bytes()[:-7])
    zarr.create_group(folder / "group.zarr").create_array("raw", data=good)
    (folder / "damaged.zarr").mkdir()
    (folder / "damaged.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')

    tifffile.imwrite(folder / "stack.tif", good)
    (folder / "gap").mkdir()
    for number in (0, 2):
        tifffile.imwrite(folder / "gap" / f"g{number}.tif", good[number])
    (folder / "text.txt").write_text("text")
    (folder / "nothing").mkdir()
    (folder / "theirs").mkdir()
    (folder / "theirs" / "thesis.tex").write_text("years of work")
    (folder / "link.zarr").symlink_to("good.zarr")
    (folder / "nowhere").symlink_to("gone")

    save_random_model(folder / "model.safetensors", PLANAR)
    save_random_model(folder / "rgb.safetensors", replace(PLANAR, channels=3))
    save_random_model(folder / "oblong.safetensors", replace(PLANAR, kernels=((1, 3, 5), (1, 3, 3))))
    (folder / "truncated.safetensors").write_bytes(BUNDLED.read_bytes()[:50_000])
    (folder / "no.safetensors").write_bytes(b"")
    (folder / "narrow.safetensors").write_bytes(edit_header(lambda spec: spec.update(width=8)))
    torch.save({"weights": torch.ones(3)}, folder / "model.pt")
    (folder / "model.pkl").write_bytes(pickle.dumps({"weights": 1}))

    segment(folder / "good.zarr", folder / "out.zarr", model=folder / "model.safetensors", workers=0)
    segment(folder / "stained.zarr", folder / "em.zarr", channel="EM", model=folder / "model.safetensors", workers=0)
    for number, file in enumerate(("zarr.json", "labels/classes/0/zarr.json", "emseg/run-0001/00000.jsonl")):
        shutil.copytree(folder / "out.zarr", folder / f"spoilt{number}.zarr")
        (folder / f"spoilt{number}.zarr" / file).write_text("{")
    shutil.copytree(folder / "out.zarr", folder / "orphan.zarr")
    shutil.rmtree(folder / "orphan.zarr" / "emseg" / "run-0001")
    (folder / "linked.zarr").symlink_to("out.zarr")
    return folder


REFUSED = {
    "run missing.zarr": "nothing at missing.zarr",
    "run stack.tif": "TIFF file, not a Zarr.*emseg ingest",
    "run text.txt": "a file, but a Zarr is a folder",
    "run nothing": "not a Zarr",
    "run damaged.zarr": "damaged",
    "run int64.zarr": "int64, but emseg reads uint8, uint16, float32",
    "run bool.zarr": "bool, but",
    "run complex64.zarr": "complex64, but",
    "run line.zarr": "the axes are 1",
    "run six.zarr": "the axes are 6",
    "run several.zarr": "several.zarr: the volume has 3 channels, but emseg reads one: choose it with --channel, 0 to 2",
    "run several.zarr --channel 3": r"the volume has no channel '3': .* with --channel, 0 to 2",
    "run several.zarr --channel -1": r"the volume has no channel '-1': .* with --channel, 0 to 2",
    "run several.zarr --channel 1 --timepoint 1": r"the volume has no timepoint 1: .* with --timepoint, 0 to 0",
    "run stained.zarr": r"5 channels.*choose it with --channel, 0 \(nuclei\), 1 \(EM\), 2 \(nuclei\), 3 \(1\), 4$",
    "plan stained.zarr": r"5 channels.*choose it with --channel, 0 \(nuclei\), 1 \(EM\)",
    "submit stained.zarr --workers 2": r"5 channels.*choose it with --channel, 0 \(nuclei\), 1 \(EM\)",
    "run stained.zarr/0 --channel nuclei": r"2 channels named 'nuclei': .* 0 \(nuclei\), 1 \(EM\), 2 \(nuclei\)",
    "run stained.zarr --channel 1": "2 channels named '1'",
    "plan stained.zarr --channel em": r"no channel 'em': .* 1 \(EM\)",
    "submit stained.zarr --workers 2 --channel 5": r"no channel '5': .* 1 \(EM\)",
    "run stained.zarr --channel 0 -o em.zarr --model model.safetensors": r"other settings: .*volume.channel was 1, now 0;",
    "run good.zarr -o em.zarr --model model.safetensors": "no channel axis, but channel 1 was requested: omit --channel",
    "run movie.zarr": "the volume has 2 timepoints.*choose it with --timepoint, 0 to 1",
    "run movie.zarr --timepoint 2": "no timepoint 2",
    "run good.zarr --channel 0": "no channel axis, but channel '0' was requested: omit --channel",
    "run good.zarr --timepoint 0": "no timepoint axis, but timepoint 0 was requested: omit --timepoint",
    "run good.zarr --mask stained.zarr": "emseg reads one channel at one time: copy the part you want",
    "verify out.zarr --volume stained.zarr": "emseg reads one channel at one time: copy the part you want",
    "verify em.zarr --volume good.zarr": "no channel axis, but channel 1 was requested",
    "run empty.zarr": "no voxel",
    "run nan.zarr": r"voxel \(3, 4, 5\).*nan.*--roi",
    "run infinite.zarr": r"voxel \(3, 4, 5\).*inf",
    "run corrupt.zarr": "cannot be read.*restore",
    "run group.zarr": "without multiscales.*raw",
    "run good.zarr --model model.pt": "pickle",
    "run good.zarr --model model.pkl": "pickle",
    "run good.zarr --model truncated.safetensors": "truncated",
    "run good.zarr --model no.safetensors": "truncated",
    "run good.zarr --model narrow.safetensors": r"down\.0\.0\.bias has shape \[16\], the network needs \[8\]",
    "run good.zarr --cluster slurm --workers 1": r"the site sets none: set memory = '16G' in a --site file",
    "run good.zarr --level 3": r"good\.zarr (is not an OME-Zarr image|has no level 3).*--level",
    "plan good.zarr --level 3": r"good\.zarr (is not an OME-Zarr image|has no level 3).*--level",
    "models show missing": "neither a model file nor a bundled model.*membrane-fib25",
    "models show truncated.safetensors": "truncated",
    "run good.zarr --model missing": "neither a model file nor a bundled model.*membrane-fib25",
    "run good.zarr --model theirs": "not a BioImage.IO package",
    "run good.zarr --model rgb.safetensors": "3 channels, but a volume has 1",
    "run good.zarr --model oblong.safetensors --tta": "turns tiles by 90 degrees.* 3 in y and 5 in x: leave out --tta",
    "plan good.zarr --model oblong.safetensors --tta": "turns tiles by 90 degrees",
    "submit good.zarr --workers 2 --model oblong.safetensors --tta": "turns tiles by 90 degrees",
    "run good.zarr -o theirs": "theirs already exists.*-o",
    "run good.zarr -o text.txt": "text.txt already exists.*-o",
    "run good.zarr -o int64.zarr": "int64.zarr already exists.*-o",
    "run good.zarr -o int64.zarr --overwrite": "int64.zarr already exists.*-o",
    "run good.zarr -o theirs --overwrite": "theirs already exists.*-o",
    "run good.zarr -o nowhere": "nowhere already exists.*-o",
    "run good.zarr -o spoilt0.zarr": "spoilt0.zarr is damaged.*--repair",
    "run good.zarr -o spoilt1.zarr": "spoilt1.zarr is damaged.*--repair",
    "run good.zarr -o spoilt1.zarr --overwrite": "spoilt1.zarr is damaged.*--repair",
    "run good.zarr -o out.zarr": "started with other settings.*model_digest",
    "run good.zarr -o linked.zarr --overwrite": "is a link to an output",
    "run good.zarr -o good.zarr": "lies inside the volume",
    "run good.zarr -o good.zarr/out.zarr": "lies inside the volume",
    "run good.zarr -o link.zarr/out.zarr": "lies inside the volume",
    "run link.zarr -o good.zarr/out.zarr": "lies inside the volume",
    "run good.zarr -o link.zarr": "lies inside the volume",
    "run group.zarr/raw -o group.zarr --overwrite": "lies inside the output",
    "run good.zarr -o missing/out.zarr": "not a folder",
    "run good.zarr --roi 0:9,:,:": "0:9,0:40,0:40 is not inside the volume 0:8,0:40,0:40",
    "run good.zarr --roi 4:4,:,:": "empty",
    "run good.zarr --roi 5:2,:,:": "empty",
    "run good.zarr --roi -1:3,:,:": "form",
    "run good.zarr --roi 0:4": "form",
    "run good.zarr --roi box": "form",
    "run good.zarr --workers -1": "-1 is not in the range",
    "run good.zarr --adapt 3": "'3' is not two whole numbers min:max",
    "run good.zarr --adapt 4:2": "--adapt 4:2 is no range of workers: give the least and the most, 1:4",
    "run good.zarr --adapt 1:2 --workers 2": "both say how many workers there are",
    "run good.zarr --adapt 1:2 --scheduler tcp://127.0.0.1:9": "those of a running cluster come and go together",
    "submit good.zarr --adapt 1:2": "those of --cluster srun come and go together: use --cluster slurm",
    "submit good.zarr": "does not know how many workers to start: give --workers",
    "run good.zarr --threads 0": "0 is not in the range",
    "run good.zarr --tile 1,2": "three whole numbers",
    "run good.zarr --tile 50,50,50": "the next valid size is 52",
    "run good.zarr --normalise tile": "'tile' is not one of",
    "plan missing.zarr": "nothing at missing.zarr",
    "verify missing": "nothing at missing",
    "verify good.zarr": "not an output",
    "verify spoilt0.zarr": "damaged",
    "verify spoilt1.zarr": "damaged",
    "verify spoilt2.zarr": "the place of its volume is unknown: give --volume",
    "verify orphan.zarr": "the place of its volume is unknown: give --volume",
    "verify orphan.zarr --volume good.zarr": "the place of its model is unknown: give --model",
    "verify out.zarr --volume int64.zarr": "int64, but",
    "verify out.zarr --volume missing": "nothing at missing",
    "verify out.zarr --volume nan.zarr": "float32.*uint8.*--volume",
    "verify out.zarr --model missing": "neither a model file nor a bundled model",
    "verify out.zarr --boxes 0": "0 is not in the range",
    "verify out.zarr --seed -1": "-1 is not in the range",
    "preview missing": "nothing at missing",
    "preview theirs": "not a Zarr",
    "preview good.zarr": "not an output",
    "preview spoilt0.zarr": "damaged",
    "preview spoilt1.zarr": "damaged",
    "preview orphan.zarr": "give --volume",
    "preview out.zarr --slice 8": "slices 0 to 7, not 8",
    "preview out.zarr --slice -1": "slices 0 to 7, not -1",
    "preview out.zarr --volume nan.zarr": "float32.*uint8.*--volume",
    "preview out.zarr -o missing/p.png": "cannot be written",
    "preview out.zarr -o theirs": "cannot be written",
    "report missing": "nothing at missing",
    "report good.zarr": "not an output",
    "report spoilt0.zarr": "damaged",
    "report spoilt1.zarr": "damaged",
    "report out.zarr --volume nan.zarr": "float32.*uint8.*--volume",
    "report out.zarr -o missing/p.html": "not a folder",
    "report out.zarr -o theirs": "theirs is a folder, not a page.*-o",
    "report out.zarr -o theirs --overwrite": "theirs is a folder, not a page.*-o",
    "report out.zarr -o text.txt": "text.txt already exists, and is no page of `emseg report`.*--overwrite",
    "report out.zarr -o nowhere": "nowhere cannot be written",
    "view missing": "nothing at missing",
    "view theirs": "not a Zarr",
    "view good.zarr": "not an output",
    "view spoilt0.zarr": "damaged",
    "view spoilt1.zarr": "damaged",
    "view out.zarr --volume missing": "nothing at missing",
    "view out.zarr --volume nan.zarr": "float32.*uint8.*--volume",
    "view out.zarr --port 70000": "70000 is not in the range",
    "view out.zarr --public-url hub.example.org": "--public-url is 'hub.example.org', .*https://HOST/PATH/",
    "evaluate out.zarr": "nothing to compare with: give TRUTH, or look for seams with --seams",
    "evaluate missing good.zarr --ids": "nothing at missing",
    "evaluate spoilt1.zarr good.zarr --ids": "damaged",
    "evaluate out.zarr missing.tif --ids": "missing.tif",
    "evaluate out.zarr theirs --ids": "not a Zarr",
    "evaluate out.zarr good.zarr": "need exactly one meaning",
    "evaluate out.zarr good.zarr --labels membrane": "'membrane' is not of the form class=value",
    "evaluate out.zarr good.zarr --labels membrane=a": "not of the form class=value",
    "evaluate out.zarr good.zarr --labels membrane=0,membrane=1": r"names membrane twice: join its values with \+",
    "evaluate out.zarr good.zarr --labels membrane=0,inside=255": "stands for none of inside, membrane",
    "evaluate out.zarr good.zarr --ids --slices 2": "'2' is not two whole numbers first:stop",
    "evaluate out.zarr good.zarr --ids --slices 2:9": "slices 0 to 7.*not 2:9",
    "evaluate out.zarr good.zarr --ids --threshold 2": "the threshold is 2, but probabilities are from 0 to 1",
    "evaluate out.zarr nan.zarr --ids": "the value .*, but classes and ids are whole numbers",
    "evaluate out.zarr --seams --json missing/found.json": "missing/found.json cannot be written",
    "evaluate good.zarr --seams": "not an output",
    "ingest missing.tif new.zarr": "missing.tif",
    "ingest gap new.zarr": "slice 1 is missing.*between g0.tif and g2.tif.*--allow-missing",
    "ingest text.txt new.zarr": "TIFF",
    "ingest theirs new.zarr": "no file .tif",
    "ingest stack.tif good.zarr": "already exists",
    "ingest stack.tif new.zarr --voxel-size 0 1 1": "positive",
    "ingest stack.tif missing/new.zarr": "not a folder",
    "ingest stack.tif new.zarr --workers -1": "-1 is not in the range",
    "ingest stack.tif new.zarr --workers 1 --scheduler tcp://127.0.0.1:9": "not both: leave out one of them",
    "ingest stack.tif new.zarr --cluster srun": "does not know how many workers to start: give --workers",
    "ingest stack.tif new.zarr --adapt 4:2": "--adapt 4:2 is no range of workers",
    "export out.zarr new": "end it with .tif or .zarr, or choose one with --format",
    "export out.zarr new.zarr --format n5": "--format",
    "export out.zarr good.zarr": "already exists.*--overwrite",
    "export out.zarr good.zarr --overwrite": "is not an export of emseg",
    "export out.zarr good.zarr --overwrite --format precomputed": "is not an export of emseg",
    "export out.zarr out.zarr/new.zarr": "lies inside the output",
    "export good.zarr new.zarr": "not an output",
    "export out.zarr new.tif --workers 2": "is a single file that one process writes: omit --workers",
    "export out.zarr new.zarr --cluster slurm": "does not know how many workers to start: give --workers",
    "train missing.toml": "no configuration missing.toml",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line_and_nothing_written(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    before = snapshot(folder)
    workers = ["--workers", "0"] if command.startswith("run") and not {"--workers", "--adapt"} & {*command.split()} else []
    monkeypatch.setattr(sys, "argv", ["emseg", *command.split(), *workers])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(REFUSED[command], line)
    assert snapshot(folder) == before


def test_test_time_augmentation_is_part_of_what_an_output_is_begun_with(folder: Path, tmp_path: Path) -> None:
    plain, mean = (
        json.loads(run_emseg("plan", "good.zarr", *words, "--json", cwd=folder).stdout)["cost"] for words in ([], ["--tta"])
    )
    assert mean == {**plain, "flops": 8 * plain["flops"]}
    output, words = tmp_path / "mean.zarr", ["run", "good.zarr", "--model", "model.safetensors", "--workers", "0"]
    assert run_emseg(*words, "-o", output, "--tta", cwd=folder).returncode == 0
    refused = run_emseg(*words, "-o", output, cwd=folder)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "was started with other settings: tta was true, now false. To resume, use the original settings" in line
    assert run_emseg(*words, "-o", output, "--tta", cwd=folder).returncode == 0
    proof = run_emseg("verify", output, "--boxes", 2, cwd=folder)
    verdict = "verdict    PASS: labels are the same as from one pass over the whole volume"
    assert (proof.returncode, proof.stdout.splitlines()[-1]) == (0, verdict)
    assert shards(output)[0].read_bytes() != shards(folder / "out.zarr")[0].read_bytes()


def test_a_plan_is_explained(folder: Path) -> None:
    """The layouts that were considered explain it; the first is that of the plan."""
    text = run_emseg("plan", "good.zarr", "--explain", cwd=folder).stdout
    told = json.loads(run_emseg("plan", "good.zarr", "--explain", "--json", cwd=folder).stdout)
    plan, layouts = told["plan"], told["layouts"]
    assert (layouts[0]["unit"], layouts[0]["tile"]) == (plan["unit"], plan["tile"])
    assert layouts[0]["flops"] == told["cost"]["flops"]
    table = text.split("\n\n")[1].splitlines()
    assert table[0].split("  ")[0] == "write unit"
    assert table[1].startswith(" x ".join(map(str, plan["unit"])))
    assert table[1].endswith("1.000")
    units = [line[:20] for line in table[1:]]
    assert len(set(units)) == len(units) <= 8
    assert "layouts" not in json.loads(run_emseg("plan", "good.zarr", "--json", cwd=folder).stdout)


def test_a_submitted_run_is_not_behind_the_proxy_of_a_notebook(folder: Path) -> None:
    script = run_emseg("submit", "good.zarr", "--workers", 2, "--dry-run", cwd=folder).stdout
    assert re.search(r"^unset JUPYTERHUB_SERVICE_PREFIX$.*^exec ", script, re.MULTILINE | re.DOTALL)


def test_a_submitted_run_keeps_its_word_for_test_time_augmentation(folder: Path) -> None:
    written = run_emseg("submit", "good.zarr", "--tta", "--workers", 2, "--dry-run", cwd=folder)
    _, script, settings = re.split(r"^(?=#!|# .*settings.toml$)", written.stdout, flags=re.MULTILINE)
    assert re.search(r"^exec .* -m emseg run --settings \S+/good.emseg.zarr.slurm/settings.toml$", script, re.MULTILINE)
    told = tomllib.loads(settings)
    assert told["tta"] is True
    assert (Path(told["volume"]), told["workers"], told["cluster"]) == (folder / "good.zarr", 2, "srun")


def test_help_is_light() -> None:
    probe = "import sys, emseg.cli as c\ntry: c.cli(['--help'])\nfinally: print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert "'click'" in printed
    for heavy in ("torch", "zarr", "dask", "distributed", "rich", "numpy"):
        assert f"'{heavy}'" not in printed


def test_models_names_the_bundled_one(tmp_path: Path) -> None:
    listed = json.loads(run_emseg("models", "--json", cwd=tmp_path).stdout)
    assert "CC BY" in listed["membrane-fib25"]["card"]["licence"]


def test_a_model_of_ones_own_is_shown(tmp_path: Path) -> None:
    save_random_model(tmp_path / "own.safetensors", PLANAR)
    said = run_emseg("models", "show", "own.safetensors", cwd=tmp_path).stdout
    context = " x ".join(map(str, PLANAR.context))
    assert f"own.safetensors: classes {', '.join(PLANAR.classes)}, softmax; {PLANAR.parameters} parameters" in said
    assert f"sees: {context} voxels (z, y, x) beyond each side" in said
    shown = json.loads(run_emseg("models", "show", "own.safetensors", "--json", cwd=tmp_path).stdout)
    assert shown["own.safetensors"]["spec"] == json.loads(json.dumps(PLANAR.to_json()))
    bundled = json.loads(run_emseg("models", "show", "membrane-fib25", "--json", cwd=tmp_path).stdout)
    assert bundled == json.loads(run_emseg("models", "--json", cwd=tmp_path).stdout)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_reader_that_has_gone_ends_it_in_silence(number: int, folder: Path) -> None:
    command = (["models"], ["plan", "good.zarr", "--json"], ["verify", "out.zarr", "--json"])[number]
    with emseg_process(*command, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 1
        assert process.stderr.read() == ""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up its rights")
@pytest.mark.parametrize("locked", ["parent", "output", "volume", "model"])
def test_no_permission(locked: str, folder: Path, tmp_path: Path) -> None:
    volume, model, output = tmp_path / "volume.zarr", tmp_path / "model.safetensors", tmp_path / "to" / "out.zarr"
    shutil.copytree(folder / "good.zarr", volume)
    shutil.copy(folder / "model.safetensors", model)
    output.parent.mkdir()
    if locked == "output":
        segment(volume, output, model=model, workers=0)
        shards(output)[0].unlink()
    place = {"parent": output.parent, "output": output / "emseg", "volume": volume / "zarr.json", "model": model}[locked]
    before = snapshot(tmp_path)
    place.chmod(0 if locked in ("volume", "model") else 0o555)
    command: list[str | Path] = [sys.executable, "-m", "emseg", "run", volume, "-o", output, "--model", model, "--workers", "0"]
    done = subprocess.run([*UNPRIVILEGED, *command], capture_output=True, text=True, timeout=60)
    place.chmod(0o755)
    assert "ermission denied" in done.stderr
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert snapshot(tmp_path) == before
