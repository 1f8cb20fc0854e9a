"""Test that every example runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from exported import levels_in, make_output, place_of
from runs import PLANAR, save_random_model, save_volume, texture
from scipy import ndimage

from emseg import segment
from emseg_core.store.stacks.tiff import open_tiff
from open_in_napari import layers_of, main, raw_levels

EXAMPLES = Path(__file__).parents[2] / "examples"
SAMPLE = EXAMPLES / "fib25-sample" / "raw.tif"
NUMBER = r"(\d+(?:\.\d+)?)"


def run(script: str, *arguments: str) -> str:
    """Run an example and return its output."""
    done = subprocess.run([sys.executable, str(EXAMPLES / script), *arguments], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_without_a_test() -> None:
    """The examples in unet_paper/ have their own tests."""
    scripts = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if path.parent.name != "unet_paper"}
    assert scripts == {
        "segment_sample.py",
        "tiff_to_neurons.py",
        "own_network.py",
        "own_predictor.py",
        "existing_dask_cluster.py",
        "open_in_napari.py",
        "look_at_plan.py",
        "draw_cells.py",
        "affinities.py",
        "organelles.py",
        "fib25-sample/baseline.py",
    }


@pytest.mark.parametrize("readme", ["README.md", "examples/README.md"])
def test_each_script_is_listed(readme: str) -> None:
    """The main list has all scripts that readers are meant to change."""
    listed = set(re.findall(r"^\| \W?([\w.]+\.py)", (EXAMPLES.parent / readme).read_text(), re.MULTILINE))
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts - listed <= ({"segment_sample.py", "look_at_plan.py", "draw_cells.py"} if readme == "README.md" else set())
    assert listed <= scripts


def test_segment_sample(tmp_path: Path) -> None:
    """The demo also runs a second time. Its score is that of the bundled model on unseen slices."""
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    segment(save_volume(tmp_path / "old.zarr", texture((2, 20, 20))), tmp_path / "sample.emseg.zarr", model=model, workers=0)
    printed = run("segment_sample.py", str(tmp_path))
    score = re.search(r"membrane F1 (\d\.\d+)", printed)
    assert score is not None
    assert float(score[1]) > 0.7
    assert (tmp_path / "sample.png").stat().st_size > 10_000


def test_tiff_to_neurons(tmp_path: Path) -> None:
    """Voxels are counted in the exported TIFF."""
    tifffile.imwrite(tmp_path / "mine.tif", tifffile.imread(SAMPLE)[:12, :100, :110])
    asked = (str(tmp_path / "mine.tif"), str(tmp_path / "made"), "--voxel-size", "20", "10", "5", "--workers", "0")
    printed = run("tiff_to_neurons.py", *asked)
    labels = tifffile.imread(tmp_path / "made" / "mine-neurons.ome.tif")
    numbers, counts = np.unique(labels[labels > 0], return_counts=True)
    told = re.findall(rf"number (\d+): {NUMBER} cubic micrometres, centre at voxel \((\d+), (\d+), (\d+)\)", printed)
    assert len(told) == 5
    assert [float(size) for _, size, *_ in told] == pytest.approx(np.sort(counts)[:-6:-1] * 1e-6, rel=1e-4)
    for number, size, *centre in told:
        assert counts[numbers == int(number)] * 1e-6 == pytest.approx(float(size), rel=1e-4)
        assert np.argwhere(labels == int(number)).mean(axis=0) == pytest.approx(list(map(int, centre)), abs=0.51)
    with open_tiff(tmp_path / "made" / "mine-neurons.ome.tif") as stack:
        assert stack.stated is not None
        assert stack.stated.scale == (20, 10, 5)
    assert (tmp_path / "made" / "mine.emseg.zarr.report.html").read_text().count("<svg") > 1
    again = run("tiff_to_neurons.py", *asked)
    assert again == printed


def test_own_network(tmp_path: Path) -> None:
    """Two paddings, a pooling, three more paddings at half the size and one after: a tile's end affects five voxels."""
    printed = run("own_network.py", str(tmp_path))
    assert "context (0, 5, 5) and lattice (1, 2, 2) voxels (z, y, x), classes inside, membrane" in printed
    assert "padding: affects 0 x 5 x 5 voxels" in printed
    assert "exact: found by arithmetic on the operations of the network, and confirmed by experiment" in printed
    assert "PASS: labels are the same as from one pass" in printed
    score = re.search(rf"membrane F1 {NUMBER}", printed)
    assert score is not None
    assert float(score[1]) > 0.5


def test_own_predictor(tmp_path: Path) -> None:
    """The script itself checks that blocks agree with one pass; this test compares both with scipy on the whole volume."""
    printed = run("own_predictor.py", str(tmp_path))
    assert "context (0, 12, 12) voxels (z, y, x) on each side" in printed
    assert re.search(r"^(\d+) of \1 blocks computed", printed, re.MULTILINE)
    assert "PASS: labels are the same as from one pass" in printed
    assert "every voxel has the same label as in one pass" in printed
    labels = np.asarray(zarr.open_array(tmp_path / "ridges.emseg.zarr" / "labels" / "classes" / "0", mode="r")[:])
    raw = tifffile.imread(SAMPLE).astype(float)
    fine, coarse = (
        ndimage.gaussian_filter((raw - raw.mean()) / raw.std(), (0, width, width), mode="mirror", radius=(0, 12, 12))
        for width in (1, 4)
    )
    clear = abs(coarse - fine - 0.35) > 1e-3
    assert np.array_equal(labels[clear], (coarse - fine > 0.35)[clear])
    assert clear.mean() > 0.99
    assert (tmp_path / "ridges.png").stat().st_size > 10_000
    again = subprocess.run(
        [sys.executable, "-X", "importtime", str(EXAMPLES / "own_predictor.py"), str(tmp_path)], capture_output=True, text=True
    )
    assert re.search(r"^0 of", again.stdout, re.MULTILINE)
    assert "emseg_core.block" in again.stderr
    assert "torch" not in again.stderr


def test_existing_dask_cluster(tmp_path: Path) -> None:
    printed = run("existing_dask_cluster.py", str(tmp_path))
    blocks = re.findall(r"^(\d+) blocks by \S+:\d+$", printed, re.MULTILINE)
    assert sum(map(int, blocks)) == 32
    assert re.search(r"^(\d+) of \1 blocks in", printed, re.MULTILINE)
    assert "the cluster still works: 42" in printed


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an output of part of a volume with an offset, with two coarser levels that do not divide all lengths."""
    return make_output(tmp_path_factory.mktemp("shown"))


def test_layers_for_napari(output: Path) -> None:
    """Each level is where its metadata state. napari places it by its scale, from the corner of the finest one."""
    raw, *labels = layers_of(output)
    assert (raw.kind, raw.name, raw.scale, raw.translate) == ("image", "raw", (30.0, 4.5, 4.0), (90.0, 0.0, -8.0))
    assert np.array_equal(np.array(raw.levels[0]), zarr.open_array(output.with_name("raw.zarr") / "0", mode="r")[:])
    assert [layer.name for layer in labels] == ["classes", "instances"]
    for layer, blank in zip(labels, (255, 0), strict=True):
        assert (layer.kind, layer.units) == ("labels", ("nanometer",) * 3)
        stored = levels_in(output, layer.name)
        assert len(layer.levels) == len(stored) == 3
        assert any(shown.shape != given.shape for shown, given in zip(layer.levels, stored, strict=True))
        for step, (shown, given) in zip(((1, 1, 1), (1, 2, 2), (1, 4, 4)), zip(layer.levels, stored, strict=True), strict=True):
            factor = np.divide(layer.levels[0].shape, shown.shape)  # as in napari
            scale, translate = place_of(step)
            assert (factor * layer.scale).tolist() == scale
            assert (np.array(layer.translate) + np.array(layer.scale) * (factor - 1) / 2).tolist() == translate
            voxels = np.array(shown)
            assert np.array_equal(voxels[tuple(map(slice, given.shape))], given)
            voxels[tuple(map(slice, given.shape))] = blank
            assert (voxels == blank).all()
    assert set(labels[0].options["colormap"]) == {0, 1, None}
    assert labels[0].options["features"] == {"index": [0, 1], "class": ["inside", "membrane"]}
    assert labels[1].options == {}
    assert raw.arguments.keys() == {"data", "multiscale", "name", "scale", "translate", "units"}
    assert raw.arguments["data"] is raw.levels[0]
    assert labels[0].arguments["data"] is labels[0].levels
    assert [layer.arguments["multiscale"] for layer in (raw, *labels)] == [False, True, True]


def test_other_volumes_in_napari(output: Path, tmp_path: Path) -> None:
    """A plain array has the offset of its attributes. In a foreign pyramid, levels at other positions are omitted."""
    plain = save_volume(tmp_path / "plain.zarr", texture((3, 9, 9)), voxel_size=[40, 8, 8], units=["nm"] * 3)
    ((voxels, space),) = raw_levels(plain)
    assert (voxels.shape, space.scale) == ((3, 9, 9), (40, 8, 8))
    axes = [{"name": name, "type": "space"} for name in "czyx"]
    datasets = [
        {"path": str(n), "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2**n, 2**n]}]} for n in range(2)
    ]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group = zarr.create_group(tmp_path / "without-offset.zarr", attributes={"ome": ome})
    for level, length in enumerate((8, 4)):
        group.create_array(str(level), data=texture((3, length, length))[None])
    assert len(raw_levels(tmp_path / "without-offset.zarr")) == 2
    raw, *_ = layers_of(output, tmp_path / "without-offset.zarr")
    assert [level.shape for level in raw.levels] == [(3, 8, 8)]
    assert "units" not in raw.arguments


def test_without_napari(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "napari", None)
    with pytest.raises(SystemExit, match=r"pip install 'napari\[all\]'"):
        main(output, None)


def test_look_at_plan() -> None:
    assert "a petabyte" in run("look_at_plan.py")


def test_draw_cells(tmp_path: Path) -> None:
    """test_readme.py trains on what it draws."""
    run("draw_cells.py", str(tmp_path))
    for depth, pair in ((5, ("slices", "labels")), (6, ("volume", "truth"))):
        raw, values = (tifffile.imread(tmp_path / f"{name}.tif") for name in pair)
        assert raw.shape == values.shape == (depth, 256, 256)
        assert np.unique(values).tolist() == [0, 255]
        assert raw[values == 0].mean() < raw[values == 255].mean() - 20


def test_affinities(tmp_path: Path) -> None:
    """The configuration that it trains with is a shipped one."""
    printed = run("affinities.py", str(tmp_path))
    assert "PASS: labels are the same as from one pass" in printed
    error = re.search(rf"adapted Rand error {NUMBER}", printed)
    assert error is not None
    assert float(error[1]) < 0.3
    stored = zarr.open_array(tmp_path / "affinities.emseg.zarr" / "affinities" / "0", mode="r")
    assert stored.shape == (3, 24, 96, 96)
    assert stored.dtype == np.dtype(np.uint8)


def test_organelles(tmp_path: Path) -> None:
    """Classes overlap: mitochondria are organelles, too. The configuration that it trains with is a shipped one."""
    printed = run("organelles.py", str(tmp_path))
    assert "PASS: labels are the same as from one pass" in printed
    scores = dict(re.findall(rf"^(\w+) F1 {NUMBER} on slices", printed, re.MULTILINE))
    assert scores.keys() == {"mito", "er", "organelle"}
    assert min(map(float, scores.values())) > 0.6
    mito, organelle = (
        np.asarray(zarr.open_array(tmp_path / "organelles.emseg.zarr" / "labels" / name / "0", mode="r")[:]) == 1
        for name in ("mito", "organelle")
    )
    assert (mito & organelle).any()


@pytest.mark.skipif("EMSEG_DATA" not in os.environ, reason="EMSEG_DATA names no folder")
def test_baseline() -> None:
    assert "F1" in run("fib25-sample/baseline.py")
