"""Every block of the READMEs is run, or, where it would install or take an hour, checked as far as that goes."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from numpy.typing import NDArray
from readmes import ROOT, block, blocks, run
from scipy import ndimage

from emseg.metrics.membrane import best_threshold, f1
from emseg.model.foreign import SETTINGS, read_foreign
from emseg_workflows.access import token_file
from emseg_workflows.clusters.local import DASHBOARD_PORT, LOOPBACK

SAMPLE = ROOT / "examples" / "fib25-sample" / "raw.tif"
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
BAR = 0.85
"""Membrane F1 that five annotated slices must lead to."""
READMES = sorted(path.relative_to(ROOT) for path in ROOT.glob("**/README.md") if ".venv" not in path.parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader's own stack."""
    folder = tmp_path_factory.mktemp("reader")
    tifffile.imwrite(folder / "my-stack.tif", tifffile.imread(SAMPLE)[:6, :96, :96])
    return folder


def test_all_blocks_are_known() -> None:
    """A new block needs a test here."""
    starts = [
        "make demo",
        "emseg ingest",
        "from emseg_workflows",
        "classes =",
        "import numpy",
        "emseg label",
        "emseg run",
        "scrape_configs:",
        "name =",
        "emseg train",
        "EMSEG_DATA=",
    ]
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


def test_what_prometheus_is_told() -> None:
    """Where a run's dashboard is, and its token."""
    (job,) = yaml.safe_load(block("README.md", "scrape_configs:"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{LOOPBACK}:{DASHBOARD_PORT}"]}]
    assert job["authorization"] == {"credentials_file": str(token_file(Path("/data/volume.emseg.zarr")))}


def test_how_good_it_is(tmp_path: Path) -> None:
    for name, source in (("my-stack", "raw"), ("truth", "truth")):
        tifffile.imwrite(tmp_path / f"{name}.tif", tifffile.imread(SAMPLE.with_name(f"{source}.tif"))[:6, :96, :96])
    run("emseg", "ingest", "my-stack.tif", "volume.zarr", folder=tmp_path)
    done = run("bash", "-euc", block("README.md", "emseg run"), folder=tmp_path)
    assert "V_Rand" in done.stdout
    assert done.stdout.endswith("no face stands out\n")
    assert json.loads((tmp_path / "scores.json").read_text())["slices"] == [2, 4]


def test_a_number_for_each_neuron(tmp_path: Path) -> None:
    """On the whole sample, as good as the text says."""
    run("emseg", "ingest", str(SAMPLE), "neurons.zarr", folder=tmp_path)
    run("emseg", "run", "neurons.zarr", "--probabilities", "--workers", "1", folder=tmp_path)
    (tmp_path / "truth.tif").write_bytes(SAMPLE.with_name("truth.tif").read_bytes())
    done = run("bash", "-euc", block("README.md", "emseg label"), folder=tmp_path)
    error, variation = (float(done.stdout.split(name)[1].split()[0]) for name in ("Rand error", "variation of information"))
    assert error < 0.06
    assert variation < 0.95
    assert (tmp_path / "neurons.emseg.zarr.png").stat().st_size > 1000


def test_what_is_told_of_a_network_of_others_is_known(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").touch()
    (tmp_path / "n.onnx.toml").write_text(block("README.md", "classes ="))
    assert set(read_foreign(tmp_path / "n.onnx").settings) == set(SETTINGS)


def test_a_class_of_ones_own(tmp_path: Path) -> None:
    run("emseg", "ingest", str(SAMPLE), "volume.zarr", folder=tmp_path)
    script = tmp_path / "my_detector.py"
    script.write_text(block("README.md", "import numpy"))
    assert "tiled = untiled" in run(sys.executable, str(script), folder=tmp_path).stdout


def test_five_annotated_slices_label_a_whole_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On slices that are not learnt from, the network finds what no threshold does."""
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    run(sys.executable, str(ROOT / "examples" / "draw_cells.py"), str(tmp_path), folder=ROOT)
    run("emseg", "ingest", "volume.tif", "volume.zarr", "--voxel-size", "50", "4", "4", folder=tmp_path)
    (tmp_path / "my.toml").write_text(block("README.md", "name ="))
    run("bash", "-euc", block("README.md", "emseg train"), folder=tmp_path)
    truth = (tifffile.imread(tmp_path / "truth.tif") == 0).astype(np.uint8)
    labels = zarr.open_array(tmp_path / "volume.emseg.zarr" / "labels" / "classes" / "0", mode="r")[:]
    assert f1(labels, truth) > BAR > best_blur(tifffile.imread(tmp_path / "volume.tif"), truth) + 0.2
    assert (tmp_path / "volume.emseg.zarr.png").stat().st_size > 1000
    rows = (tmp_path / "my.log.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,score")
    assert (tmp_path / "my.log.svg").read_text().startswith("<svg")
    assert len(list((tmp_path / "my.pictures").glob("step-*.png"))) == 8


def test_the_explained_configuration_trains(tmp_path: Path) -> None:
    """As its first lines say, cut to two steps."""
    text = (ROOT / "workflows" / "train.toml").read_text()
    drawn, trained = re.findall(r"^#     (.*)$", text, re.MULTILINE)
    assert trained == "EMSEG_DATA=cells emseg train workflows/train.toml"
    run("bash", "-euc", drawn.replace("examples/", f"{ROOT}/examples/"), folder=tmp_path)
    for key, value, cut in (("steps", 1000, 2), ("warmup", 50, 1), ("validate_every", 100, 2)):
        assert f"\n{key} = {value} " in text
        text = text.replace(f"\n{key} = {value} ", f"\n{key} = {cut} ")
    (tmp_path / "cut.toml").write_text(text)
    run("bash", "-euc", trained.replace("workflows/train.toml", "cut.toml"), folder=tmp_path)
    assert (tmp_path / "my.safetensors").exists()


def best_blur(raw: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """The best F1 of a threshold after a blur, both chosen on the truth itself, each slice freed of its shade."""
    scores = []
    for deviation in (0.5, 1, 1.5, 2):
        blurred, shade = (ndimage.gaussian_filter(raw.astype(np.float32), (0, width, width)) for width in (deviation, 20))
        flat = blurred - shade
        scores.append(best_threshold(-flat / flat.std(axis=(1, 2), keepdims=True), truth)[1])
    return max(scores)


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in LINK.findall((ROOT / readme).read_text()):
        assert (ROOT / readme).parent.joinpath(target).exists(), target
