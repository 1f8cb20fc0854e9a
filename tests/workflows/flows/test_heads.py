"""Test runs of a network with heads of all kinds: what one pass gives, for any workers, after a stop, and in every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from detectors import Many
from numpy.typing import NDArray
from runs import bytes_of, save_volume, texture

import emseg
from emseg import evaluate, export, label, report, segment, status, verify
from emseg.flows.records.run_log import recipe_of
from emseg.flows.repair import repair, verify_checksums
from emseg.runs.events import Event, Noticed
from emseg_core.errors import InputError, OutputError, PlanError
from emseg_core.grid.pyramid import coarsened
from emseg_core.grid.stitch import QUANTA, quantise, softmax
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.outputs.lifecycle import open_output, tidy_output

SHAPE = (7, 60, 300)  # large enough for a coarser level
VALUES = texture(SHAPE)
NAME = "detectors:Many"
IMAGES = ("distances", "coarse", "affinities", "organelles", "mito", "er", "probabilities", "classes")
ORDER = ("distances", "coarse", "affinities", "organelles", "classes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume, and an output with all heads."""
    folder = tmp_path_factory.mktemp("heads")
    save_volume(folder / "volume.zarr", VALUES)
    run(folder, folder / "out.zarr", probabilities=True)
    return folder


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Make a copy of the output."""
    return Path(shutil.copytree(folder / "out.zarr", tmp_path / "out.zarr"))


def run(folder: Path, output: Path, **options: Any) -> dict[str, str]:
    """Run, and return the bytes of the output."""
    report = segment(folder / "volume.zarr", output, predictor=NAME, **{"workers": 0, **options})
    assert (report.exit_code, report.left) == (0, 0)
    return bytes_of(output)


def in_one_pass() -> dict[str, NDArray[Any]]:
    """Return what the whole mirrored volume gives as one tile, by the names of the images."""
    normalised = (VALUES.astype(np.float32) - np.float32(VALUES.mean())) / np.float32(VALUES.std())
    found = Many().predict(np.pad(normalised, [(1, 1), (2, 2), (2, 2)], mode="reflect")[None])[0]
    mito, er = found[5], found[6]
    assert np.abs(found[0]).max() > 1.5  # values outside the scale are clipped
    return {
        "distances": found[:2].astype(np.float16),
        "coarse": np.rint((np.clip(found[2:3], -1.5, 1.5) + np.float32(1.5)) / np.float32(3) * np.float32(QUANTA)).astype(
            np.uint8
        ),
        "affinities": quantise(found[3:5]),
        "organelles": quantise(found[5:7]),
        "mito": (mito >= 0.5).astype(np.uint8),
        "er": (er >= 0.4).astype(np.uint8),
        "probabilities": quantise(softmax(found[7:])),
        "classes": found[7:].argmax(0).astype(np.uint8),
    }


def test_every_image_is_what_one_pass_gives(folder: Path) -> None:
    stored, truth = open_output(folder / "out.zarr"), in_one_pass()
    assert tuple(image.name for image in stored.images) == IMAGES
    assert len(recipe_of(stored).plan) > 4
    for image in stored.images:
        found = stored.read(image.name, stored.region)
        assert found.dtype == truth[image.name].dtype
        np.testing.assert_array_equal(found, truth[image.name])
        assert len(np.unique(found)) > 1
        for finer, level in zip(stored.levels, stored.levels[1:], strict=False):
            number, box = IMAGES.index(image.name), level.blocks.region
            again = coarsened(finer.arrays[number].read(finer.blocks.region), level.step, finer.rules[number])
            np.testing.assert_array_equal(level.arrays[number].read(box), again)
    assert len(stored.levels) == 2


def test_each_image_is_a_zarr_with_its_meaning(folder: Path) -> None:
    """Other tools find voxel size, axes, names of channels, and what affinities mean."""
    root: Any = zarr.open_group(folder / "out.zarr", mode="r")
    assert root["distances/0"].dtype == np.float16
    assert np.isnan(root["distances/0"].fill_value)
    assert root["affinities/0"].fill_value == 255
    head = dict(root["affinities"].attrs)["emseg"]["head"]
    assert head["offsets"] == [[-1, 0, 0], [0, 0, -1]]
    assert head["kind"] == "affinities"
    ome = dict(root["affinities"].attrs)["ome"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == ["-1 0 0", "0 0 -1"]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]
    assert dict(root["labels"].attrs)["ome"]["labels"] == ["classes", "er", "mito"]
    assert dict(root["labels/mito"].attrs)["ome"]["image-label"]["properties"][1] == {"label-value": 1, "name": "mito"}


def test_two_workers_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "new.zarr", probabilities=True, workers=2) == bytes_of(folder / "out.zarr")


@pytest.mark.parametrize(
    "image", ["distances/0/c/0/0/0/0", "labels/er/0/c/0/0/0", "affinities/1/c/0/0/0/0", "labels/classes/0/c/0/0/0"]
)
def test_a_lost_part_is_computed_again(image: str, folder: Path, output: Path) -> None:
    before = bytes_of(output)
    (output / image).unlink()
    assert status(output).left + (image.startswith("affinities")) > 0
    assert run(folder, output, probabilities=True) == before


@pytest.mark.parametrize("names", [("affinities",), ("classes", "distances"), ("organelles", "coarse")])
def test_only_the_named_heads_are_stored(names: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    """Each has the same bytes as beside the others; the last one is written last."""
    whole = bytes_of(folder / "out.zarr")
    run(folder, tmp_path / "out.zarr", heads=names)
    stored, truth = open_output(tmp_path / "out.zarr"), in_one_pass()
    assert {image.head.name for image in stored.images} == set(names)
    for image in stored.images:
        np.testing.assert_array_equal(stored.read(image.name, stored.region), truth[image.name])
    voxels = {name: data for name, data in bytes_of(tmp_path / "out.zarr").items() if "/c/" in name}
    assert voxels.items() <= whole.items()
    assert verify(tmp_path / "out.zarr", predictor=NAME, boxes=2).holds
    assert run(folder, tmp_path / "out.zarr") == bytes_of(tmp_path / "out.zarr")


def test_verify_finds_each_wrong_image(output: Path) -> None:
    assert verify(output, predictor=NAME, boxes=4).holds
    stored = open_output(output)
    box = stored.region
    values = [stored.read(image.name, box) for image in stored.images]
    for number, image in enumerate(stored.images):
        wrong = list(values)
        wrong[number] = values[number][..., ::-1].copy()
        stored.write(box, wrong)
        verdict = verify(output, predictor=NAME, boxes=4)
        assert not verdict.holds
        assert (verdict.wrong_labels > 0) == (image.content == "labels"), image.name
        assert (verdict.wrong_probabilities > 0) == (image.content != "labels"), image.name
    stored.write(box, values)
    assert verify(output, predictor=NAME, boxes=4).holds


@pytest.mark.parametrize(
    "name", ["distances/zarr.json", "labels/mito/zarr.json", "affinities/0/zarr.json", "coarse/1/zarr.json"]
)
def test_lost_metadata_are_written_again(name: str, output: Path) -> None:
    before = bytes_of(output)
    (output / name).unlink()
    assert verify_checksums(output).exit_code == 3
    repair(output, predictor=NAME)
    assert verify_checksums(output).exit_code == 0
    assert bytes_of(output) == before


def test_starting_over_with_other_heads_leaves_nothing_of_the_old_ones(folder: Path, output: Path) -> None:
    run(folder, output, heads=("distances",), overwrite=True)
    run(folder, output, heads=("distances",))
    assert {path.name for path in output.iterdir()} == {"distances-2", "emseg", "labels", "zarr.json"}
    assert {path.name for path in (output / "labels").iterdir()} == {"zarr.json"}
    assert verify_checksums(output).exit_code == 0


def test_commands_that_need_classes_say_so(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out.zarr", heads=("affinities", "organelles"))
    for command in (
        lambda: label(tmp_path / "out.zarr", workers=0),
        lambda: evaluate(tmp_path / "out.zarr", folder / "volume.zarr", ids=True),
        lambda: export(tmp_path / "out.zarr", tmp_path / "x.tif"),
    ):
        with pytest.raises(
            OutputError, match=r"no classes that exclude one another, but affinities \(affinities\), organelles"
        ):
            command()
    export(tmp_path / "out.zarr", tmp_path / "x.tif", probability="-1 0 0")
    page = tmp_path / "report.html"
    report(tmp_path / "out.zarr", page)
    assert "affinities (1 = the same object)" in page.read_text()
    assert json.dumps(status(tmp_path / "out.zarr").to_json())


def test_what_is_asked_of_heads_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    for options, error, message in (
        (
            {"heads": ("boundaries",)},
            InputError,
            f"no head 'boundaries', but {', '.join(ORDER)}",
        ),
        (
            {"heads": ("affinities",), "probabilities": True},
            PlanError,
            "is for classes, but the heads affinities have none",
        ),
        ({"empty": (0.0, "inside")}, PlanError, "declares a class, but the heads"),
        ({"tta": True}, PlanError, "the network has the head 'distances'"),
    ):
        with pytest.raises(error, match=message):
            run(folder, tmp_path / "out.zarr", **options)
        with pytest.raises(error, match=message):
            emseg.plan(folder / "volume.zarr", predictor=NAME, **options)
    assert not (tmp_path / "out.zarr").exists()
    with pytest.raises(InputError, match="no head 'affs', but classes"):
        emseg.plan(folder / "volume.zarr", heads=("affs",))


def test_another_choice_of_heads_is_another_run(folder: Path, output: Path) -> None:
    with pytest.raises(InputError, match=r"heads was .*, now"):
        segment(folder / "volume.zarr", output, predictor=NAME, heads=("classes",), probabilities=True, workers=0)


def test_instance_labels_never_replace_labels_of_the_run(output: Path) -> None:
    before = bytes_of(output)
    for name in ("mito", "ER", "mito-2"):
        with pytest.raises(InputError, match=r"has labels of the class '(mito|er)' under this name: choose another .*name"):
            label(output, method="components", name=name, workers=0)
    assert bytes_of(output) == before


def test_verify_finds_values_that_are_not_a_number(output: Path) -> None:
    stored = open_output(output)
    array, box = stored.levels[0].arrays[0], stored.region
    values = array.read(box)
    values[:, ::2] = np.nan
    array.write(box, values)
    assert verify(output, predictor=NAME, boxes=4).wrong_probabilities > 0


def test_channels_of_the_same_name_are_told_apart(folder: Path, tmp_path: Path) -> None:
    segment(folder / "volume.zarr", tmp_path / "out.zarr", predictor="detectors:Alike", workers=0)
    with pytest.raises(InputError, match=r"has '0 0 1' in several heads: choose near/0 0 1 or far/0 0 1"):
        export(tmp_path / "out.zarr", tmp_path / "x.tif", probability="0 0 1")
    stored = open_output(tmp_path / "out.zarr")
    for head in ("near", "far"):
        export(tmp_path / "out.zarr", tmp_path / f"{head}.tif", probability=f"{head}/0 0 1")
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{head}.tif"), stored.read(head, stored.region)[0])


def test_old_heads_are_found_again_if_their_removal_was_interrupted(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, output, heads=("distances",), overwrite=True)
    shutil.copytree(folder / "out.zarr/affinities", output / "affinities")
    removed: list[str] = []
    remove_all = LocalFiles.remove_all

    def removing(files: LocalFiles, place: str) -> None:
        if place.startswith("affinities"):
            assert (output / "affinities/zarr.json").exists()
            if removed:
                raise OSError("the disk is gone")
            removed.append(place)
        remove_all(files, place)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "remove_all", removing)
        with pytest.raises(OutputError, match="the disk is gone"):
            tidy_output(output)
    assert removed == ["affinities/0"]
    tidy_output(output)
    assert not (output / "affinities").exists()


def test_a_network_with_other_heads_is_another_network(folder: Path, output: Path) -> None:
    with pytest.raises(InputError, match=r"model_digest was .*, now"):
        segment(folder / "volume.zarr", output, predictor="detectors:Alike", workers=0)


def test_affinities_that_are_stored_elsewhere_than_stated_are_noticed(tmp_path: Path) -> None:
    """Without truth, at the start of a run; not when they are stated as they are, and not again when a run goes on."""
    places = np.indices((20, 90, 100))
    rings = (np.sqrt(((places - np.array([9, 44, 51])[:, None, None, None]) ** 2).sum(0)) // 7).astype(np.uint8)
    save_volume(tmp_path / "volume.zarr", 20 * rings)
    said: dict[str, list[str]] = {}
    for name, predictor in (("wrong", "NearEdges"), ("again", "NearEdges"), ("right", "RightNearEdges")):
        events: list[Event] = []
        place = tmp_path / name.replace("again", "wrong")
        own = f"detectors:{predictor}"
        assert segment(tmp_path / "volume.zarr", place, predictor=own, workers=0, on_event=events.append).exit_code == 0
        said[name] = [event.message for event in events if isinstance(event, Noticed) and "edges" in event.message]
    (notice,) = said["wrong"]
    assert "the head edges seems to be stated wrongly: " in notice
    assert (
        'have a single cut edge, which no labels have, but 0.0% with anchor = "destination": check what was trained' in notice
    )
    assert said["again"] == said["right"] == []
