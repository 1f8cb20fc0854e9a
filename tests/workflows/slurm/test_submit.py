"""Test commands as SLURM jobs, up to the arguments of `sbatch`."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from runs import run_emseg, save_volume, texture

SBATCH = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
told = {{"words": sys.argv[1:], "environment": dict(os.environ)}}
Path(__file__).with_name("told.json").write_text(json.dumps(told))
print("41;cluster")
"""
"""A stand-in that accepts every job and records its arguments."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a volume, on a machine with SLURM."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    return tmp_path


def emseg(folder: Path, *words: str) -> str:
    done = run_emseg(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_within_a_job_only_the_clusters_configuration_is_passed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_NTASKS", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    emseg(folder, "submit", "volume.zarr", "--workers", "1")
    told = (folder / "bin" / "told.json").read_text()
    assert '"SLURM_CONF": "7"' in told
    assert told.count("SLURM_") == 1


COMMANDS = {
    "label out.zarr --class inside --method components": "out.zarr",
    "ingest stack.tif new.zarr --voxel-size 4 4 4": "new.zarr",
    "export out.zarr out.ome.zarr --instances": "out.ome.zarr",
    "verify out.zarr --repair": "out.zarr",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("elastic", [(), ("--elastic",)], ids=str)
def test_other_commands_are_submitted_as_they_are_typed(folder: Path, command: str, elastic: tuple[str, ...]) -> None:
    name, output = command.partition(" ")[0], COMMANDS[command]
    said = emseg(folder, "submit", *command.split(), "--workers", "3", "--memory", "4G", "--cpus", "2", *elastic)
    assert said.startswith("job        41\n")
    logs = folder / f"{output}.slurm"
    assert {path.name for path in logs.iterdir()} == {f"{name}.sh", f"{name}-site.toml", "jobs"}
    script = (logs / f"{name}.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    words = shlex.split(script.splitlines()[-1])
    cluster = "slurm" if elastic else "srun"
    where = ["--workers", "3", "--cluster", cluster, "--site", str(logs / f"{name}-site.toml")]
    assert words == ["exec", sys.executable, "-m", "emseg", *command.split(), *where]
    headers = {shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")}
    wanted = {"--mem=2048M", "--ntasks=1"} if elastic else {"--mem-per-cpu=2048M", "--ntasks=3", "--cpus-per-task=2"}
    assert wanted | {f"--chdir={folder}"} <= headers


def test_the_files_of_a_run_stay_as_they_are(folder: Path) -> None:
    """A waiting job reads them when it starts."""
    emseg(folder, "submit", "volume.zarr", "-o", "out.zarr", "--workers", "1")
    logs = folder / "out.zarr.slurm"
    before = {path: path.read_text() for path in logs.iterdir() if path.name != "jobs"}
    emseg(folder, "submit", "label", "out.zarr", "--workers", "2", "--memory", "none")
    assert {path: path.read_text() for path in before} == before
    assert "--mem" not in (logs / "label.sh").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("label out.zarr --workers 2", "how much memory a worker needs: give --memory 16G, or none"),
        ("label out.zarr --memory 4G", "how many workers to start: give --workers"),
        ("label out.zarr --memory 4G --workers 1 --host 127.0.0.1", "--host is not for a command that is submitted"),
        ("label out.zarr --memory 4G --workers 1 --clas inside", "No such option '--clas'"),
        ("label missing/out.zarr --memory 4G --workers 1", "is not a folder: make that first"),
        ("verify out.zarr --memory 4G --workers 1", "add --repair"),
    ],
)
def test_what_cannot_be_submitted_is_told_and_leaves_nothing(folder: Path, words: str, said: str) -> None:
    before = sorted(folder.rglob("*"))
    done = run_emseg("submit", *words.split(), cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert sorted(folder.rglob("*")) == before


def test_a_volume_with_the_name_of_a_command(folder: Path) -> None:
    (folder / "volume.zarr").rename(folder / "label")
    assert f'volume = "{folder / "label"}"' in emseg(folder, "submit", "./label", "--workers", "1", "--dry-run")
