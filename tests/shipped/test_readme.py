"""Every block of the READMEs is run, or, where it would install or take an hour, checked as far as that goes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tifffile

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "fib25-sample" / "raw.tif"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
READMES = sorted(path.relative_to(ROOT) for path in ROOT.glob("**/README.md") if ".venv" not in path.parts)


def blocks(readme: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return BLOCK.findall((ROOT / readme).read_text())


def block(readme: str, start: str) -> str:
    """The one block that starts with these words."""
    (found,) = [text for _, text in blocks(readme) if text.startswith(start)]
    return found


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command that must succeed, with the package's commands on the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's own stack."""
    folder = tmp_path_factory.mktemp("reader")
    tifffile.imwrite(folder / "my-stack.tif", tifffile.imread(SAMPLE)[:6, :96, :96])
    return folder


def test_all_blocks_are_known() -> None:
    """A new block needs a test here."""
    starts = ["make demo", "emseg ingest", "from emseg_workflows", "emseg run", "EMSEG_DATA="]
    assert [text for _, text in blocks("README.md") if not text.startswith(tuple(starts))] == []
    assert len(blocks("README.md")) == len(starts)


@pytest.mark.parametrize("target", block("README.md", "make demo").split("\n")[:-1])
def test_the_two_commands_exist(target: str) -> None:
    run(*target.split(), "--dry-run", folder=ROOT)


def test_four_lines_on_the_readers_own_stack(folder: Path) -> None:
    done = run("bash", "-euc", block("README.md", "emseg ingest"), folder=folder)
    assert "tiled = untiled" in done.stdout
    assert (folder / "volume.emseg.zarr.png").stat().st_size > 1000


def test_the_same_from_python(folder: Path) -> None:
    script = folder / "same.py"
    script.write_text(block("README.md", "from emseg_workflows"))
    assert "tiled = untiled" in run(sys.executable, str(script), folder=folder).stdout


def test_how_good_it_is(tmp_path: Path) -> None:
    for name, source in (("my-stack", "raw"), ("truth", "truth")):
        tifffile.imwrite(tmp_path / f"{name}.tif", tifffile.imread(SAMPLE.with_name(f"{source}.tif"))[:6, :96, :96])
    run("emseg", "ingest", "my-stack.tif", "volume.zarr", folder=tmp_path)
    done = run("bash", "-euc", block("README.md", "emseg run"), folder=tmp_path)
    assert "V_Rand" in done.stdout
    assert done.stdout.endswith("no face stands out\n")
    assert json.loads((tmp_path / "scores.json").read_text())["slices"] == [2, 4]


@pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder")
def test_training_starts(folder: Path) -> None:
    """The shipped configuration, cut to two steps of a tiny network."""
    command = block("README.md", "EMSEG_DATA=").replace("EMSEG_DATA=/path/to/data ", "")
    assert command.strip() == "emseg train workflows/fib25.toml"
    text = (ROOT / "workflows" / "fib25.toml").read_text()
    config = tomllib.loads(text)
    for table, key, value in (("model", "width", 2), ("fit", "steps", 2), ("fit", "warmup", 1), ("fit", "validate_every", 2)):
        text = text.replace(f"{key} = {config[table][key]}", f"{key} = {value}", 1)
    text = text.replace(config["output"], str(folder / "tiny.safetensors"))
    (folder / "tiny.toml").write_text(text)
    run("emseg", "train", str(folder / "tiny.toml"), folder=folder)
    assert (folder / "tiny.safetensors").exists()


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in LINK.findall((ROOT / readme).read_text()):
        assert (ROOT / readme).parent.joinpath(target).exists(), target
