"""Test every block of the README and the documentation by running it, or by checking it as far as time allows."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from numpy.typing import NDArray
from object_store import object_store
from readmes import PAGES, ROOT, block, blocks, run
from runs import PLANAR, save_random_model, save_volume, texture
from scipy import ndimage

from emseg.access import token_file
from emseg.clusters.local import DASHBOARD_PORT, LOOPBACK
from emseg_core.metrics.membrane import best_threshold, f1
from emseg_core.model.external_model import SETTINGS, read_external
from emseg_core.model.output import NetworkOutput
from emseg_core.model.told_heads import read_heads

SAMPLE = ROOT / "examples" / "fib25-sample" / "raw.tif"
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
BAR = 0.85
"""Minimum membrane F1 after training on five annotated slices."""
READMES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("**/README.md") if ".venv" not in path.parts)
TUTORIALS = "workflows/docs/tutorials"
HOW_TO = "workflows/docs/how-to"
BLOCKS = {
    "README.md": ["make demo", "emseg ingest", "from emseg"],
    f"{TUTORIALS}/tiff-to-neurons.md": ["emseg ingest", "emseg plan", "emseg label"],
    f"{TUTORIALS}/train-on-five-slices.md": ["name =", "emseg train", "EMSEG_DATA="],
    f"{TUTORIALS}/your-own-network.md": [
        "output =",
        "[[heads]]",
        "normalise =",
        "mean =",
        "percentiles =",
        "import numpy",
        "emseg models export",
    ],
    f"{TUTORIALS}/object-stores.md": ["emseg run"],
    f"{HOW_TO}/evaluate.md": ["emseg run"],
    f"{HOW_TO}/proxy.md": ["export DASK_"],
    f"{HOW_TO}/watch.md": ["scrape_configs:"],
    "workflows/docs/results.md": ["EMSEG_DATA=", "emseg ingest", "EMSEG_DATA=", "emseg ingest"],  # in tests/tissue
}
"""First words of the blocks of each page, except pages that `test_deploy_docs.py` checks."""
CHECKED_ELSEWHERE = ("workflows/docs/deploy/", f"{TUTORIALS}/slurm.md")
MAX_README_LINES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the reader's own stack."""
    folder = tmp_path_factory.mktemp("reader")
    tifffile.imwrite(folder / "my-stack.tif", tifffile.imread(SAMPLE)[:6, :96, :96])
    return folder


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_all_blocks_are_known(page: str) -> None:
    """A new block needs a test here."""
    found = [text for _, text in blocks(page)]
    if page.startswith(CHECKED_ELSEWHERE):
        assert all(language == "sh" for language, _ in blocks(page))
        return
    starts = BLOCKS.get(page, [])
    assert [text for text, start in zip(found, starts, strict=False) if not text.startswith(start)] == []
    assert len(found) == len(starts)


def test_all_pages_with_blocks_exist() -> None:
    assert {"README.md", *PAGES} >= set(BLOCKS)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("target", block("README.md", "make demo").split("\n")[:-1])
def test_the_two_commands_exist(target: str) -> None:
    run(*target.split(), "--dry-run", folder=ROOT)


def test_four_lines_on_the_readers_own_stack(folder: Path) -> None:
    done = run("bash", "-euc", block("README.md", "emseg ingest"), folder=folder)
    assert "PASS: labels are the same as from one pass" in done.stdout
    assert (folder / "volume.emseg.zarr.png").stat().st_size > 1000
    assert (folder / "volume.emseg.zarr" / "labels" / "instances" / "zarr.json").exists()
    assert (folder / "volume.emseg.zarr" / "emseg" / "instances.csv").exists()


def test_the_same_from_python(folder: Path) -> None:
    script = folder / "same.py"
    script.write_text(block("README.md", "from emseg"))
    assert "PASS: labels are the same as from one pass" in run(sys.executable, str(script), folder=folder).stdout


def test_what_prometheus_is_told() -> None:
    """The page names the address of a run's dashboard, and its token."""
    (job,) = yaml.safe_load(block(f"{HOW_TO}/watch.md", "scrape_configs:"))["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"{LOOPBACK}:{DASHBOARD_PORT}"]}]
    assert job["authorization"] == {"credentials_file": str(token_file(Path("/data/volume.emseg.zarr")))}


def test_the_dashboard_is_told_of_a_hub() -> None:
    """The page uses the variable that Dask reads, with Dask's own port."""
    command = block(f"{HOW_TO}/proxy.md", "export DASK_").replace("HUB", "hub.example.org").replace("NAME", "me")
    script = "from emseg.clusters.guard import dashboard_address; print(dashboard_address('127.0.0.1', 8787))"
    done = run("bash", "-euc", f"{command}\n{sys.executable} -c {shlex.quote(script)}", folder=ROOT)
    assert done.stdout.strip() == "https://hub.example.org/user/me/proxy/8787/status"


def test_how_good_it_is(tmp_path: Path) -> None:
    for name, source in (("my-stack", "raw"), ("truth", "truth")):
        tifffile.imwrite(tmp_path / f"{name}.tif", tifffile.imread(SAMPLE.with_name(f"{source}.tif"))[:6, :96, :96])
    run("emseg", "ingest", "my-stack.tif", "volume.zarr", folder=tmp_path)
    done = run("bash", "-euc", block(f"{HOW_TO}/evaluate.md", "emseg run"), folder=tmp_path)
    assert "V_Rand" in done.stdout
    assert done.stdout.endswith("seams      none found\n")
    assert json.loads((tmp_path / "scores.json").read_text())["slices"] == [2, 4]


def test_a_number_for_each_neuron(tmp_path: Path) -> None:
    """The whole sample is labelled as well as the text says."""
    page = f"{TUTORIALS}/tiff-to-neurons.md"
    for name in ("raw.tif", "truth.tif"):
        (tmp_path / name).write_bytes(SAMPLE.with_name(name).read_bytes())
    for start in ("emseg ingest", "emseg plan"):
        run("bash", "-euc", block(page, start), folder=tmp_path)
    done = run("bash", "-euc", block(page, "emseg label"), folder=tmp_path)
    error, variation = (float(done.stdout.split(name)[1].split()[0]) for name in ("Rand error", "variation of information"))
    assert error < 0.06
    assert variation < 0.95
    assert (tmp_path / "neurons.emseg.zarr.png").stat().st_size > 1000


def test_on_an_object_store(tmp_path: Path) -> None:
    """Volume and output are in a bucket. The picture is saved in the current folder."""
    with object_store() as store:
        store.upload(save_volume(tmp_path / "volume.zarr", texture((8, 40, 40))), "volume.zarr")
        done = run("bash", "-euc", block(f"{TUTORIALS}/object-stores.md", "emseg run"), folder=tmp_path)
    assert "PASS: labels are the same as from one pass" in done.stdout
    assert (tmp_path / "labels.zarr.png").stat().st_size > 100


def test_what_is_told_of_a_network_of_others_is_known(tmp_path: Path) -> None:
    (tmp_path / "n.onnx").touch()
    known: set[str] = set()
    for start in ("output =", "[[heads]]", "normalise =", "mean =", "percentiles ="):
        (tmp_path / "n.onnx.toml").write_text(block(f"{TUTORIALS}/your-own-network.md", start))
        known |= set(read_external(tmp_path / "n.onnx").settings)
    assert known == set(SETTINGS)
    tables = tomllib.loads(block(f"{TUTORIALS}/your-own-network.md", "[[heads]]"))["heads"]
    heads = read_heads(tables, (NetworkOutput("out", 8, None),), "n.onnx.toml")
    assert [head.kind for head in heads] == ["affinities", "independent", "values", "classes"]


def test_a_network_is_written_for_other_tools(tmp_path: Path) -> None:
    save_random_model(tmp_path / "model.safetensors", PLANAR)
    run("bash", "-euc", block(f"{TUTORIALS}/your-own-network.md", "emseg models export"), folder=tmp_path)
    assert {"model.onnx", "model.pt2", "model.zip"} < {path.name for path in tmp_path.iterdir()}


def test_a_class_of_ones_own(tmp_path: Path) -> None:
    run("emseg", "ingest", str(SAMPLE), "volume.zarr", folder=tmp_path)
    script = tmp_path / "my_detector.py"
    script.write_text(block(f"{TUTORIALS}/your-own-network.md", "import numpy"))
    assert "PASS: labels are the same as from one pass" in run(sys.executable, str(script), folder=tmp_path).stdout


def test_five_annotated_slices_label_a_whole_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On slices not used for training, the network finds what no threshold does."""
    monkeypatch.delenv("EMSEG_DATA", raising=False)
    run(sys.executable, str(ROOT / "examples" / "draw_cells.py"), str(tmp_path), folder=ROOT)
    run("emseg", "ingest", "volume.tif", "volume.zarr", "--voxel-size", "50", "4", "4", folder=tmp_path)
    (tmp_path / "my.toml").write_text(block(f"{TUTORIALS}/train-on-five-slices.md", "name ="))
    run("bash", "-euc", block(f"{TUTORIALS}/train-on-five-slices.md", "emseg train"), folder=tmp_path)
    truth = (tifffile.imread(tmp_path / "truth.tif") == 0).astype(np.uint8)
    labels = np.asarray(zarr.open_array(tmp_path / "volume.emseg.zarr" / "labels" / "classes" / "0", mode="r")[:])
    assert f1(labels, truth) > BAR > best_blur(tifffile.imread(tmp_path / "volume.tif"), truth) + 0.2
    assert (tmp_path / "volume.emseg.zarr.png").stat().st_size > 1000
    rows = (tmp_path / "my.log.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,score")
    assert (tmp_path / "my.log.svg").read_text().startswith("<svg")
    assert len(list((tmp_path / "my.pictures").glob("step-*.png"))) == 8


def test_the_explained_configuration_trains(tmp_path: Path) -> None:
    """It follows the file's first lines, shortened to two steps."""
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
    """Return the best F1 of a threshold after a blur, both chosen on the truth itself, with shading removed from each slice."""
    scores = []
    for deviation in (0.5, 1, 1.5, 2):
        blurred, shade = (ndimage.gaussian_filter(raw.astype(np.float32), (0, width, width)) for width in (deviation, 20))
        flat = blurred - shade
        scores.append(best_threshold(-flat / flat.std(axis=(1, 2), keepdims=True), truth)[1])
    return max(scores)


@pytest.mark.parametrize("readme", [*READMES, "CONTRIBUTING.md", "CHANGELOG.md", *PAGES])
def test_links_lead_somewhere(readme: str) -> None:
    for target in LINK.findall((ROOT / readme).read_text()):
        assert (ROOT / readme).parent.joinpath(target).exists(), target


def test_links_are_found() -> None:
    assert len(LINK.findall((ROOT / "README.md").read_text())) > 10
