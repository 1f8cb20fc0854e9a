"""The command line as a user meets it: exit codes, one clear line per error, nothing written where nothing should be."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import torch
import zarr
from numpy.typing import NDArray
from runs import PLANAR, bytes_of, save_random_model, save_volume, texture

from emseg.model.bundled import bundled_models
from emseg.model.header import model_digest
from emseg.normalise import sample_boxes
from emseg.specs.model import ModelSpec
from emseg.specs.volume import VolumeSpec
from emseg.store.output import open_output
from emseg_workflows.cli import main

EMSEG = (sys.executable, "-m", "emseg_workflows")
(BUNDLED,) = bundled_models().values()
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def emseg(*arguments: str | Path, folder: Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command, run in a folder."""
    return subprocess.run([*before, *EMSEG, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def everything(folder: Path) -> dict[str, str]:
    """Each path in a folder, with the digest of a file's contents."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def save(path: Path, values: NDArray[Any]) -> None:
    """A plain Zarr array."""
    chunks = [max(1, min(32, length)) for length in values.shape]
    array = zarr.create_array(path, shape=values.shape, chunks=chunks, dtype=values.dtype)
    if values.size:
        array[...] = values


def edit_header(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The bundled model file with another description of its network."""
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
    """A folder with all that can be named wrongly."""
    folder = tmp_path_factory.mktemp("bad")
    good = texture((8, 40, 40))
    save(folder / "good.zarr", good)
    save(folder / "int64.zarr", good.astype(np.int64))
    save(folder / "complex.zarr", good.astype(np.complex64))
    save(folder / "line.zarr", good[0, 0])
    save(folder / "four.zarr", good[None])
    save(folder / "empty.zarr", good[:0])
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        odd = good.astype(np.float32)
        odd[3, 4, 5] = value
        save(folder / f"{name}.zarr", odd)
    zarr.create_group(folder / "group.zarr").create_array("raw", data=good)
    tifffile.imwrite(folder / "stack.tif", good)
    (folder / "text.txt").write_text("text")
    (folder / "nothing").mkdir()
    (folder / "theirs").mkdir()
    (folder / "theirs" / "thesis.tex").write_text("years of work")
    (folder / "damaged.zarr").mkdir()
    (folder / "damaged.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node')
    (folder / "link.zarr").symlink_to("good.zarr")
    (folder / "truncated.safetensors").write_bytes(BUNDLED.read_bytes()[:50_000])
    (folder / "no.safetensors").write_bytes(b"")
    (folder / "narrow.safetensors").write_bytes(edit_header(lambda spec: spec.update(width=8)))
    torch.save({"weights": torch.ones(3)}, folder / "model.pt")
    (folder / "model.pkl").write_bytes(pickle.dumps({"weights": 1}))
    return folder


REFUSED = {
    "run missing.zarr": "nothing at missing.zarr",
    "run stack.tif": "TIFF file, not a Zarr.*emseg ingest",
    "run text.txt": "a file, but a Zarr is a folder",
    "run nothing": "not a Zarr",
    "run damaged.zarr": "damaged",
    "run int64.zarr": "int64, but emseg reads uint8, uint16, float32",
    "run complex.zarr": "complex64, but",
    "run line.zarr": "the axes are 1",
    "run four.zarr": "the axes are 4",
    "run empty.zarr": "no voxel",
    "run nan.zarr": r"voxel \(3, 4, 5\).*nan.*--roi",
    "run infinite.zarr": r"voxel \(3, 4, 5\).*inf",
    "run group.zarr": "without multiscales.*raw",
    "run good.zarr --model model.pt": "pickle",
    "run good.zarr --model model.pkl": "pickle",
    "run good.zarr --model truncated.safetensors": "truncated",
    "run good.zarr --model no.safetensors": "truncated",
    "run good.zarr --model narrow.safetensors": r"down\.0\.0\.bias has shape \[16\], the network needs \[8\]",
    "run good.zarr --model missing": "no bundled model.*membrane-fib25",
    "run good.zarr --model theirs": "no bundled model",
    "run good.zarr -o theirs": "theirs already exists.*-o",
    "run good.zarr -o text.txt": "text.txt already exists.*-o",
    "run good.zarr -o int64.zarr": "int64.zarr already exists.*-o",
    "run good.zarr -o int64.zarr --overwrite": "int64.zarr already exists.*-o",
    "run good.zarr -o theirs --overwrite": "theirs already exists.*-o",
    "run good.zarr -o good.zarr": "lies inside the volume",
    "run good.zarr -o good.zarr/out.zarr": "lies inside the volume",
    "run good.zarr -o link.zarr/out.zarr": "lies inside the volume",
    "run group.zarr/raw -o group.zarr --overwrite": "lies inside the output",
    "run good.zarr -o missing/out.zarr": "not a folder",
    "run good.zarr --roi 0:9,:,:": "0:9,0:40,0:40 is not inside the volume 0:8,0:40,0:40",
    "run good.zarr --roi 4:4,:,:": "empty",
    "run good.zarr --roi 5:2,:,:": "empty",
    "run good.zarr --roi -1:3,:,:": "form",
    "run good.zarr --roi 0:4": "form",
    "run good.zarr --roi box": "form",
    "run good.zarr --workers -1": "-1 is not in the range",
    "run good.zarr --threads 0": "0 is not in the range",
    "run good.zarr --tile 1,2": "three whole numbers",
    "run good.zarr --tile 50,50,50": "the next valid size is 52",
    "run good.zarr --normalise tile": "'tile' is not one of",
    "plan missing.zarr": "nothing at missing.zarr",
    "verify missing": "nothing at missing",
    "verify good.zarr": "not an output",
    "preview theirs": "not a Zarr",
    "ingest missing.tif new.zarr": "missing.tif",
    "ingest text.txt new.zarr": "TIFF",
    "ingest theirs new.zarr": "no file .tif",
    "ingest stack.tif good.zarr": "already exists",
    "ingest stack.tif new.zarr --voxel-size 0 1 1": "positive",
    "ingest stack.tif missing/new.zarr": "not a folder",
    "train missing.toml": "no configuration missing.toml",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_in_one_line_and_nothing_written(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = everything(folder)
    workers = ["--workers", "0"] if command.startswith("run") and "--workers" not in command else []
    monkeypatch.setattr(sys, "argv", ["emseg", *command.split(), *workers])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(REFUSED[command], line)
    assert everything(folder) == before


def test_help_is_light() -> None:
    probe = "import sys, emseg_workflows.cli as c\ntry: c.cli(['--help'])\nfinally: print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "zarr", "dask", "distributed", "rich", "numpy"):
        assert f"'{heavy}'" not in printed


def test_a_model_of_three_channels_does_not_fit(folder: Path, tmp_path: Path) -> None:
    model = save_random_model(
        tmp_path / "rgb.safetensors", type(PLANAR)(4, 1, ("a", "b"), PLANAR.kernels[:2], PLANAR.pooling[:1], 3)
    )
    done = emseg("run", folder / "good.zarr", "--model", model, "--workers", "0", folder=tmp_path)
    assert done.returncode == 2
    assert "3 channels, but a volume has 1" in done.stderr


def test_models_names_the_bundled_one(tmp_path: Path) -> None:
    listed = json.loads(emseg("models", "--json", folder=tmp_path).stdout)
    assert "CC BY" in listed["membrane-fib25"]["card"]["licence"]


def test_plan_says_what_a_run_does(folder: Path, tmp_path: Path) -> None:
    done = emseg("plan", folder / "good.zarr", "--json", folder=tmp_path)
    told = json.loads(done.stdout)
    assert told["cost"]["bytes_needed"] == 8 * 40 * 40
    report = json.loads(
        emseg("run", folder / "good.zarr", "-o", "out.zarr", "--workers", "0", "--json", folder=tmp_path).stdout
    )
    assert report["blocks"] == told["cost"]["blocks"]
    assert report["worker_peak_bytes"] < 1.1 * told["cost"]["bytes_per_worker"]
    assert len([*(tmp_path / "out.zarr").glob("labels/classes/0/c/*/*/*")]) == told["cost"]["output_files"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its rights")
def test_no_permission(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = emseg(
        "run", folder / "good.zarr", "-o", tmp_path / "out.zarr", "--workers", "0", folder=tmp_path, before=UNPRIVILEGED
    )
    tmp_path.chmod(0o755)
    assert done.returncode == 2
    assert "permission denied" in done.stderr
    assert everything(tmp_path) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder on a disk of its own, and a function that sets its size."""

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", tmp_path], check=True)

    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", tmp_path]).returncode:
        pytest.skip("cannot mount a disk here")
    yield tmp_path, resize
    subprocess.run(["umount", tmp_path], check=True)


def test_full_disk(folder: Path, small_disk: tuple[Path, Callable[[str], None]]) -> None:
    """Blocks that do not fit are listed, exit 3; with more space the same command finishes."""
    disk, resize = small_disk
    command = ("run", folder / "good.zarr", "-o", disk / "out.zarr", "--workers", "0")
    done = emseg(*command, folder=folder)
    assert done.returncode == 3
    assert "no space left on device" in done.stderr
    resize("4m")
    assert emseg(*command, folder=folder).returncode == 0
    stored = open_output(disk / "out.zarr")
    assert stored.read_labels(stored.region).max() < 255


def test_a_disk_far_too_small_is_refused_at_once(tmp_path: Path, small_disk: tuple[Path, Callable[[str], None]]) -> None:
    disk, _ = small_disk
    save(tmp_path.parent / "large.zarr", np.zeros((64, 256, 256), np.uint8))
    done = emseg("run", tmp_path.parent / "large.zarr", "-o", disk / "out.zarr", "--workers", "0", folder=disk)
    assert done.returncode == 2
    assert "are free" in done.stderr
    assert everything(disk) == {}


def test_nan_that_the_sample_missed_fails_its_blocks_only(tmp_path: Path) -> None:
    shape = (40, 700, 700)
    sampled = list(sample_boxes(VolumeSpec(shape, "float32", (32, 32, 32)), "volume", 0))
    model = save_random_model(tmp_path / "model.safetensors", ModelSpec.unet(width=1, depth=0))
    place = next(
        (20, y, x)
        for y in range(60, 640)
        for x in range(60, 640)
        if not any(all(a <= p < b for a, p, b in zip(box.start, (20, y, x), box.stop, strict=True)) for box in sampled)
    )
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values[place] = np.nan
    save(tmp_path / "volume.zarr", values)
    done = emseg("run", "volume.zarr", "--model", model, "--workers", "0", "--json", folder=tmp_path)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["failed"] >= 1
    assert report["done"] + report["failed"] == report["blocks"]
    assert f"voxel {place} (z, y, x) is nan" in report["failures"][0]["cause"]
    stored = open_output(tmp_path / "volume.emseg.zarr")
    labels = stored.read_labels(stored.region)
    assert labels[place] == 255
    assert 0 < np.count_nonzero(labels == 255) <= report["failed"] * np.prod(stored.unit)


def test_corrupt_chunk_fails_its_blocks_only(tmp_path: Path) -> None:
    save_volume(tmp_path / "volume.zarr", texture((16, 300, 300)))
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    chunk = max((tmp_path / "volume.zarr").rglob("c/*/*/*"))
    chunk.write_bytes(chunk.read_bytes()[:-7])
    done = emseg("run", "volume.zarr", "--model", model, "--workers", "0", "--json", folder=tmp_path)
    if done.returncode == 2:  # a small volume is sampled whole, and the sample meets the chunk first
        assert "cannot be read" in done.stderr
    else:
        assert done.returncode == 3


class Undisturbed:
    """A volume that takes some seconds, and the output of a run that nobody stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_volume(folder / "volume.zarr", texture((32, 200, 200)), (32, 64, 64))
        self.output = folder / "undisturbed.zarr"
        done = emseg("run", "volume.zarr", "-o", self.output, "--workers", "0", folder=folder)
        assert done.returncode == 0, done.stderr

    def start(self, output: Path) -> subprocess.Popen[str]:
        """A run with two workers, as soon as it has written some blocks."""
        process = subprocess.Popen(
            [*EMSEG, "run", "volume.zarr", "-o", output, "--workers", "2"],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while process.poll() is None and len([*output.glob("labels/classes/0/c/*/*/*")]) < 3:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("signals"))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Dask workers that a run has started."""
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    return workers


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_gone_on_with(number: int, code: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    workers = workers_of(process)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in printed
    _, orphans = psutil.wait_procs(workers, timeout=30)
    assert not orphans
    done = emseg("run", "volume.zarr", "-o", output, "--workers", "2", "--json", folder=undisturbed.folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] >= 3
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_a_killed_worker_costs_no_byte(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    process = undisturbed.start(output)
    workers_of(process)[0].kill()
    _, printed = process.communicate(timeout=100)
    assert process.returncode == 0, printed
    assert bytes_of(output) == bytes_of(undisturbed.output)


def test_eight_workers(undisturbed: Undisturbed, tmp_path: Path) -> None:
    done = emseg("run", "volume.zarr", "-o", tmp_path / "out.zarr", "--workers", "8", folder=undisturbed.folder)
    assert done.returncode == 0, done.stderr
    assert "8 worker processes" in done.stderr
    assert bytes_of(tmp_path / "out.zarr") == bytes_of(undisturbed.output)


def test_the_model_in_the_output_is_the_one_that_ran(undisturbed: Undisturbed) -> None:
    assert open_output(undisturbed.output).attributes["recipe"]["model_digest"] == model_digest(BUNDLED)
