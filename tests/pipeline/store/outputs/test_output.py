from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import zarr
from fakes import in_order
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.common.omero import Omero
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.image_label_types import Label
from ome_zarr_models.v05.labels import Labels

from emseg_core.box import Box, Triple, triple
from emseg_core.errors import BlockError, OutputError
from emseg_core.specs.heads import classes_head
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.files import LocalFiles
from emseg_core.store.outputs.layout import OutputLayout
from emseg_core.store.outputs.lifecycle import create_output, open_output, restart_output, tidy_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.volume import open_volume

VOLUME = VolumeSpec(
    (40, 70, 90), "uint16", (16, 32, 32), 3, (40.0, 4.5, 3.7), (1000.0, -7.25, 0.1), ("nanometer", "nanometer", "nanometer")
)
REGION = Box((5, 6, 7), (30, 60, 88))
UNIT, CHUNK = (16, 32, 32), (8, 16, 32)
CLASSES = ("inside", "membrane", "glia")
FORM: dict[str, Any] = {
    "volume": VOLUME,
    "region": REGION,
    "classes": CLASSES,
    "unit": UNIT,
    "chunk": CHUNK,
    "probabilities": True,
    "attributes": {},
}


INDEX = 16 + 4
"""Size in bytes of the index of a shard with one chunk: offset, length and a checksum."""


def make(path: Path, **changes: Any) -> Output:
    """Make an empty output of `REGION`."""
    create_output(path, form(**changes))
    return open_output(path)


def form(**changes: Any) -> OutputLayout:
    """Return the layout of the test outputs."""
    fields = {**FORM, **changes}
    return OutputLayout(heads=(classes_head(fields.pop("classes")),), **fields)


def units(region: Box = REGION, unit: Triple = UNIT) -> list[Box]:
    """Return the write units of a region, x fastest, found voxel by voxel."""
    cuts = [[*range(a, b, u), b] for a, b, u in zip(region.start, region.stop, unit, strict=True)]
    return [
        Box((z, y, x), (cuts[0][k + 1], cuts[1][j + 1], cuts[2][i + 1]))
        for k, z in enumerate(cuts[0][:-1])
        for j, y in enumerate(cuts[1][:-1])
        for i, x in enumerate(cuts[2][:-1])
    ]


def content(box: Box, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities for a box."""
    random = np.random.default_rng((seed, *map(abs, box.start)))
    return random.integers(0, 3, box.shape, np.uint8), random.integers(0, 255, (3, *box.shape), np.uint8)


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def group(path: Path) -> zarr.Group:
    return zarr.open_group(path, mode="r")


# -- layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("unit", ["nanometer", None])
def test_metadata_are_what_ome_zarr_says(tmp_path: Path, probabilities: bool, rank: Literal[2, 3], unit: str | None) -> None:
    units = (None, unit, unit) if rank == 2 else (unit,) * 3
    volume = VolumeSpec(
        (1, 70, 90) if rank == 2 else (40, 70, 90), "uint8", (1, 32, 32), rank, VOLUME.scale, VOLUME.translation, units
    )
    region = Box((0 if rank == 2 else 5, 6, 7), (1 if rank == 2 else 30, 60, 88))
    make(tmp_path / "o", volume=volume, region=region, probabilities=probabilities, unit=(1, 32, 32), chunk=(1, 16, 16))
    image = Image.from_zarr(group(tmp_path / "o"))
    labels = Labels.from_zarr(group(tmp_path / "o" / "labels"))
    classes = ImageLabel.from_zarr(group(tmp_path / "o" / "labels" / "classes"))
    assert labels.label_paths == ["classes"]
    found: dict[str, Any] = {"root": image, "classes": classes}
    if probabilities:
        found["inside"] = Image.from_zarr(group(tmp_path / "o" / "probabilities"))
    for name, model in found.items():
        multiscale = model.attributes.ome.multiscales[0]
        channels = probabilities and name != "classes"
        assert [axis.name for axis in multiscale.axes] == [*("c" * channels), *"zyx"[-rank:]]
        assert [axis.type for axis in multiscale.axes] == ["channel"] * channels + ["space"] * rank
        assert [axis.unit for axis in multiscale.axes] == [None] * channels + [unit] * rank
        scale, translation = multiscale.datasets[0].coordinateTransformations
        place = tuple(t + s * o for t, s, o in zip(VOLUME.translation, VOLUME.scale, region.start, strict=True))
        assert tuple(scale.scale) == (1.0,) * channels + VOLUME.scale[-rank:]
        assert tuple(translation.translation) == (0.0,) * channels + place[-rank:]
    text = (tmp_path / "o" / "zarr.json").read_text()
    assert ('"unit"' in text) == (unit is not None)
    assert multiscales_path(tmp_path / "o") == ("probabilities/0" if probabilities else "labels/classes/0")


def ome(folder: Path) -> dict[str, Any]:
    """Return the OME metadata of a group."""
    found: Any = group(folder).attrs["ome"]
    return dict(found)


def multiscales_path(folder: Path) -> str:
    return str(ome(folder)["multiscales"][0]["datasets"][0]["path"])


def test_class_names_and_colours(tmp_path: Path) -> None:
    make(tmp_path / "o")
    label = ome(tmp_path / "o" / "labels" / "classes")["image-label"]
    model = Label.model_validate(label)
    assert [(p["label-value"], p["name"]) for p in label["properties"]] == list(enumerate(CLASSES))
    assert len({tuple(colour["rgba"]) for colour in label["colors"]}) == 3
    assert [colour.label_value for colour in model.colors or ()] == [0, 1, 2]
    assert (tmp_path / "o" / "labels" / "classes" / label["source"]["image"]).resolve() == tmp_path / "o"
    omero = ome(tmp_path / "o")["omero"]
    Omero.model_validate(omero)
    assert [channel["label"] for channel in omero["channels"]] == list(CLASSES)


def test_arrays_are_sharded_and_checked(tmp_path: Path) -> None:
    make(tmp_path / "o")
    for name, shape, shard, chunk in (
        ("labels/classes/0", REGION.shape, UNIT, CHUNK),
        ("probabilities/0", (3, *REGION.shape), (3, *UNIT), (1, *CHUNK)),
    ):
        array = zarr.open_array(tmp_path / "o" / name, mode="r")
        assert (array.shape, array.shards, array.chunks) == (shape, shard, chunk)
        assert (array.dtype, array.fill_value) == (np.dtype(np.uint8), 255)
        codecs = json.loads((tmp_path / "o" / name / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
        assert [codec["name"] for codec in codecs] == ["bytes", "zstd", "crc32c"]


def test_labels_are_a_volume_that_can_be_opened(tmp_path: Path) -> None:
    output = make(tmp_path / "o", probabilities=False)
    box = units()[-1]
    output.write(box, in_order(content(box)[0], None))
    for path in (tmp_path / "o", tmp_path / "o" / "labels" / "classes"):
        volume = open_volume(path)
        assert volume.spec.translation == VOLUME.crop(REGION)
        np.testing.assert_array_equal(volume.read(box.relative_to(REGION.start)), content(box)[0])


def test_zarr_finds_nothing_strange(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    output.records.put("run-0001/report.json", b"{}")
    assert [name for name, _ in sorted(group(tmp_path / "o").members())] == ["emseg", "labels", "probabilities"]


def test_a_plain_picture_of_the_files(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    output.write(units()[-1], in_order(*content(units()[-1])))
    assert sorted(files(tmp_path / "o")) == [
        "emseg/zarr.json",
        "labels/classes/0/c/1/1/2",
        "labels/classes/0/zarr.json",
        "labels/classes/zarr.json",
        "labels/zarr.json",
        "probabilities/0/c/0/1/1/2",
        "probabilities/0/zarr.json",
        "probabilities/zarr.json",
        "zarr.json",
    ]


# -- blocks -----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(data=st.data(), rank=st.sampled_from([2, 3]), probabilities=st.booleans())
def test_blocks_against_a_plain_array(data: st.DataObject, rank: int, probabilities: bool) -> None:
    lengths = [1 if rank == 2 and axis == 0 else data.draw(st.integers(1, 40)) for axis in range(3)]
    start = triple(data.draw(st.integers(0, length - 1)) for length in lengths)
    stop = triple(data.draw(st.integers(a + 1, length)) for a, length in zip(start, lengths, strict=True))
    region = Box(start, stop)
    unit = (1, 16, 8) if rank == 2 else (8, 16, 8)
    volume = VolumeSpec(triple(lengths), "uint8", (8, 8, 8), rank)  # type: ignore[arg-type]
    wanted_labels = np.full(lengths, 255, np.uint8)
    wanted_probabilities = np.full((3, *lengths), 255, np.uint8)
    everything = units(region, unit)
    chosen = data.draw(st.lists(st.sampled_from(everything), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "o"
        output = make(path, volume=volume, region=region, unit=unit, chunk=(1, 8, 8), probabilities=probabilities)
        for number, box in enumerate(chosen):
            labels, found = content(box, number)
            output.write(box, in_order(labels, found if probabilities else None))
            wanted_labels[box.slices()], wanted_probabilities[:, *box.slices()] = labels, found
        output = open_output(path)
        assert [output.is_done(box) for box in everything] == [box in chosen for box in everything]
        assert output.done_units().ravel().tolist() == [box in chosen for box in everything]
        ends = [
            sorted(data.draw(st.lists(st.integers(a, b), min_size=2, max_size=2, unique=True)))
            for a, b in zip(start, stop, strict=True)
        ]
        box = Box(triple(a for a, _ in ends), triple(b for _, b in ends))
        np.testing.assert_array_equal(output.read_labels(box), wanted_labels[box.slices()])
        if probabilities:
            np.testing.assert_array_equal(output.read_probabilities(box), wanted_probabilities[:, *box.slices()])


def test_a_block_of_many_units_is_done_when_all_are(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    for number, box in enumerate(units()):
        assert not output.is_done(REGION)
        assert output.done_units().sum() == number
        output.write(box, in_order(*content(box)))
    assert output.is_done(REGION)
    assert output.done_units().all()
    again = make(tmp_path / "p")
    again.write(REGION, in_order(output.read_labels(REGION), output.read_probabilities(REGION)))
    assert files(tmp_path / "o") == files(tmp_path / "p")


def test_not_done_if_one_array_lacks_the_unit(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    box = units()[0]
    for file in ("labels/classes/0/c/0/0/0", "probabilities/0/c/0/0/0/0"):
        output.write(box, in_order(*content(box)))
        assert output.is_done(box)
        (tmp_path / "o" / file).unlink()
        assert not output.is_done(box)
        assert not output.done_units().any()


@pytest.mark.parametrize("size", [0, 1, INDEX, INDEX - 1])
@pytest.mark.parametrize("file", ["labels/classes/0/c/0/0/0", "probabilities/0/c/0/0/0/0"])
def test_a_file_cut_short_by_a_power_cut_is_not_done(tmp_path: Path, file: str, size: int) -> None:
    """The index at the end locates the chunks, so a file without it has none."""
    output = make(tmp_path / "o", chunk=UNIT, classes=("a",))  # a single chunk in each shard
    box = units()[0]
    output.write(box, in_order(np.zeros(box.shape, np.uint8), np.zeros((1, *box.shape), np.uint8)))
    assert output.is_done(box)
    os.truncate(tmp_path / "o" / file, size)
    assert not output.is_done(box)
    assert not output.done_units().any()


def test_constant_blocks_are_stored(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    for box, value in zip(units(), (0, 2, 1), strict=False):
        output.write(box, in_order(np.full(box.shape, value, np.uint8), np.full((3, *box.shape), 127 * value, np.uint8)))
        assert output.is_done(box)
        assert (output.read_labels(box) == value).all()


def test_stray_files_are_not_units_and_half_written_ones_are_removed_when_asked(tmp_path: Path) -> None:
    output = make(tmp_path / "o", probabilities=False)
    box = units()[0]
    output.write(box, in_order(content(box)[0], None))
    folder = tmp_path / "o" / "labels" / "classes" / "0" / "c" / "0" / "0"
    partial, others = [".1.0f3a.partial", "2.partial"], ["99", ".nfs1", "01", "-1", "\u0661"]
    for name in (*partial, *others):
        (folder / name).write_bytes(bytes(1000))
    (folder.parent / "7").write_bytes(bytes(1000))
    for tidy in (False, True):
        assert np.argwhere(output.done_units(tidy=tidy)).tolist() == [[0, 0, 0]]
        left = {path.name for path in folder.iterdir()}
        assert left == {"0", *others, *(() if tidy else partial)}
    assert output.read_labels(box).tobytes() == content(box)[0].tobytes()


def test_same_blocks_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    boxes = units()
    attributes = {"z": 1, "a": [1.5, None, {"deep": "ü"}]}
    for name, order in (("o", boxes), ("p", boxes[::-1])):
        output = make(tmp_path / name, attributes=attributes)
        for box in order:
            output.write(box, in_order(*content(box)))
    found = files(tmp_path / "o")
    assert found == files(tmp_path / "p")
    assert len(found) == 7 + 2 * len(boxes)
    assert not [name for name, data in found.items() if str(tmp_path).encode() in data]


@pytest.mark.parametrize("which", [0, -1], ids=["whole unit", "cut short"])
@pytest.mark.parametrize("array", ["labels/classes/0/c/", "probabilities/0/c/0/"])
def test_a_flipped_bit_is_found_and_can_be_written_over(tmp_path: Path, which: int, array: str) -> None:
    output = make(tmp_path / "o")
    box = units()[which]
    output.write(box, in_order(*content(box)))
    sound = files(tmp_path / "o")
    file = tmp_path / "o" / (array + ("0/0/0" if which == 0 else "1/1/2"))
    raw = file.read_bytes()
    read = output.read_labels if "labels" in array else output.read_probabilities
    for place in {0, len(raw) // 3, len(raw) // 2, len(raw) - 1}:
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(BlockError, match=rf"the block {box} of .* cannot be read \(.+\): compute it again"):
            read(box)
        output.write(box, in_order(*content(box)))
        assert files(tmp_path / "o") == sound
    for short in (raw[:-5], raw[:5], b""):
        file.write_bytes(short)
        with pytest.raises(BlockError):
            read(box)
        output.write(box, in_order(*content(box)))
        assert files(tmp_path / "o") == sound


def test_labels_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there are labels, there are probabilities."""
    output = make(tmp_path / "o")
    box = units()[0]
    replaced: list[Path] = []
    replace = Path.replace

    def refuse_labels(work: Path, file: Path) -> Path:
        if "labels" in file.parts:
            raise OSError(errno.ENOSPC, "No space left")
        replaced.append(file)
        return replace(work, file)

    monkeypatch.setattr(Path, "replace", refuse_labels)
    with pytest.raises(BlockError, match=rf"the block {box} of .* cannot be written \(no space left\)"):
        output.write(box, in_order(*content(box)))
    assert replaced == [tmp_path / "o" / "probabilities" / "0" / "c" / "0" / "0" / "0" / "0"]
    assert not output.is_done(box)
    assert (output.read_labels(box) == 255).all()


def test_a_full_disk_is_a_block_error_and_leaves_nothing(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    box = units()[0]
    before = files(tmp_path / "o")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond this, as if the disk were full
    try:
        with pytest.raises(BlockError, match=r"cannot be written \(file too large\): check the disk"):
            output.write(box, in_order(*content(box)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path / "o") == before
    output.write(box, in_order(*content(box)))
    assert output.is_done(box)


@pytest.mark.parametrize(
    "box",
    [
        Box((5, 6, 7), (20, 38, 39)),
        Box((6, 6, 7), (21, 38, 39)),
        Box((5, 6, 71), (21, 38, 103)),
        Box((0, 6, 7), (21, 38, 39)),
        Box((0, 0, 0), (16, 32, 32)),
        Box((-11, 6, 7), (5, 38, 39)),
    ],
)
def test_a_box_that_is_not_whole_units_is_refused(tmp_path: Path, box: Box) -> None:
    output = make(tmp_path / "o")
    with pytest.raises(ValueError, match=rf"{box} is not whole write units of \(16, 32, 32\) within the region 5:30,6:60,7:88"):
        output.write(box, in_order(*content(box)))
    with pytest.raises(ValueError, match="is not whole write units"):
        output.is_done(box)
    assert not output.done_units().any()


def test_wrong_blocks_are_refused(tmp_path: Path) -> None:
    output, bare = make(tmp_path / "o"), make(tmp_path / "p", probabilities=False)
    box = units()[0]
    labels, probabilities = content(box)
    bad: Any
    other: Any
    for bad, other, message in (
        (labels.astype(np.int64), probabilities, "classes are int64"),
        (labels[:-1], probabilities, "classes are uint8"),
        (labels + 1, probabilities, "classes reach 3, but there are 3 classes"),
        (np.full(box.shape, 255, np.uint8), probabilities, "classes reach 255"),
        (labels, None, "1 images are given for probabilities, classes"),
        (labels, probabilities[:2], "probabilities are uint8"),
        (labels, probabilities.astype(np.float32), "probabilities are float32"),
        (labels, np.maximum(probabilities, 255), "probabilities reach 255, which means not computed"),
    ):
        with pytest.raises(ValueError, match=message):
            output.write(box, in_order(bad, other))
    with pytest.raises(ValueError, match="2 images are given for classes"):
        bare.write(box, in_order(labels, probabilities))
    with pytest.raises(ValueError, match="has no probabilities, but classes"):
        bare.read_probabilities(box)
    with pytest.raises(ValueError, match="not within the region"):
        output.read_labels(VOLUME.box)
    assert not output.done_units().any()


KILLED = """
import itertools, sys
import numpy as np
from emseg_core.box import Box
from emseg_core.store.outputs.lifecycle import open_output
output = open_output(sys.argv[1])
corners = list(itertools.product(*(range(0, n, u) for n, u in zip(output.region.shape, output.unit))))
while True:
    np.random.default_rng().shuffle(corners)
    for corner in corners:
        box = Box.of_shape(output.unit).shift(tuple(map(int, corner)))
        noise = np.random.default_rng(corner).integers(0, 200, (2, *box.shape), np.uint8)
        output.write(box, [noise, noise[0] % 2])
        print("w", end="", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_nothing_wrong(tmp_path: Path) -> None:
    """Ten writers run in turn, and each is killed at a random instruction."""
    region, unit = Box((0, 0, 0), (64, 256, 256)), (16, 64, 64)
    volume, random = VolumeSpec(region.shape, "uint8", (64, 64, 64)), np.random.default_rng(0)
    output = make(tmp_path / "o", volume=volume, region=region, classes=("a", "b"), unit=unit, chunk=(16, 32, 64))
    before = 0
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "o")], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.read(1) == b"w"
            time.sleep(random.uniform(0, 0.1))
            writer.kill()
        done = output.done_units(tidy=True)
        assert not [path for path in (tmp_path / "o").rglob("*") if path.name.endswith(".partial")]
        assert done.sum() >= max(before, 1)
        before = done.sum()
        for box, is_done in zip(units(region, unit), done.ravel(), strict=True):
            assert output.is_done(box) == is_done
            if is_done:
                output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")
                noise = np.random.default_rng(box.start).integers(0, 200, (2, *box.shape), np.uint8)
                np.testing.assert_array_equal(output.read_probabilities(box), noise)
                np.testing.assert_array_equal(output.read_labels(box), noise[0] % 2)
            else:
                assert (output.read_labels(box) == 255).all()


def test_check_unit_finds_what_is_missing_or_damaged(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    box = units()[0]
    with pytest.raises(BlockError, match="has voxels that were not computed: compute it again"):
        output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")
    output.write(box, in_order(*content(box)))
    output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")
    for file in ("labels/classes/0/c/0/0/0", "probabilities/0/c/0/0/0/0"):
        sound = (tmp_path / "o" / file).read_bytes()
        (tmp_path / "o" / file).write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
        with pytest.raises(BlockError, match=rf"the block {box} of .* cannot be read"):
            output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")
        (tmp_path / "o" / file).unlink()
        with pytest.raises(BlockError, match="not computed"):
            output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")
        (tmp_path / "o" / file).write_bytes(sound)
    output.levels[0].check(box.relative_to(output.region.start), f"the block {box}")


WRITER = """
import sys
import numpy as np
from emseg_core.box import Box
from emseg_core.store.outputs.lifecycle import open_output
output = open_output(sys.argv[1])
for text in sys.argv[2:]:
    spans = [tuple(map(int, span.split(":"))) for span in text.split(",")]
    box = Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))
    output.write(box, [np.full((3, *box.shape), box.start[2], np.uint8), np.full(box.shape, box.start[0] % 3, np.uint8)])
"""


def test_processes_write_different_units_at_the_same_time(tmp_path: Path) -> None:
    output = make(tmp_path / "o")
    boxes = units()
    command = [sys.executable, "-c", WRITER, str(tmp_path / "o")]
    writers = [subprocess.Popen([*command, *map(str, boxes[part::2])]) for part in (0, 1)]
    assert [writer.wait() for writer in writers] == [0, 0]
    for box in boxes:
        assert (output.read_labels(box) == box.start[0] % 3).all()
        assert (output.read_probabilities(box) == box.start[2]).all()


def test_it_can_be_pickled(tmp_path: Path) -> None:
    output = pickle.loads(pickle.dumps(make(tmp_path / "o", attributes={"a": 1})))
    box = units()[0]
    output.write(box, in_order(*content(box)))
    assert (output.region, output.classes, output.unit, output.chunk) == (REGION, CLASSES, UNIT, CHUNK)
    assert (output.keeps_probabilities, output.attributes) == (True, {"a": 1})
    assert open_output(tmp_path / "o").is_done(box)


# -- making -----------------------------------------------------------------------------------------------------


def test_attributes_come_back_as_json(tmp_path: Path) -> None:
    attributes = {"plan": {"tile": (1, 2, 3)}, "x": 0.1 + 0.2, "none": None}
    output = make(tmp_path / "o", attributes=attributes)
    assert output.attributes == {"plan": {"tile": [1, 2, 3]}, "x": 0.1 + 0.2, "none": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": Box((0, 0, 0), (41, 70, 90))}, "not within the volume"),
        ({"chunk": (8, 16, 31)}, r"write unit \(16, 32, 32\) is not a multiple of the chunk \(8, 16, 31\)"),
        ({"classes": ()}, "names 0 channels"),
        ({"classes": tuple(map(str, range(256)))}, "names 256 channels"),
        ({"attributes": {"output": 1}}, "'output' is reserved"),
        ({"attributes": {"a": float("nan")}}, "not JSON compliant"),
    ],
)
def test_arguments_that_disagree(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(tmp_path / "o", **changes)
    assert not isinstance(caught.value, OutputError)
    assert list(tmp_path.iterdir()) == []


def failure(path: Path | str) -> str:
    """Return the message of a failed creation, which is one line."""
    with pytest.raises(OutputError) as caught:
        make(path)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_places_that_do_not_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "empty", "link"):
        assert f"{tmp_path / name} already exists: choose another name" in failure(tmp_path / name)
    assert "is not a folder: create that first" in failure(tmp_path / "missing" / "o")
    assert "is not a folder: create that first" in failure(tmp_path / "file" / "o")
    assert "file name too long): choose a shorter name" in failure(tmp_path / ("n" * 256))
    assert "file name too long): choose a shorter name" in failure(tmp_path / ("n" * 256) / "o")
    assert "no file name can have" in failure("a\0b/c")
    assert "no file name can have" in failure("\ud800")
    assert "emseg reads s3://" in failure("ftp://host/o")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "link"]


def test_a_long_name_that_fits(tmp_path: Path) -> None:
    make(tmp_path / ("n" * 255))
    assert open_output(tmp_path / ("n" * 255)).region == REGION


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "not read-only"), (errno.EIO, "check the disk")]
)
@pytest.mark.parametrize("where", ["files.files.LocalFiles.put", "outputs.lifecycle.create_group"])
def test_a_disk_that_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str, where: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"emseg_core.store.{where}", refuse)
    message = failure(tmp_path / "o")
    assert f"({os.strerror(code).lower()})" in message
    assert remedy in message
    assert list(tmp_path.iterdir()) == []


def test_a_truly_full_disk_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        assert "file too large" in failure(tmp_path / "o")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_two_makers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_array = Path.mkdir

    def other_first(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent.name.startswith(".emseg-") and path.name.startswith("1-"):  # where it is made
            make_array(tmp_path / "o")
            (tmp_path / "o" / "theirs").touch()
        make_array(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", other_first)
    with pytest.raises(OutputError, match="created by another process"):
        create_output(tmp_path / "o", form(probabilities=False))
    assert [path.name for path in tmp_path.rglob("*")] == ["o", "theirs"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Make a folder that anybody may enter but only its owner may write to, while this process is not root."""
    folder = Path(tempfile.mkdtemp())
    make(folder / "o")
    folder.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_permission_denied(unprivileged: Path) -> None:
    assert "permission denied): choose a folder that you may write to" in failure(unprivileged / "new")
    with pytest.raises(OutputError, match="permission denied"):
        restart_output(unprivileged / "o", form())
    output = open_output(unprivileged / "o")
    if os.getuid() == 0:
        with pytest.raises(BlockError, match="permission denied"):
            output.write(units()[0], in_order(*content(units()[0])))
    assert (output.read_labels(REGION) == 255).all()


# -- opening ----------------------------------------------------------------------------------------------------


def test_what_is_not_an_output_is_left_alone(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "array", shape=(2, 2, 2), dtype="uint8", attributes={"emseg": {"output": {"format": 2}}})
    zarr.create_group(tmp_path / "group", attributes={"emseg": {"volume": 1}})
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    make(tmp_path / "o")
    before = files(tmp_path)
    for name in ("array", "group", "folder", "file", "missing", "o/labels", "o/labels/classes/0"):
        for action in (open_output, tidy_output, lambda path: restart_output(path, form())):
            with pytest.raises(OutputError) as caught:
                action(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_an_output_of_another_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "o")
    file = tmp_path / "o" / "zarr.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(OutputError, match="is an output of format 1, not 2: use the version of emseg that wrote it"):
        open_output(tmp_path / "o")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    folder = tmp_path_factory.mktemp("documents")
    make(folder / "o")
    names = ("zarr.json", "labels/classes/0/zarr.json", "probabilities/0/zarr.json")
    return {folder / "o" / name: (folder / "o" / name).read_text() for name in names}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=4) | st.just(10**30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON document with each of its keys."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


@settings(max_examples=200)
@given(data=st.data())
def test_damaged_metadata_never_raise_anything_else(documents: dict[Path, str], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(documents)))
    document = json.loads(documents[file])
    container, key = data.draw(st.sampled_from(list(places(document))))
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]
    try:
        file.write_text(json.dumps(document))
        assert open_output(min(documents, key=lambda path: len(path.parts)).parent).region == REGION
    except OutputError as caught:
        assert "\n" not in str(caught)  # noqa: PT017
    finally:
        file.write_text(documents[file])


# -- generations ------------------------------------------------------------------------------------------------


def arrays(path: Path) -> set[str]:
    """Return the folders of all arrays in an output."""
    return {str(file.parent.relative_to(path)) for file in path.rglob("zarr.json") if b'"array"' in file.read_bytes()}


def filled(path: Path, seed: int, **changes: Any) -> Output:
    """Return the output at a path, with its first unit written."""
    output = open_output(path)
    output.write(units()[0], in_order(*content(units()[0], seed)))
    return output


def test_an_output_begun_anew_has_new_arrays_only(tmp_path: Path) -> None:
    path, box = tmp_path / "o", units()[0]
    make(path, attributes={"run": 1})
    filled(path, 1)
    seen = {("labels/classes/0", "probabilities/0")}
    for number in (2, 3, 4):
        restart_output(path, form(attributes={"run": number}))
        tidy_output(path)
        output = open_output(path)
        assert (output.generation, output.attributes) == (number, {"run": number})
        assert not output.done_units().any()
        names = (f"labels/classes-{number}/0", f"probabilities-{number}/0")
        assert arrays(path) == set(names)
        assert names not in seen
        seen.add(names)
        filled(path, number)
        np.testing.assert_array_equal(output.read_labels(box), content(box, number)[0])
        np.testing.assert_array_equal(output.read_probabilities(box), content(box, number)[1])
        assert Labels.from_zarr(group(path / "labels")).label_paths == [f"classes-{number}"]
        assert multiscales_path(path) == names[1]
        assert open_volume(path / "labels" / f"classes-{number}").spec.shape == REGION.shape


def test_the_new_output_may_have_another_form(tmp_path: Path) -> None:
    path, box = tmp_path / "o", Box((5, 6, 7), (13, 22, 39))
    make(path)
    filled(path, 1)
    restart_output(path, form(unit=(8, 16, 32), probabilities=False, classes=("a", "b"), region=VOLUME.box))
    tidy_output(path)
    output = open_output(path)
    assert (output.unit, output.keeps_probabilities, output.classes) == ((8, 16, 32), False, ("a", "b"))
    assert output.region == VOLUME.box
    assert arrays(path) == {"labels/classes-2/0"}
    assert (output.read_labels(box) == 255).all()


class CrashError(BaseException):
    """Simulates the end of a process: no handler catches it."""


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process before its `step`-th change on disk, counted from 0."""
    left = iter(range(step))

    def counted(change: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise CrashError
            return change(*arguments, **options)

        return call

    for owner, function in ((LocalFiles, "put"), (shutil, "rmtree"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        monkeypatch.setattr(owner, function, counted(getattr(owner, function)))


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probabilities: bool
) -> None:
    box, sides, step = units()[0], [], 0
    crashed = True
    while crashed:
        path = tmp_path / f"o{step}"
        make(path, attributes={"run": 1})
        filled(path, 1)
        with monkeypatch.context() as patch:
            crash_at(step, patch)
            try:
                restart_output(path, form(attributes={"run": 2}, probabilities=probabilities))
                tidy_output(path)
                crashed = False
            except CrashError:
                pass
        for tidied in (False, True):
            if tidied:
                tidy_output(path)
            output = open_output(path)
            run = output.attributes["run"]
            assert run == output.generation
            if run == 1:
                np.testing.assert_array_equal(output.read_labels(box), content(box, 1)[0])
                np.testing.assert_array_equal(output.read_probabilities(box), content(box, 1)[1])
            else:
                assert not output.done_units().any()
                assert output.keeps_probabilities == probabilities
        sides.append(run)
        name = "" if run == 1 else "-2"
        kept = run == 1 or probabilities
        assert arrays(path) == {f"labels/classes{name}/0", *([f"probabilities{name}/0"] if kept else [])}
        assert Labels.from_zarr(group(path / "labels")).label_paths == [f"classes{name}"]
        restart_output(path, form(attributes={"run": 9}))  # the next run can start, whatever was left
        assert open_output(path).attributes == {"run": 9}
        step += 1
    assert sides == sorted(sides)
    assert set(sides) == {1, 2}
    assert sides.count(1) > 5


def test_what_an_orphan_writes_late_is_not_seen(tmp_path: Path) -> None:
    path, box = tmp_path / "o", units()[0]
    old = make(path)
    restart_output(path, form())
    filled(path, 2)
    for settled in (False, True):
        if settled:
            tidy_output(path)
        with contextlib.suppress(BlockError):  # its arrays may be gone
            old.write(box, in_order(*content(box, 1)))
            old.write(units()[-1], in_order(*content(units()[-1], 1)))
        new = open_output(path)
        assert np.argwhere(new.done_units()).tolist() == [[0, 0, 0]]
        np.testing.assert_array_equal(new.read_labels(box), content(box, 2)[0])
        np.testing.assert_array_equal(new.read_probabilities(box), content(box, 2)[1])
    tidy_output(path)
    assert arrays(path) == {"labels/classes-2/0", "probabilities-2/0"}


def test_settling_leaves_all_else_alone(tmp_path: Path) -> None:
    path = tmp_path / "o"
    make(path)
    filled(path, 1)
    records = open_output(path).records
    records.put("run-0001/lease.json", b"{}")
    (path / "probabilities-old").mkdir()
    (path / "labels" / "nuclei").mkdir()
    before = files(path)
    (path / "emseg" / "run-0001" / ".lease.json.0f.partial").touch()
    tidy_output(path)
    assert files(path) == before
    assert (path / "probabilities-old").is_dir()
    assert (path / "labels" / "nuclei").is_dir()


def test_half_written_attributes_are_removed(tmp_path: Path) -> None:
    """Attributes are files too. A run killed while it replaces them leaves these."""
    path = tmp_path / "o"
    make(path)
    before = files(path)
    for folder in (path, path / "labels"):
        (folder / ".zarr.json.0f.partial").touch()
    tidy_output(path)
    assert files(path) == before
