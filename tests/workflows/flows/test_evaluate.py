"""Test evaluation against scores of whole arrays, and refusals of what cannot be compared."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from runs import CUBIC, PLANAR, run_emseg, save_random_model, save_volume, shards, texture

from emseg import evaluate, segment
from emseg.flows.evaluate import Evaluation
from emseg_core.errors import InputError, OutputError
from emseg_core.metrics.components import components
from emseg_core.metrics.isbi import FINE, TENTHS, border_scores
from emseg_core.metrics.membrane import count
from emseg_core.metrics.partition import Scores
from emseg_core.metrics.warping import warp
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.truth import membrane_truth

SHAPE = (7, 45, 53)
LABELS = {"membrane": (0,), "inside": (255, 128)}
IGNORED = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make outputs with and without probabilities, of two and of three classes, and truths for them."""
    folder = tmp_path_factory.mktemp("scored")
    save_volume(folder / "volume.zarr", texture(SHAPE))
    for name, spec, more in (
        ("planar", PLANAR, {"probabilities": True}),
        ("bare", PLANAR, {}),
        ("part", PLANAR, {"probabilities": True, "roi": "2:6,3:40,:"}),
        ("cubic", CUBIC, {"probabilities": True}),
    ):
        model = save_random_model(folder / f"{name}.safetensors", spec)
        segment(folder / "volume.zarr", folder / f"{name}.zarr", model=model, workers=0, **more)
    rng = np.random.default_rng(5)
    own = labels_of(folder / "planar.zarr")
    values = np.choose(own, [255, 0]).astype(np.uint8)
    values[rng.random(SHAPE) < 0.1] = 0
    values[rng.random(SHAPE) < 0.1] = 128
    values[rng.random(SHAPE) < 0.05] = IGNORED
    save_tiff(folder / "truth.tif", values)
    save_volume(folder / "truth.zarr", values)
    save_tiff(folder / "ids.tif", (1 + np.tensordot((4, 1, 1), np.indices(SHAPE), 1) // 11).astype(np.uint16))
    return folder


def save_tiff(path: Path, values: NDArray[Any]) -> None:
    tifffile.imwrite(path, values, photometric="minisblack")  # three slices are not colours


def labels_of(path: Path) -> NDArray[np.uint8]:
    output = open_output(path)
    return output.read_labels(output.region)


def probability(path: Path) -> NDArray[np.uint8]:
    """Return the stored probabilities of the membrane."""
    output = open_output(path)
    return np.asarray(output.read_probabilities(output.region)[output.classes.index("membrane")])


def true_classes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the true classes: 0 inside, 1 membrane, 255 ignore."""
    return np.where(values == IGNORED, 255, values == 0).astype(np.uint8)


def assert_scores(found: Evaluation, stored: NDArray[np.uint8], truth: NDArray[np.uint8], threshold: float) -> None:
    """Check that scores found slice by slice equal those of these whole arrays."""
    inside, known = truth == 0, truth != 255
    assert len(found.slice_scores) == len(truth)
    for one, plane, true, scored in zip(found.slice_scores, stored, inside, known, strict=True):
        border = plane / 254 >= threshold
        assert one.segments == border_scores(border, components(true))
        assert one.warped == warp(~border, true, scored)
    for name in Scores.__slots__:
        mean = np.mean([getattr(one.segments, name) for one in found.slice_scores])
        assert found.to_json()["segments"][name] == pytest.approx(mean)
    assert found.sweep is not None
    for place in (0, 5, 13, 25, 50):
        each = [border_scores(p / 254 >= FINE[place], components(t)) for p, t in zip(stored, inside, strict=True)]
        assert found.sweep.rand[place] == pytest.approx(np.mean([scores.rand for scores in each]))
        assert found.sweep.info[place] == pytest.approx(np.mean([scores.info for scores in each]))


@pytest.mark.parametrize(("truth", "threshold"), [("truth.tif", 0.5), ("truth.zarr", 0.3)])
def test_against_whole_arrays(truth: str, threshold: float, folder: Path) -> None:
    found = evaluate(folder / "planar.zarr", folder / truth, labels=LABELS, ignore=(IGNORED,), threshold=threshold)
    true, own = true_classes(tifffile.imread(folder / "truth.tif")), labels_of(folder / "planar.zarr")
    assert_scores(found, probability(folder / "planar.zarr"), true, threshold)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    for label, name in enumerate(("inside", "membrane")):
        counts = count(own, true, membrane=label)
        assert document["classes"][name]["f1"] == pytest.approx(counts.f1)
        assert document["classes"][name]["iou"] == pytest.approx(counts.iou)
    assert document["voxels"]["error"] == pytest.approx(np.mean((own != true)[true != 255]))
    best = max(document["sweep"]["rand"])
    assert document["best"]["0.02"]["rand"]["score"] == best
    coarse = document["best"]["0.1"]["rand"]
    assert coarse["threshold"] in TENTHS
    assert coarse["score"] == max(document["sweep"]["rand"][::5]) <= best
    assert f"V_Rand   {document['segments']['rand']:.4f}" in str(found)
    assert f"best       V_Rand {coarse['score']:.4f} at threshold {coarse['threshold']:g}" in str(found)


def test_its_own_labels_are_perfect(folder: Path, tmp_path: Path) -> None:
    save_tiff(tmp_path / "own.tif", labels_of(folder / "bare.zarr"))
    found = evaluate(folder / "bare.zarr", tmp_path / "own.tif", labels={"inside": (0,), "membrane": (1,)}).to_json()
    assert found["voxels"]["error"] == 0
    assert (found["segments"]["rand"], found["segments"]["info"], found["warping_error"]) == pytest.approx((1, 1, 0))


def test_without_probabilities_the_labels_count(folder: Path) -> None:
    found = evaluate(folder / "bare.zarr", folder / "truth.tif", labels=LABELS, ignore=(IGNORED,))
    assert (found.sweep, found.histogram, found.threshold) == (None, None, None)
    own, true = labels_of(folder / "bare.zarr"), true_classes(tifffile.imread(folder / "truth.tif"))
    expected = [border_scores(o == 1, components(t == 0)) for o, t in zip(own, true, strict=True)]
    assert [one.segments for one in found.slice_scores] == expected
    assert "run with --probabilities to store them" in str(found)
    stored = evaluate(folder / "planar.zarr", folder / "truth.tif", labels=LABELS, ignore=(IGNORED,))
    assert "run with --probabilities to store them" not in str(stored)


def test_some_slices(folder: Path, tmp_path: Path) -> None:
    """The truth covers all slices, or only these."""
    values = tifffile.imread(folder / "truth.tif")
    save_tiff(tmp_path / "three.tif", values[2:5])
    options: dict[str, Any] = {"labels": LABELS, "ignore": (IGNORED,), "slices": (2, 5)}
    for truth in (folder / "truth.tif", tmp_path / "three.tif"):
        found = evaluate(folder / "planar.zarr", truth, **options)
        assert [one.z for one in found.slice_scores] == [2, 3, 4]
        assert_scores(found, probability(folder / "planar.zarr")[2:5], true_classes(values[2:5]), 0.5)


def test_a_part_of_the_volume(folder: Path, tmp_path: Path) -> None:
    """The truth covers the whole volume, or only the part."""
    values = tifffile.imread(folder / "truth.tif")
    save_tiff(tmp_path / "part.tif", values[2:6, 3:40])
    for truth in (folder / "truth.tif", tmp_path / "part.tif"):
        found = evaluate(folder / "part.zarr", truth, labels=LABELS, ignore=(IGNORED,))
        assert_scores(found, probability(folder / "part.zarr"), true_classes(values[2:6, 3:40]), 0.5)


@pytest.mark.parametrize("planar", [False, True])
def test_ids_become_membrane(planar: bool, folder: Path) -> None:
    """Each slice gets the membrane of the whole volume, since neighbours in z are read."""
    ids = tifffile.imread(folder / "ids.tif")
    whole = membrane_truth(ids, planar=planar)
    found = evaluate(folder / "planar.zarr", folder / "ids.tif", ids=True, planar=planar)
    assert found.to_json()["classes"]["membrane"]["voxels"] == np.count_nonzero(whole == 1)
    assert_scores(found, probability(folder / "planar.zarr"), whole, 0.5)
    part = evaluate(folder / "part.zarr", folder / "ids.tif", ids=True, planar=planar)
    assert_scores(part, probability(folder / "part.zarr"), whole[2:6, 3:40], 0.5)


def test_several_classes(folder: Path, tmp_path: Path) -> None:
    own = labels_of(folder / "cubic.zarr")
    values = np.choose(own, [10, 20, 30]).astype(np.uint16)
    values[:, :5] = 20
    save_tiff(tmp_path / "three.tif", values)
    labels = {"other": (30,), "inside": (10,), "membrane": (20,)}
    found = evaluate(folder / "cubic.zarr", tmp_path / "three.tif", labels=labels, border="other")
    truth = values // 10 - 1
    for label, name in enumerate(("inside", "membrane", "other")):
        counts = count(own, truth.astype(np.uint8), membrane=label)
        assert found.to_json()["classes"][name]["precision"] == pytest.approx(counts.precision)
        assert found.to_json()["classes"][name]["recall"] == pytest.approx(counts.recall)
    assert found.border == "other"
    assert len(found.slice_scores) == SHAPE[0]


@pytest.mark.parametrize("name", ["volume.tif", "volume.zarr"])
def test_a_volume_of_somebody_elses(name: str, folder: Path, tmp_path: Path) -> None:
    """Its values mean the same as those of the truth. Without a class that separates segments, only voxels are scored."""
    values = tifffile.imread(folder / "truth.tif")
    values[values == IGNORED] = 0
    rolled = np.roll(values, 3, axis=2)
    save = save_tiff if name.endswith("tif") else save_volume
    save(tmp_path / name, rolled)
    save_tiff(tmp_path / "truth.tif", values)
    found = evaluate(tmp_path / name, tmp_path / "truth.tif", labels=LABELS)
    assert found.to_json()["voxels"]["error"] == pytest.approx(np.mean((values == 0) != (rolled == 0)))
    assert len(found.slice_scores) == SHAPE[0]
    unnamed = evaluate(tmp_path / name, tmp_path / "truth.tif", labels={"a": (0,), "b": (128, 255)})
    assert (unnamed.border, unnamed.slice_scores) == (None, [])
    assert "choose one with --class" in str(unnamed)


def test_slices_without_a_segment_are_left_out(folder: Path, tmp_path: Path) -> None:
    values = tifffile.imread(folder / "truth.tif")
    values[3] = 0
    save_tiff(tmp_path / "gap.tif", values)
    found = evaluate(folder / "planar.zarr", tmp_path / "gap.tif", labels=LABELS, ignore=(IGNORED,))
    assert [one.z for one in found.slice_scores] == [0, 1, 2, 4, 5, 6]
    save_tiff(tmp_path / "none.tif", np.zeros(SHAPE, np.uint8))
    nothing = evaluate(folder / "planar.zarr", tmp_path / "none.tif", labels=LABELS)
    assert "the truth is membrane everywhere" in str(nothing)
    assert nothing.to_json()["segments"] is None


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    peaks = []
    for depth in (8, 64):
        for name in ("made", "truth"):
            save_volume(tmp_path / f"{name}{depth}.zarr", (texture((depth, 64, 64)) > 128).astype(np.uint8), (4, 64, 64))
        tracemalloc.start()
        evaluate(tmp_path / f"made{depth}.zarr", tmp_path / f"truth{depth}.zarr", labels={"membrane": (0,), "inside": (1,)})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize(
    ("output", "truth", "options", "message"),
    [
        ("planar.zarr", "truth.tif", {}, "need exactly one meaning.*labels.*ids=True"),
        ("planar.zarr", "truth.tif", {"labels": LABELS, "ids": True}, "need exactly one meaning"),
        ("planar.zarr", "truth.tif", {"labels": LABELS}, "have the value 9, which stands for none of inside, membrane"),
        ("planar.zarr", "truth.tif", {"labels": {"glia": (0,)}}, "no class 'glia': the classes are inside, membrane"),
        ("planar.zarr", "truth.tif", {"labels": LABELS, "border": "glia"}, "no class 'glia': choose one of inside"),
        ("planar.zarr", "truth.tif", {"labels": LABELS, "ignore": (128,)}, "value 128 stands for ignored voxels and"),
        (
            "planar.zarr",
            "truth.tif",
            {"labels": LABELS, "threshold": 1.5},
            "the threshold is 1.5, but probabilities are from 0 to 1",
        ),
        ("planar.zarr", "truth.tif", {"labels": LABELS, "slices": (3, 8)}, "slices 0 to 6.*not 3:8"),
        ("planar.zarr", "truth.tif", {"labels": LABELS, "slices": (3, 3)}, "slices 0 to 6.*not 3:3"),
        ("planar.zarr", "short.tif", {"labels": LABELS}, "has 7 slices, but .*short.tif has 3: give the slices"),
        ("planar.zarr", "short.tif", {"labels": LABELS, "slices": (0, 2)}, "7 slices, of which 2 were chosen, but .* has 3"),
        ("planar.zarr", "narrow.tif", {"labels": LABELS}, r"\(45, 53\), but those of .*narrow.tif \(45, 50\)"),
        (
            "planar.zarr",
            "nan.tif",
            {"labels": LABELS, "ignore": (9,)},
            "nan.tif, the truth holds the value nan, but classes and ids",
        ),
        ("planar.zarr", "grey.tif", {"ids": True}, "in slices 0 to [0-9] of .*grey.tif, the truth holds the value 0.5, but"),
        ("planar.zarr", "missing.tif", {"labels": LABELS}, "missing.tif"),
        ("missing.zarr", "truth.tif", {"labels": LABELS}, "nothing at .*missing.zarr"),
        (
            "broken.zarr",
            "truth.tif",
            {"labels": LABELS},
            r"1 of [0-9]+ blocks of .*broken.zarr are not computed.*`segment\(\)`",
        ),
        ("odd.tif", "truth.tif", {"labels": LABELS, "ignore": (9,)}, "in slice 0 of .*odd.tif, 1 voxel has the value 7"),
        ("named.zarr", "ids.tif", {"ids": True}, "ids=True gives the classes inside and membrane, but the output has sky, sea"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    output: str, truth: str, options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    values = tifffile.imread(folder / "truth.tif")
    odd = np.full(SHAPE, 255, np.uint8)
    odd[0, 0, 0] = 7
    nan, grey = values.astype(np.float32), np.full(SHAPE, 0.5, np.float32)
    nan[4, 2, 1] = np.nan
    others = {"short": values[:3], "narrow": values[:, :, :50], "nan": nan, "grey": grey, "odd": odd}
    for name, what in others.items():
        save_tiff(tmp_path / f"{name}.tif", what)
    if output == "broken.zarr":
        segment(folder / "volume.zarr", tmp_path / output, model=folder / "planar.safetensors", workers=0)
        shards(tmp_path / output)[0].unlink()
    if output == "named.zarr":
        model = save_random_model(tmp_path / "named.safetensors", replace(PLANAR, classes=("sky", "sea")))
        segment(folder / "volume.zarr", tmp_path / output, model=model, workers=0)
    one, other = (tmp_path / name if (tmp_path / name).exists() else folder / name for name in (output, truth))
    with pytest.raises(InputError, match=message) as caught:
        evaluate(one, other, **options)
    assert "\n" not in str(caught.value)


def test_a_damaged_output_is_no_plain_volume(folder: Path, tmp_path: Path) -> None:
    segment(folder / "volume.zarr", tmp_path / "out.zarr", model=folder / "planar.safetensors", workers=0)
    (tmp_path / "out.zarr" / "labels/classes/0/zarr.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        evaluate(tmp_path / "out.zarr", folder / "truth.tif", labels=LABELS)


def test_as_a_command(folder: Path, tmp_path: Path) -> None:
    words = ["planar.zarr", "truth.tif", "--labels", "membrane=0,inside=128+255", "--ignore", "9", "--slices", "1:4"]
    done = run_emseg("evaluate", *words, "--json", tmp_path / "found.json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    found = evaluate(folder / "planar.zarr", folder / "truth.tif", labels=LABELS, ignore=(9,), slices=(1, 4))
    said = json.loads((tmp_path / "found.json").read_text())
    assert {**said, "output": "", "truth": ""} == {**found.to_json(), "output": "", "truth": ""}
    assert said["output"] == "planar.zarr"
    assert done.stdout.splitlines()[2:] == str(found).splitlines()[2:]
